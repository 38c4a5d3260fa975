// Adan, adaptive Nesterov momentum (Xie et al. 2022), as sail-sg/Adan's adan.py; cautious as timm's
// (see caution() in rule.h), which leaves the differences' part of a step as it is.
#pragma once

#include "rule.h"

namespace FUSEDOPT_NAMESPACE {

struct Adan : RuleDefaults {
  static constexpr const char* name = "adan";
  struct Hypers {
    double lr, beta1, beta2, beta3, eps, weight_decay, no_prox, caution;
  };
  static constexpr const char* hyper_names[] = {"lr",  "betas.0",      "betas.1", "betas.2",
                                                "eps", "weight_decay", "no_prox", "caution"};
  static constexpr const char* state_names[] = {"exp_avg", "exp_avg_sq", "exp_avg_diff", "neg_pre_grad"};
  static constexpr Kind state_kinds[] = {Kind::average, Kind::magnitude, Kind::average, Kind::average};

  enum { plain, cautious, variants };
  FUSEDOPT_HD static int variant(const Hypers& h) { return h.caution != 0 ? cautious : plain; }
  FUSEDOPT_HD static constexpr bool measures(int variant) { return variant == cautious; }

  static constexpr bool guarded = true;

  template <class T>
  struct Scalars {
    T step_size, step_size_diff, decay, divisor, beta1, weight1, beta2, weight2, beta3, weight3,
        inverse_sqrt_correction3, eps, has_previous;
  };

  FUSEDOPT_HD static Scalars<double> prepare(const Hypers& h, double* counters, bool first) {
    const double step = counters[0] += 1;
    const double decay = decay_of(h.lr, h.weight_decay);
    Scalars<double> c;
    c.step_size = h.lr / (1 - pown(h.beta1, step));
    c.step_size_diff = h.lr * h.beta2 / (1 - pown(h.beta2, step));
    c.decay = h.no_prox != 0 ? 1 - decay : 1;
    c.divisor = h.no_prox != 0 ? 1 : 1 + decay;
    c.beta1 = h.beta1;
    c.weight1 = 1 - h.beta1;
    c.beta2 = h.beta2;
    c.weight2 = 1 - h.beta2;
    c.beta3 = h.beta3;
    c.weight3 = 1 - h.beta3;
    c.inverse_sqrt_correction3 = 1 / sqrt(1 - pown(h.beta3, step));
    c.eps = h.eps;
    c.has_previous = first ? 0 : 1;
    return c;
  }

  template <class T>
  FUSEDOPT_HD static T average(T m, T g, const Scalars<T>& c) {
    return fma(c.beta1, m, c.weight1 * g);
  }

  // Elements that move, and all.
  static constexpr int sums = 2;
  template <int variant, class T>
  FUSEDOPT_HD static void measure(T, T g, T (&s)[4], const Scalars<T>& c, T (&terms)[2]) {
    terms[0] = caution(average(s[0], g, c), g);
    terms[1] = T(1);
  }
  template <class T>
  FUSEDOPT_HD static void conclude(const double* sums, Scalars<T>& c) {
    c.step_size = static_cast<T>(c.step_size * growth_by_caution(sums[0], sums[1]));
  }

  template <int variant, class T>
  FUSEDOPT_HD static void update(T& p, T g, T (&s)[4], const Scalars<T>& c) {
    T &m = s[0], &n = s[1], &v = s[2], &neg_pre_grad = s[3];
    T difference = g + neg_pre_grad;
    if (c.has_previous == T(0)) difference = T(0);
    m = average(m, g, c);
    v = fma(c.beta2, v, c.weight2 * difference);
    const T ahead = fma(c.beta2, difference, g);
    n = fma(c.beta3, n, c.weight3 * ahead * ahead);
    const T denominator = fma(sqrt(n), c.inverse_sqrt_correction3, c.eps);
    // The rounding of an inverse would add to the division's in the same direction at every step.
    const T step = measures(variant) ? c.step_size * caution(m, g) : c.step_size;
    p = (p * c.decay - fma(step, m, c.step_size_diff * v) / denominator) / c.divisor;
    neg_pre_grad = -g;
  }
};

}  // namespace FUSEDOPT_NAMESPACE
