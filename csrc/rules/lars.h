// LARS, layer-wise adaptive rate scaling (You, Gitman & Ginsburg 2017), as timm's lars.py.
#pragma once

#include "rule.h"

namespace FUSEDOPT_NAMESPACE {

struct LARS : RuleDefaults {
  static constexpr const char* name = "lars";
  struct Hypers {
    double lr, momentum, dampening, weight_decay, nesterov, trust_coeff, eps, trust_clip, always_adapt;
  };
  static constexpr const char* hyper_names[] = {"lr",          "momentum", "dampening",  "weight_decay", "nesterov",
                                                "trust_coeff", "eps",      "trust_clip", "always_adapt"};
  static constexpr const char* state_names[] = {"momentum_buffer"};
  static constexpr Kind state_kinds[] = {Kind::average};
  static constexpr bool like_grad(int) { return true; }
  static constexpr int counters = 0;

  enum { plain, with_momentum, variants };
  FUSEDOPT_HD static int variant(const Hypers& h) { return h.momentum != 0 ? with_momentum : plain; }
  FUSEDOPT_HD static constexpr bool keeps(int variant, int) { return variant == with_momentum; }

  template <class T>
  struct Scalars {
    T lr, momentum, nesterov_momentum, gradient_weight, weight_decay, trust, trust_coeff, eps, adapts, clips;
  };

  FUSEDOPT_HD static Scalars<double> prepare(const Hypers& h, double*, bool first) {
    Scalars<double> c;
    c.lr = h.lr;
    c.momentum = first ? 0 : h.momentum;
    c.gradient_weight = first ? 1 : 1 - h.dampening;
    c.nesterov_momentum = h.nesterov != 0 ? h.momentum : 0;
    c.weight_decay = h.weight_decay;
    c.trust = 1;
    c.trust_coeff = h.trust_coeff;
    c.eps = h.eps;
    c.adapts = h.weight_decay != 0 || h.always_adapt != 0 ? 1 : 0;
    c.clips = h.trust_clip;
    return c;
  }

  static constexpr int sums = 2;
  template <int variant, class T>
  FUSEDOPT_HD static void measure(T p, T g, T (&)[1], const Scalars<T>&, T (&terms)[2]) {
    terms[0] = p * p;
    terms[1] = g * g;
  }
  template <class T>
  FUSEDOPT_HD static void conclude(const double* sums, Scalars<T>& c) {
    if (c.adapts == T(0)) return;
    const double param_norm = sqrt(sums[0]), grad_norm = sqrt(sums[1]);
    double trust = param_norm > 0 && grad_norm > 0
                       ? c.trust_coeff * param_norm / (grad_norm + param_norm * c.weight_decay + c.eps)
                       : 1;
    if (c.clips != T(0)) trust = trust / c.lr < 1 ? trust / c.lr : 1;
    c.trust = static_cast<T>(trust);
  }

  template <int variant, class T>
  FUSEDOPT_HD static void update(T& p, T g, T (&s)[1], const Scalars<T>& c) {
    if (c.weight_decay != T(0)) g = fma(c.weight_decay, p, g);
    g = g * c.trust;
    if constexpr (variant == with_momentum) {
      T& buffer = s[0];
      buffer = fma(c.momentum, buffer, c.gradient_weight * g);
      g = c.nesterov_momentum != T(0) ? fma(c.nesterov_momentum, buffer, g) : buffer;
    }
    p = fma(-c.lr, g, p);
  }
};

}  // namespace FUSEDOPT_NAMESPACE
