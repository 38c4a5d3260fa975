// Averaged stochastic gradient descent (Polyak & Juditsky 1992), as torch.optim.ASGD: the rate and the weight of the
// average that a step uses are those the step before has left in the state.
#pragma once

#include "rule.h"

namespace FUSEDOPT_NAMESPACE {

struct ASGD : RuleDefaults {
  static constexpr const char* name = "asgd";
  struct Hypers {
    double lr, lambd, alpha, t0, weight_decay;
  };
  static constexpr const char* hyper_names[] = {"lr", "lambd", "alpha", "t0", "weight_decay"};
  static constexpr const char* state_names[] = {"ax"};
  static constexpr int counters = 3;
  static constexpr const char* counter_names[] = {"step", "eta", "mu"};
  FUSEDOPT_HD static double initial_counter(const Hypers& h, int counter) {
    return counter == 0 ? 0 : counter == 1 ? h.lr : 1;
  }

  template <class T>
  struct Scalars {
    T eta, mu, decay, weight_decay;
  };

  FUSEDOPT_HD static Scalars<double> prepare(const Hypers& h, double* counters, bool) {
    const Scalars<double> c = {counters[1], counters[2], 1 - h.lambd * counters[1], h.weight_decay};
    const double step = counters[0] += 1;
    counters[1] = h.lr / power(1 + h.lambd * h.lr * step, h.alpha);
    counters[2] = step - h.t0 > 1 ? 1 / (step - h.t0) : 1;
    return c;
  }

  template <int variant, class T>
  FUSEDOPT_HD static void update(T& p, T g, T (&s)[1], const Scalars<T>& c) {
    T& average = s[0];
    if (c.weight_decay != T(0)) g = fma(c.weight_decay, p, g);
    p = fma(-c.eta, g, p * c.decay);
    const T nearer = lerp(average, p, c.mu);
    average = c.mu == T(1) ? p : nearer;
  }
};

}  // namespace FUSEDOPT_NAMESPACE
