// Lion, evolved sign momentum (Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms"), as google/automl's
// lion_pytorch.py.
#pragma once

#include "rule.h"

namespace FUSEDOPT_NAMESPACE {

struct Lion : RuleDefaults {
  static constexpr const char* name = "lion";
  struct Hypers {
    double lr, beta1, beta2, weight_decay;
  };
  static constexpr const char* hyper_names[] = {"lr", "betas.0", "betas.1", "weight_decay"};
  static constexpr const char* state_names[] = {"exp_avg"};
  static constexpr int counters = 0;

  template <class T>
  struct Scalars {
    T lr, decay, weight1, weight2;
  };

  FUSEDOPT_HD static Scalars<double> prepare(const Hypers& h, double*, bool) {
    return {h.lr, 1 - h.lr * h.weight_decay, 1 - h.beta1, 1 - h.beta2};
  }

  template <int variant, class T>
  FUSEDOPT_HD static void update(T& p, T g, T (&s)[1], const Scalars<T>& c) {
    T& m = s[0];
    p = fma(-c.lr, sign(lerp(m, g, c.weight1)), p * c.decay);
    m = lerp(m, g, c.weight2);
  }
};

}  // namespace FUSEDOPT_NAMESPACE
