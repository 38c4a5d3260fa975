// Adam-atan2, Adam with an arctangent in the place of the division and its eps (Everett et al. 2024), as lucidrains'
// adam_atan2.py.
#pragma once

#include "rule.h"

namespace FUSEDOPT_NAMESPACE {

struct AdamAtan2 : RuleDefaults {
  static constexpr const char* name = "adam_atan2";
  struct Hypers {
    double lr, beta1, beta2, weight_decay, a, b;
  };
  static constexpr const char* hyper_names[] = {"lr", "betas.0", "betas.1", "weight_decay", "a", "b"};
  static constexpr const char* state_names[] = {"exp_avg", "exp_avg_sq"};
  static constexpr Kind state_kinds[] = {Kind::average, Kind::magnitude};

  template <class T>
  struct Scalars {
    T step_size, decay, weight1, beta2, weight2, b;
  };

  FUSEDOPT_HD static Scalars<double> prepare(const Hypers& h, double* counters, bool) {
    const double step = counters[0] += 1;
    Scalars<double> c;
    c.step_size = h.lr * h.a;
    c.decay = 1 - decay_of(h.lr, h.weight_decay);
    c.weight1 = 1 - h.beta1;
    c.beta2 = h.beta2;
    c.weight2 = 1 - h.beta2;
    // The angle is that of m and b sqrt(v) with both corrections in b.
    c.b = h.b * (1 - pown(h.beta1, step)) / sqrt(1 - pown(h.beta2, step));
    return c;
  }

  template <int variant, class T>
  FUSEDOPT_HD static void update(T& p, T g, T (&s)[2], const Scalars<T>& c) {
    T &m = s[0], &v = s[1];
    m = lerp(m, g, c.weight1);
    v = fma(c.beta2, v, c.weight2 * g * g);
    p = fma(-c.step_size, atan2(m, c.b * sqrt(v)), p * c.decay);
  }
};

}  // namespace FUSEDOPT_NAMESPACE
