// Adagrad (Duchi, Hazan & Singer 2011), as torch.optim.Adagrad.
#pragma once

#include "rule.h"

namespace FUSEDOPT_NAMESPACE {

struct Adagrad : RuleDefaults {
  static constexpr const char* name = "adagrad";
  struct Hypers {
    double lr, lr_decay, eps, weight_decay, initial_accumulator_value;
  };
  static constexpr const char* hyper_names[] = {"lr", "lr_decay", "eps", "weight_decay", "initial_accumulator_value"};
  static constexpr const char* state_names[] = {"sum"};
  static constexpr Kind state_kinds[] = {Kind::total};
  FUSEDOPT_HD static double initial_state(const Hypers& h, int) { return h.initial_accumulator_value; }

  static constexpr bool guarded = true;

  template <class T>
  struct Scalars {
    T lr, eps, weight_decay;
  };

  FUSEDOPT_HD static Scalars<double> prepare(const Hypers& h, double* counters, bool) {
    const double step = counters[0] += 1;
    // Decay starts after the first step.
    return {h.lr / (1 + (step - 1) * h.lr_decay), h.eps, h.weight_decay};
  }

  template <int variant, class T>
  FUSEDOPT_HD static void update(T& p, T g, T (&s)[1], const Scalars<T>& c) {
    T& sum = s[0];
    if (c.weight_decay != T(0)) g = fma(c.weight_decay, p, g);
    sum = fma(g, g, sum);
    p = p - c.lr * g / (sqrt(sum) + c.eps);
  }
};

}  // namespace FUSEDOPT_NAMESPACE
