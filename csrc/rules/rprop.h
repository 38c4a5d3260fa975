// Resilient backpropagation (Riedmiller & Braun 1993), as torch.optim.Rprop.
#pragma once

#include "rule.h"

namespace FUSEDOPT_NAMESPACE {

struct Rprop : RuleDefaults {
  static constexpr const char* name = "rprop";
  struct Hypers {
    double lr, eta_minus, eta_plus, smallest, largest;
  };
  static constexpr const char* hyper_names[] = {"lr", "etas.0", "etas.1", "step_sizes.0", "step_sizes.1"};
  static constexpr const char* state_names[] = {"prev", "step_size"};
  FUSEDOPT_HD static double initial_state(const Hypers& h, int state) { return state == 1 ? h.lr : 0; }
  static constexpr bool like_grad(int state) { return state == 1; }

  template <class T>
  struct Scalars {
    T eta_minus, eta_plus, smallest, largest;
  };

  FUSEDOPT_HD static Scalars<double> prepare(const Hypers& h, double* counters, bool) {
    counters[0] += 1;
    return {h.eta_minus, h.eta_plus, h.smallest, h.largest};
  }

  template <int variant, class T>
  FUSEDOPT_HD static void update(T& p, T g, T (&s)[2], const Scalars<T>& c) {
    T &prev = s[0], &step_size = s[1];
    const T agreement = g * prev;
    const T factor = agreement > T(0) ? c.eta_plus : agreement < T(0) ? c.eta_minus : T(1);
    step_size = clamp(step_size * factor, c.smallest, c.largest);
    // After a change of sign the param waits, and the next step takes any sign for agreement.
    g = agreement < T(0) ? T(0) : g;
    p = fma(-sign(g), step_size, p);
    prev = g;
  }
};

}  // namespace FUSEDOPT_NAMESPACE
