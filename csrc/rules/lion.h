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
  static constexpr Kind state_kinds[] = {Kind::average};
  static constexpr int counters = 0;

  template <class T>
  struct Scalars {
    T lr, decay, beta1, weight1, beta2, weight2;
  };

  FUSEDOPT_HD static Scalars<double> prepare(const Hypers& h, double*, bool) {
    return {h.lr, 1 - decay_of(h.lr, h.weight_decay), h.beta1, 1 - h.beta1, h.beta2, 1 - h.beta2};
  }

  template <int variant, class T>
  FUSEDOPT_HD static void update(T& p, T g, T (&s)[1], const Scalars<T>& c) {
    T& m = s[0];
    p = fma(-c.lr, sign(fma(c.beta1, m, c.weight1 * g)), p * c.decay);
    m = fma(c.beta2, m, c.weight2 * g);
  }
};

}  // namespace FUSEDOPT_NAMESPACE
