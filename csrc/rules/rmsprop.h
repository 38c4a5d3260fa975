// RMSprop (Hinton 2012, lecture 6e), centered (Graves 2013) and with momentum, as torch.optim.RMSprop.
#pragma once

#include "rule.h"

namespace FUSEDOPT_NAMESPACE {

struct RMSprop : RuleDefaults {
  static constexpr const char* name = "rmsprop";
  struct Hypers {
    double lr, alpha, eps, weight_decay, momentum, centered;
  };
  static constexpr const char* hyper_names[] = {"lr", "alpha", "eps", "weight_decay", "momentum", "centered"};
  static constexpr const char* state_names[] = {"square_avg", "momentum_buffer", "grad_avg"};
  static constexpr Kind state_kinds[] = {Kind::magnitude, Kind::average, Kind::average};

  enum { plain, with_momentum, with_centering, with_both, variants };
  FUSEDOPT_HD static int variant(const Hypers& h) {
    return (h.momentum > 0 ? with_momentum : plain) + (h.centered != 0 ? with_centering : plain);
  }
  FUSEDOPT_HD static constexpr bool keeps(int variant, int state) {
    return state == 0 || (state == 1 ? variant & with_momentum : variant & with_centering) != 0;
  }

  template <class T>
  struct Scalars {
    T lr, alpha, weight, eps, weight_decay, momentum;
  };

  FUSEDOPT_HD static Scalars<double> prepare(const Hypers& h, double* counters, bool) {
    counters[0] += 1;
    return {h.lr, h.alpha, 1 - h.alpha, h.eps, h.weight_decay, h.momentum};
  }

  template <int variant, class T>
  FUSEDOPT_HD static void update(T& p, T g, T (&s)[3], const Scalars<T>& c) {
    T &v = s[0], &buffer = s[1], &g_avg = s[2];
    if (c.weight_decay != T(0)) g = fma(c.weight_decay, p, g);
    v = fma(c.alpha, v, c.weight * g * g);
    T variance = v;
    if constexpr ((variant & with_centering) != 0) {
      g_avg = lerp(g_avg, g, c.weight);
      // Never negative but for rounding; without the clamp the root of a constant gradient's variance can be NaN.
      variance = clamp_negative(fma(-g_avg, g_avg, v));
    }
    const T denominator = sqrt(variance) + c.eps;
    if constexpr ((variant & with_momentum) != 0) {
      buffer = fma(c.momentum, buffer, g / denominator);
      p = fma(-c.lr, buffer, p);
    } else {
      p = p - c.lr * g / denominator;
    }
  }
};

}  // namespace FUSEDOPT_NAMESPACE
