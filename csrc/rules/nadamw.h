// AdamW with Nesterov momentum and no schedule of it (as in Dozat 2016, and in the AlgoPerf benchmark), as timm's
// nadamw.py.
#pragma once

#include "rule.h"

namespace FUSEDOPT_NAMESPACE {

struct NAdamW : RuleDefaults {
  static constexpr const char* name = "nadamw";
  struct Hypers {
    double lr, beta1, beta2, eps, weight_decay;
  };
  static constexpr const char* hyper_names[] = {"lr", "betas.0", "betas.1", "eps", "weight_decay"};
  static constexpr const char* state_names[] = {"exp_avg", "exp_avg_sq"};
  static constexpr Kind state_kinds[] = {Kind::average, Kind::magnitude};

  static constexpr bool guarded = true;

  template <class T>
  struct Scalars {
    T step_size, decay, weight1, beta2, weight2, inverse_sqrt_correction2, eps;
  };

  FUSEDOPT_HD static Scalars<double> prepare(const Hypers& h, double* counters, bool) {
    const double step = counters[0] += 1;
    Scalars<double> c;
    c.step_size = h.lr / (1 - pown(h.beta1, step));
    c.decay = 1 - decay_of(h.lr, h.weight_decay);
    c.weight1 = 1 - h.beta1;
    c.beta2 = h.beta2;
    c.weight2 = 1 - h.beta2;
    c.inverse_sqrt_correction2 = 1 / sqrt(1 - pown(h.beta2, step));
    c.eps = h.eps;
    return c;
  }

  template <int variant, class T>
  FUSEDOPT_HD static void update(T& p, T g, T (&s)[2], const Scalars<T>& c) {
    T &m = s[0], &v = s[1];
    m = lerp(m, g, c.weight1);
    v = fma(c.beta2, v, c.weight2 * g * g);
    const T ahead = lerp(m, g, c.weight1);
    p = p * c.decay - c.step_size * ahead / fma(sqrt(v), c.inverse_sqrt_correction2, c.eps);
  }
};

}  // namespace FUSEDOPT_NAMESPACE
