// LAMB, layer-wise adaptive moments (You et al. 2020), as timm's lamb.py, without its clipping of all gradients;
// cautious as timm's (see caution() in rule.h): mask and growth are of Adam's direction, before decay and trust ratio.
#pragma once

#include "rule.h"

namespace FUSEDOPT_NAMESPACE {

struct LAMB : RuleDefaults {
  static constexpr const char* name = "lamb";
  struct Hypers {
    double lr, beta1, beta2, eps, weight_decay, bias_correction, grad_averaging, trust_clip, always_adapt,
        decoupled_decay, clamp_value, caution;
  };
  static constexpr const char* hyper_names[] = {"lr",           "betas.0",         "betas.1",        "eps",
                                                "weight_decay", "bias_correction", "grad_averaging", "trust_clip",
                                                "always_adapt", "decoupled_decay", "clamp_value",    "caution"};
  static constexpr const char* state_names[] = {"exp_avg", "exp_avg_sq"};
  static constexpr Kind state_kinds[] = {Kind::average, Kind::magnitude};

  enum { plain, cautious, variants };
  FUSEDOPT_HD static int variant(const Hypers& h) { return h.caution != 0 ? cautious : plain; }

  static constexpr bool guarded = true;

  template <class T>
  struct Scalars {
    T lr, inverse_correction1, beta1, weight1, beta2, weight2, inverse_sqrt_correction2, eps, decay, weight_decay,
        adapts, clips, largest, growth;
  };

  FUSEDOPT_HD static Scalars<double> prepare(const Hypers& h, double* counters, bool) {
    const double step = counters[0] += 1;
    Scalars<double> c;
    c.lr = h.lr;
    c.inverse_correction1 = h.bias_correction != 0 ? 1 / (1 - pown(h.beta1, step)) : 1;
    c.beta1 = h.beta1;
    c.weight1 = h.grad_averaging != 0 ? 1 - h.beta1 : 1;
    c.beta2 = h.beta2;
    c.weight2 = 1 - h.beta2;
    c.inverse_sqrt_correction2 = h.bias_correction != 0 ? 1 / sqrt(1 - pown(h.beta2, step)) : 1;
    c.eps = h.eps;
    c.decay = h.decoupled_decay != 0 ? 1 - decay_of(h.lr, h.weight_decay) : 1;
    c.weight_decay = h.decoupled_decay != 0 ? 0 : h.weight_decay;
    c.adapts = h.weight_decay != 0 || h.always_adapt != 0 ? 1 : 0;
    c.clips = h.trust_clip;
    c.largest = h.clamp_value;  // -1 for none
    c.growth = 1;
    return c;
  }

  // Adam's.
  template <class T>
  FUSEDOPT_HD static T direction(T& p, T g, T (&s)[2], const Scalars<T>& c) {
    T &m = s[0], &v = s[1];
    p = p * c.decay;
    m = fma(c.beta1, m, c.weight1 * g);
    v = fma(c.beta2, v, c.weight2 * g * g);
    return m * c.inverse_correction1 / fma(sqrt(v), c.inverse_sqrt_correction2, c.eps);
  }

  template <class T>
  FUSEDOPT_HD static T decayed(T p, T adam, const Scalars<T>& c) {
    if (c.weight_decay != T(0)) adam = fma(c.weight_decay, p, adam);
    return adam;
  }

  // A cautious step grows before the decay is added, by what is known at the end alone: then the square of the norm of
  // both is made of three sums. The last two count elements that move, and all.
  static constexpr int sums = 5;
  FUSEDOPT_HD static constexpr int sums_of(int variant) { return variant == cautious ? sums : 2; }
  template <int variant, class T>
  FUSEDOPT_HD static void measure(T p, T g, T (&s)[2], const Scalars<T>& c, T (&terms)[5]) {
    const T adam = direction(p, g, s, c), moves = caution(adam, g);
    const T update = variant == cautious ? adam * moves : decayed(p, adam, c);
    terms[0] = p * p;
    terms[1] = update * update;
    terms[2] = update * p;
    terms[3] = moves;
    terms[4] = T(1);
  }
  template <class T>
  FUSEDOPT_HD static void conclude(const double* sums, Scalars<T>& c) {
    double square = sums[1];
    if (sums[4] > 0) {
      c.growth = static_cast<T>(growth_by_caution(sums[3], sums[4]));
      const double growth = c.growth, decay = c.weight_decay;
      square = growth * growth * square;
      if (decay != 0) square = square + decay * (2 * growth * sums[2] + decay * sums[0]);
    }
    double norm = sqrt(sums[0]);
    if (c.largest >= T(0) && norm > c.largest) norm = c.largest;
    double trust = norm > 0 && square > 0 ? norm / sqrt(square) : 1;
    if (c.clips != T(0) && trust > 1) trust = 1;
    if (c.adapts != T(0)) c.lr = static_cast<T>(c.lr * trust);
  }

  template <int variant, class T>
  FUSEDOPT_HD static void update(T& p, T g, T (&s)[2], const Scalars<T>& c) {
    const T adam = direction(p, g, s, c);
    p = fma(-c.lr, decayed(p, variant == cautious ? adam * caution(adam, g) * c.growth : adam, c), p);
  }
};

}  // namespace FUSEDOPT_NAMESPACE
