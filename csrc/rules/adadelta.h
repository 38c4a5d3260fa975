// Adadelta (Zeiler 2012), as torch.optim.Adadelta.
#pragma once

#include "rule.h"

namespace FUSEDOPT_NAMESPACE {

struct Adadelta : RuleDefaults {
  static constexpr const char* name = "adadelta";
  struct Hypers {
    double lr, rho, eps, weight_decay;
  };
  static constexpr const char* hyper_names[] = {"lr", "rho", "eps", "weight_decay"};
  static constexpr const char* state_names[] = {"square_avg", "acc_delta"};
  static constexpr Kind state_kinds[] = {Kind::magnitude, Kind::magnitude};

  static constexpr bool guarded = true;

  template <class T>
  struct Scalars {
    T lr, rho, weight, eps, weight_decay;
  };

  FUSEDOPT_HD static Scalars<double> prepare(const Hypers& h, double* counters, bool) {
    counters[0] += 1;
    return {h.lr, h.rho, 1 - h.rho, h.eps, h.weight_decay};
  }

  template <int variant, class T>
  FUSEDOPT_HD static void update(T& p, T g, T (&s)[2], const Scalars<T>& c) {
    T &square_avg = s[0], &acc_delta = s[1];
    if (c.weight_decay != T(0)) g = fma(c.weight_decay, p, g);
    square_avg = fma(c.weight * g, g, c.rho * square_avg);
    const T delta = sqrt(acc_delta + c.eps) / sqrt(square_avg + c.eps) * g;
    acc_delta = fma(c.weight * delta, delta, c.rho * acc_delta);
    p = fma(-c.lr, delta, p);
  }
};

}  // namespace FUSEDOPT_NAMESPACE
