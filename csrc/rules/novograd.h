// NovoGrad, whose second moment is one number for a tensor (Ginsburg et al. 2019), as timm's nvnovograd.py.
#pragma once

#include "rule.h"

namespace FUSEDOPT_NAMESPACE {

struct NovoGrad : RuleDefaults {
  static constexpr const char* name = "novograd";
  struct Hypers {
    double lr, beta1, beta2, eps, weight_decay, grad_averaging, decoupled_decay;
  };
  static constexpr const char* hyper_names[] = {"lr",           "betas.0",        "betas.1",        "eps",
                                                "weight_decay", "grad_averaging", "decoupled_decay"};
  static constexpr const char* state_names[] = {"exp_avg"};
  static constexpr Kind state_kinds[] = {Kind::average};
  static constexpr int counters = 2;
  static constexpr const char* counter_names[] = {"step", "exp_avg_norm_sq"};

  template <class T>
  struct Scalars {
    T lr, beta1, weight1, beta2, eps, decay, weight_decay, size;
  };

  FUSEDOPT_HD static Scalars<double> prepare(const Hypers& h, double* counters, bool) {
    counters[0] += 1;
    Scalars<double> c;
    c.lr = h.lr;
    c.beta1 = h.beta1;
    c.weight1 = h.grad_averaging != 0 ? 1 - h.beta1 : 1;
    c.beta2 = h.beta2;
    c.eps = h.eps;
    c.decay = h.decoupled_decay != 0 ? 1 - decay_of(h.lr, h.weight_decay) : 1;
    c.weight_decay = h.decoupled_decay != 0 ? 0 : h.weight_decay;
    c.size = 1;
    return c;
  }

  static constexpr int sums = 1;
  static constexpr bool remembers = true;
  template <int variant, class T>
  FUSEDOPT_HD static void measure(T, T g, T (&)[1], const Scalars<T>&, T (&terms)[1]) {
    terms[0] = g * g;
  }
  // The average begins with the first square that is not 0.
  template <class T>
  FUSEDOPT_HD static void conclude(const double* sums, double* counters, Scalars<T>& c) {
    double& v = counters[1];
    v = v == 0 ? sums[0] : v + (1 - c.beta2) * (sums[0] - v);
    c.size = static_cast<T>(sqrt(v) + c.eps);
  }

  template <int variant, class T>
  FUSEDOPT_HD static void update(T& p, T g, T (&s)[1], const Scalars<T>& c) {
    T& m = s[0];
    T along = g / c.size;
    if (c.weight_decay != T(0)) along = fma(c.weight_decay, p, along);
    m = fma(c.beta1, m, c.weight1 * along);
    p = fma(-c.lr, m, p * c.decay);
  }
};

}  // namespace FUSEDOPT_NAMESPACE
