// Sophia-G, an average of gradients over one of the Hessian's diagonal, element by element at most 1 (Liu et al. 2023),
// as the authors' sophia.py. What the average of the Hessian is made of, the caller has in the gradients' place for a
// step with `estimates`, which changes nothing else.
#pragma once

#include "rule.h"

namespace FUSEDOPT_NAMESPACE {

struct SophiaG : RuleDefaults {
  static constexpr const char* name = "sophia";
  struct Hypers {
    double lr, beta1, beta2, rho, bs, weight_decay, estimates;
  };
  static constexpr const char* hyper_names[] = {"lr", "betas.0", "betas.1", "rho", "bs", "weight_decay", "estimates"};
  static constexpr const char* state_names[] = {"exp_avg", "hessian"};
  static constexpr Kind state_kinds[] = {Kind::average, Kind::magnitude};

  template <class T>
  struct Scalars {
    T lr, decay, beta1, weight1, beta2, weight2, scale, estimates;
  };

  FUSEDOPT_HD static Scalars<double> prepare(const Hypers& h, double* counters, bool) {
    if (h.estimates == 0) counters[0] += 1;
    Scalars<double> c;
    c.lr = h.lr;
    c.decay = 1 - decay_of(h.lr, h.weight_decay);
    c.beta1 = h.beta1;
    c.weight1 = 1 - h.beta1;
    c.beta2 = h.beta2;
    c.weight2 = 1 - h.beta2;
    c.scale = h.rho * h.bs;
    c.estimates = h.estimates;
    return c;
  }

  template <int variant, class T>
  FUSEDOPT_HD static void update(T& p, T g, T (&s)[2], const Scalars<T>& c) {
    T &m = s[0], &diagonal = s[1];
    if (c.estimates != T(0)) {
      diagonal = fma(c.beta2, diagonal, c.weight2 * g * g);
    } else {
      m = fma(c.beta1, m, c.weight1 * g);
      const T along = clamp(m / fma(c.scale, diagonal, T(1e-15)), T(-1), T(1));
      p = fma(-c.lr, along, p * c.decay);
    }
  }
};

}  // namespace FUSEDOPT_NAMESPACE
