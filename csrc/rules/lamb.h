// LAMB, layer-wise adaptive moments (You et al. 2020), as timm's lamb.py, without its clipping of all gradients.
#pragma once

#include "rule.h"

namespace FUSEDOPT_NAMESPACE {

struct LAMB : RuleDefaults {
  static constexpr const char* name = "lamb";
  struct Hypers {
    double lr, beta1, beta2, eps, weight_decay, bias_correction, grad_averaging, trust_clip, always_adapt,
        decoupled_decay, clamp_value;
  };
  static constexpr const char* hyper_names[] = {"lr",           "betas.0",         "betas.1",        "eps",
                                                "weight_decay", "bias_correction", "grad_averaging", "trust_clip",
                                                "always_adapt", "decoupled_decay", "clamp_value"};
  static constexpr const char* state_names[] = {"exp_avg", "exp_avg_sq"};
  static constexpr Kind state_kinds[] = {Kind::average, Kind::magnitude};

  template <class T>
  struct Scalars {
    T lr, inverse_correction1, beta1, weight1, beta2, weight2, inverse_sqrt_correction2, eps, decay, weight_decay,
        adapts, clips, largest;
  };

  FUSEDOPT_HD static Scalars<double> prepare(const Hypers& h, double* counters, bool) {
    const double step = counters[0] += 1;
    Scalars<double> c;
    c.lr = h.lr;
    c.inverse_correction1 = h.bias_correction != 0 ? 1 / (1 - pown(h.beta1, step)) : 1;
    c.beta1 = h.beta1;
    c.weight1 = h.grad_averaging != 0 ? 1 - h.beta1 : 1;
    c.beta2 = h.beta2;
    c.weight2 = 1 - h.beta2;
    c.inverse_sqrt_correction2 = h.bias_correction != 0 ? 1 / sqrt(1 - pown(h.beta2, step)) : 1;
    c.eps = h.eps;
    c.decay = h.decoupled_decay != 0 ? 1 - decay_of(h.lr, h.weight_decay) : 1;
    c.weight_decay = h.decoupled_decay != 0 ? 0 : h.weight_decay;
    c.adapts = h.weight_decay != 0 || h.always_adapt != 0 ? 1 : 0;
    c.clips = h.trust_clip;
    c.largest = h.clamp_value;  // -1 for none
    return c;
  }

  template <class T>
  FUSEDOPT_HD static T direction(T& p, T g, T (&s)[2], const Scalars<T>& c) {
    T &m = s[0], &v = s[1];
    p = p * c.decay;
    m = fma(c.beta1, m, c.weight1 * g);
    v = fma(c.beta2, v, c.weight2 * g * g);
    const T adam = m * c.inverse_correction1 / fma(sqrt(v), c.inverse_sqrt_correction2, c.eps);
    return c.weight_decay != T(0) ? fma(c.weight_decay, p, adam) : adam;
  }

  static constexpr int sums = 2;
  template <int variant, class T>
  FUSEDOPT_HD static void measure(T p, T g, T (&s)[2], const Scalars<T>& c, T (&terms)[2]) {
    const T update = direction(p, g, s, c);
    terms[0] = p * p;
    terms[1] = update * update;
  }
  template <class T>
  FUSEDOPT_HD static void conclude(const double* sums, Scalars<T>& c) {
    double norm = sqrt(sums[0]);
    if (c.largest >= T(0) && norm > c.largest) norm = c.largest;
    double trust = norm > 0 && sums[1] > 0 ? norm / sqrt(sums[1]) : 1;
    if (c.clips != T(0) && trust > 1) trust = 1;
    if (c.adapts != T(0)) c.lr = static_cast<T>(c.lr * trust);
  }

  template <int variant, class T>
  FUSEDOPT_HD static void update(T& p, T g, T (&s)[2], const Scalars<T>& c) {
    const T update = direction(p, g, s, c);
    p = fma(-c.lr, update, p);
  }
};

}  // namespace FUSEDOPT_NAMESPACE
