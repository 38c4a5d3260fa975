// ADOPT, whose gradients are normalised by the average of the squares before them (Taniguchi et al. 2024), as the
// authors' adopt.py.
#pragma once

#include "rule.h"

namespace FUSEDOPT_NAMESPACE {

struct ADOPT : RuleDefaults {
  static constexpr const char* name = "adopt";
  struct Hypers {
    double lr, beta1, beta2, eps, clip_exp, weight_decay, decouple;
  };
  static constexpr const char* hyper_names[] = {"lr",       "betas.0",      "betas.1", "eps",
                                                "clip_exp", "weight_decay", "decouple"};
  static constexpr const char* state_names[] = {"exp_avg", "exp_avg_sq"};
  static constexpr Kind state_kinds[] = {Kind::average, Kind::magnitude};

  template <class T>
  struct Scalars {
    T lr, decay, l2, weight1, beta2, weight2, eps, bound, begins;
  };

  FUSEDOPT_HD static Scalars<double> prepare(const Hypers& h, double* counters, bool) {
    const double step = counters[0] += 1;
    // The first step makes v of the gradient, and leaves all else as it is.
    const bool begins = step == 1;
    Scalars<double> c;
    c.begins = begins ? 1 : 0;
    c.lr = begins ? 0 : h.lr;
    c.decay = begins || h.decouple == 0 ? 1 : 1 - decay_of(h.lr, h.weight_decay);
    c.l2 = h.decouple != 0 ? 0 : h.weight_decay;
    c.weight1 = begins ? 0 : 1 - h.beta1;
    c.beta2 = begins ? 0 : h.beta2;
    c.weight2 = 1 - c.beta2;
    c.eps = begins ? 1 : h.eps;
    c.bound = h.clip_exp >= 0 ? power(step - 1, h.clip_exp) : INFINITY;
    return c;
  }

  template <int variant, class T>
  FUSEDOPT_HD static void update(T& p, T g, T (&s)[2], const Scalars<T>& c) {
    T &m = s[0], &v = s[1];
    if (c.l2 != T(0)) g = fma(c.l2, p, g);
    // Times a weight of 0 a gradient that is infinite or NaN would not be nothing.
    const T counted = c.begins != T(0) ? T(0) : g;
    m = lerp(m, clamp(counted / maximum(c.eps, sqrt(v)), -c.bound, c.bound), c.weight1);
    p = fma(-c.lr, m, p * c.decay);
    v = fma(c.beta2, v, c.weight2 * g * g);
  }
};

}  // namespace FUSEDOPT_NAMESPACE
