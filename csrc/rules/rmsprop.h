// RMSprop (Hinton 2012, lecture 6e), centered (Graves 2013) and with momentum, as torch.optim.RMSprop; with
// TensorFlow's start, eps and momentum, as timm's rmsprop_tf.py.
#pragma once

#include "rule.h"

namespace FUSEDOPT_NAMESPACE {

struct RMSprop : RuleDefaults {
  static constexpr const char* name = "rmsprop";
  struct Hypers {
    double lr, alpha, eps, weight_decay, momentum, centered, initial, eps_in_sqrt, lr_in_momentum, decoupled;
  };
  static constexpr const char* hyper_names[] = {"lr",
                                                "alpha",
                                                "eps",
                                                "weight_decay",
                                                "momentum",
                                                "centered",
                                                "initial_accumulator_value",
                                                "eps_in_sqrt",
                                                "lr_in_momentum",
                                                "decoupled_weight_decay"};
  static constexpr const char* state_names[] = {"square_avg", "momentum_buffer", "grad_avg"};
  static constexpr Kind state_kinds[] = {Kind::magnitude, Kind::average, Kind::average};

  enum { plain, with_momentum, with_centering, with_both, variants };
  FUSEDOPT_HD static int variant(const Hypers& h) {
    return (h.momentum > 0 ? with_momentum : plain) + (h.centered != 0 ? with_centering : plain);
  }
  FUSEDOPT_HD static constexpr bool keeps(int variant, int state) {
    return state == 0 || (state == 1 ? variant & with_momentum : variant & with_centering) != 0;
  }
  FUSEDOPT_HD static double initial_state(const Hypers& h, int state) { return state == 0 ? h.initial : 0; }

  static constexpr bool guarded = true;

  template <class T>
  struct Scalars {
    T lr, alpha, weight, eps, eps_within, decay, l2, momentum, kept_size, step_size;
  };

  FUSEDOPT_HD static Scalars<double> prepare(const Hypers& h, double* counters, bool) {
    counters[0] += 1;
    Scalars<double> c;
    c.lr = h.lr;
    c.alpha = h.alpha;
    c.weight = 1 - h.alpha;
    c.eps = h.eps_in_sqrt != 0 ? 0 : h.eps;
    c.eps_within = h.eps_in_sqrt != 0 ? h.eps : 0;
    c.decay = h.decoupled != 0 ? 1 - decay_of(h.lr, h.weight_decay) : 1;
    c.l2 = h.decoupled != 0 ? 0 : h.weight_decay;
    c.momentum = h.momentum;
    c.kept_size = h.lr_in_momentum != 0 ? h.lr : 1;
    c.step_size = h.lr_in_momentum != 0 ? 1 : h.lr;
    return c;
  }

  template <int variant, class T>
  FUSEDOPT_HD static void update(T& p, T g, T (&s)[3], const Scalars<T>& c) {
    T &v = s[0], &buffer = s[1], &g_avg = s[2];
    p = p * c.decay;
    if (c.l2 != T(0)) g = fma(c.l2, p, g);
    v = fma(c.alpha, v, c.weight * g * g);
    T variance = v;
    if constexpr ((variant & with_centering) != 0) {
      g_avg = lerp(g_avg, g, c.weight);
      // Never negative but for rounding; without the clamp the root of a constant gradient's variance can be NaN.
      variance = clamp_negative(fma(-g_avg, g_avg, v));
    }
    const T denominator = sqrt(variance + c.eps_within) + c.eps;
    if constexpr ((variant & with_momentum) != 0) {
      buffer = fma(c.momentum, buffer, c.kept_size * g / denominator);
      p = fma(-c.step_size, buffer, p);
    } else {
      p = p - c.lr * g / denominator;
    }
  }
};

}  // namespace FUSEDOPT_NAMESPACE
