// LaProp, whose momentum is of gradients that are normalised already (Ziyin et al. 2020), as the authors' laprop.py and
// timm's.
#pragma once

#include "rule.h"

namespace FUSEDOPT_NAMESPACE {

struct LaProp : RuleDefaults {
  static constexpr const char* name = "laprop";
  struct Hypers {
    double lr, beta1, beta2, eps, weight_decay;
  };
  static constexpr const char* hyper_names[] = {"lr", "betas.0", "betas.1", "eps", "weight_decay"};
  static constexpr const char* state_names[] = {"exp_avg", "exp_avg_sq"};
  static constexpr Kind state_kinds[] = {Kind::average, Kind::magnitude};
  // The learning rate and 1, averaged as the momentum and the squares are: what these are short of at first.
  static constexpr int counters = 3;
  static constexpr const char* counter_names[] = {"step", "exp_avg_lr_1", "exp_avg_lr_2"};

  static constexpr bool guarded = true;

  template <class T>
  struct Scalars {
    T step_size, decay, beta1, weight1, weight2, eps;
  };

  FUSEDOPT_HD static Scalars<double> prepare(const Hypers& h, double* counters, bool) {
    counters[0] += 1;
    counters[1] = counters[1] * h.beta1 + (1 - h.beta1) * h.lr;
    counters[2] = counters[2] * h.beta2 + (1 - h.beta2);
    Scalars<double> c;
    c.step_size = counters[1] != 0 ? h.lr / counters[1] : 0;
    c.decay = 1 - decay_of(h.lr, h.weight_decay);
    c.beta1 = h.beta1;
    // The root's correction is theirs: two registers fewer, which nvcc is short of.
    const double correction2 = sqrt(counters[2]);
    c.weight1 = (1 - h.beta1) * h.lr * correction2;
    c.weight2 = 1 - h.beta2;
    c.eps = h.eps * correction2;
    return c;
  }

  template <int variant, class T>
  FUSEDOPT_HD static void update(T& p, T g, T (&s)[2], const Scalars<T>& c) {
    T &m = s[0], &v = s[1];
    v = fma(T(1) - c.weight2, v, c.weight2 * g * g);
    m = fma(c.beta1, m, c.weight1 * (g / (sqrt(v) + c.eps)));
    p = fma(-c.step_size, m, p) * c.decay;
  }
};

}  // namespace FUSEDOPT_NAMESPACE
