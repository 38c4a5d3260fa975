// MARS, AdamW of gradients whose variance is reduced by those of the step before (Yuan et al. 2024, in the approximate
// form that evaluates no gradient twice), as timm's mars.py with optimize_1d=True.
#pragma once

#include "rule.h"

namespace FUSEDOPT_NAMESPACE {

struct MARS : RuleDefaults {
  static constexpr const char* name = "mars";
  struct Hypers {
    double lr, beta1, beta2, eps, weight_decay, gamma;
  };
  static constexpr const char* hyper_names[] = {"lr", "betas.0", "betas.1", "eps", "weight_decay", "gamma"};
  static constexpr const char* state_names[] = {"exp_avg", "exp_avg_sq", "last_grad"};
  static constexpr Kind state_kinds[] = {Kind::average, Kind::magnitude, Kind::average};

  static constexpr bool guarded = true;

  template <class T>
  struct Scalars {
    T step_size, decay, beta1, weight1, beta2, weight2, inverse_sqrt_correction2, eps, difference, norm;
  };

  FUSEDOPT_HD static Scalars<double> prepare(const Hypers& h, double* counters, bool first) {
    const double step = counters[0] += 1;
    Scalars<double> c;
    c.step_size = h.lr / (1 - pown(h.beta1, step));
    c.decay = 1 - decay_of(h.lr, h.weight_decay);
    c.beta1 = h.beta1;
    c.weight1 = 1 - h.beta1;
    c.beta2 = h.beta2;
    c.weight2 = 1 - h.beta2;
    c.inverse_sqrt_correction2 = 1 / sqrt(1 - pown(h.beta2, step));
    c.eps = h.eps;
    c.difference = first ? 0 : h.gamma * h.beta1 / (1 - h.beta1);
    c.norm = 1;
    return c;
  }

  template <class T>
  FUSEDOPT_HD static T corrected(T g, T last, const Scalars<T>& c) {
    if (c.difference != T(0)) g = fma(c.difference, g - last, g);
    return g;
  }

  static constexpr int sums = 1;
  template <int variant, class T>
  FUSEDOPT_HD static void measure(T, T g, T (&s)[3], const Scalars<T>& c, T (&terms)[1]) {
    const T along = corrected(g, s[2], c);
    terms[0] = along * along;
  }
  template <class T>
  FUSEDOPT_HD static void conclude(const double* sums, Scalars<T>& c) {
    if (!(sums[0] <= 1)) c.norm = static_cast<T>(sqrt(sums[0]));
  }

  template <int variant, class T>
  FUSEDOPT_HD static void update(T& p, T g, T (&s)[3], const Scalars<T>& c) {
    T &m = s[0], &v = s[1], &last = s[2];
    const T along = corrected(g, last, c) / c.norm;
    m = fma(c.beta1, m, c.weight1 * along);
    v = fma(c.beta2, v, c.weight2 * along * along);
    p = p * c.decay - c.step_size * m / fma(sqrt(v), c.inverse_sqrt_correction2, c.eps);
    last = g;
  }
};

}  // namespace FUSEDOPT_NAMESPACE
