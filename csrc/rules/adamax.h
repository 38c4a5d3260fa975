// Adamax, Adam with the infinity norm (Kingma & Ba 2015), as torch.optim.Adamax.
#pragma once

#include "rule.h"

namespace FUSEDOPT_NAMESPACE {

struct Adamax : RuleDefaults {
  static constexpr const char* name = "adamax";
  struct Hypers {
    double lr, beta1, beta2, eps, weight_decay;
  };
  static constexpr const char* hyper_names[] = {"lr", "betas.0", "betas.1", "eps", "weight_decay"};
  static constexpr const char* state_names[] = {"exp_avg", "exp_inf"};
  static constexpr Kind state_kinds[] = {Kind::average, Kind::magnitude};

  static constexpr bool guarded = true;

  template <class T>
  struct Scalars {
    T step_size, weight1, beta2, eps, weight_decay;
  };

  FUSEDOPT_HD static Scalars<double> prepare(const Hypers& h, double* counters, bool) {
    const double step = counters[0] += 1;
    return {h.lr / (1 - pown(h.beta1, step)), 1 - h.beta1, h.beta2, h.eps, h.weight_decay};
  }

  template <int variant, class T>
  FUSEDOPT_HD static void update(T& p, T g, T (&s)[2], const Scalars<T>& c) {
    T &m = s[0], &u = s[1];
    if (c.weight_decay != T(0)) g = fma(c.weight_decay, p, g);
    m = lerp(m, g, c.weight1);
    u = maximum(c.beta2 * u, absolute(g) + c.eps);
    p = p - c.step_size * m / u;
  }
};

}  // namespace FUSEDOPT_NAMESPACE
