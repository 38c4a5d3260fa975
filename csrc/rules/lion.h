// Lion, evolved sign momentum (Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms"), as google/automl's
// lion_pytorch.py; cautious as timm's (see caution() in rule.h).
#pragma once

#include "rule.h"

namespace FUSEDOPT_NAMESPACE {

struct Lion : RuleDefaults {
  static constexpr const char* name = "lion";
  struct Hypers {
    double lr, beta1, beta2, weight_decay, caution;
  };
  static constexpr const char* hyper_names[] = {"lr", "betas.0", "betas.1", "weight_decay", "caution"};
  static constexpr const char* state_names[] = {"exp_avg"};
  static constexpr Kind state_kinds[] = {Kind::average};
  static constexpr int counters = 0;

  enum { plain, cautious, variants };
  FUSEDOPT_HD static int variant(const Hypers& h) { return h.caution != 0 ? cautious : plain; }
  FUSEDOPT_HD static constexpr bool measures(int variant) { return variant == cautious; }

  template <class T>
  struct Scalars {
    T lr, decay, beta1, weight1, beta2, weight2;
  };

  FUSEDOPT_HD static Scalars<double> prepare(const Hypers& h, double*, bool) {
    return {h.lr, 1 - decay_of(h.lr, h.weight_decay), h.beta1, 1 - h.beta1, h.beta2, 1 - h.beta2};
  }

  template <class T>
  FUSEDOPT_HD static T direction(T g, T m, const Scalars<T>& c) {
    return sign(fma(c.beta1, m, c.weight1 * g));
  }

  // Elements that move, and all.
  static constexpr int sums = 2;
  template <int variant, class T>
  FUSEDOPT_HD static void measure(T, T g, T (&s)[1], const Scalars<T>& c, T (&terms)[2]) {
    terms[0] = caution(direction(g, s[0], c), g);
    terms[1] = T(1);
  }
  template <class T>
  FUSEDOPT_HD static void conclude(const double* sums, Scalars<T>& c) {
    c.lr = static_cast<T>(c.lr * growth_by_caution(sums[0], sums[1]));
  }

  template <int variant, class T>
  FUSEDOPT_HD static void update(T& p, T g, T (&s)[1], const Scalars<T>& c) {
    T& m = s[0];
    T along = direction(g, m, c);
    if constexpr (measures(variant)) along = along * caution(along, g);
    p = fma(-c.lr, along, p * c.decay);
    m = fma(c.beta2, m, c.weight2 * g);
  }
};

}  // namespace FUSEDOPT_NAMESPACE
