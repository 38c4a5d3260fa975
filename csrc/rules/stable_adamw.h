// StableAdamW, AdamW with Adafactor's clipping of updates (Wortsman et al. 2023), as optimi's stableadamw.py, but for
// its averages, which are kept as Adam keeps them.
#pragma once

#include "rule.h"

namespace FUSEDOPT_NAMESPACE {

struct StableAdamW : RuleDefaults {
  static constexpr const char* name = "stable_adamw";
  struct Hypers {
    double lr, beta1, beta2, eps, weight_decay;
  };
  static constexpr const char* hyper_names[] = {"lr", "betas.0", "betas.1", "eps", "weight_decay"};
  static constexpr const char* state_names[] = {"exp_avg", "exp_avg_sq"};
  static constexpr Kind state_kinds[] = {Kind::average, Kind::magnitude};

  static constexpr bool guarded = true;

  template <class T>
  struct Scalars {
    T lr, weight_decay, step_size, decay, inverse_correction1, weight1, beta2, weight2, inverse_correction2,
        inverse_sqrt_correction2, eps, least;
  };

  FUSEDOPT_HD static Scalars<double> prepare(const Hypers& h, double* counters, bool) {
    const double step = counters[0] += 1, correction2 = 1 - pown(h.beta2, step);
    Scalars<double> c;
    c.lr = h.lr;
    c.weight_decay = h.weight_decay;
    c.step_size = 0;
    c.decay = 1;
    c.inverse_correction1 = 1 / (1 - pown(h.beta1, step));
    c.weight1 = 1 - h.beta1;
    c.beta2 = h.beta2;
    c.weight2 = 1 - h.beta2;
    c.inverse_correction2 = 1 / correction2;
    c.inverse_sqrt_correction2 = 1 / sqrt(correction2);
    c.eps = h.eps;
    c.least = h.eps * h.eps;
    return c;
  }

  // Squares of g / sqrt(v), and how many there are.
  static constexpr int sums = 2;
  template <int variant, class T>
  FUSEDOPT_HD static void measure(T, T g, T (&s)[2], const Scalars<T>& c, T (&terms)[2]) {
    const T v_hat = fma(c.beta2, s[1], c.weight2 * g * g) * c.inverse_correction2;
    terms[0] = g * g / maximum(v_hat, c.least);
    terms[1] = T(1);
  }
  template <class T>
  FUSEDOPT_HD static void conclude(const double* sums, Scalars<T>& c) {
    const double rms = sqrt(sums[0] / sums[1]), lr = rms > 1 ? c.lr / rms : c.lr;
    c.step_size = static_cast<T>(lr * c.inverse_correction1);
    c.decay = static_cast<T>(1 - decay_of(lr, c.weight_decay));
  }

  template <int variant, class T>
  FUSEDOPT_HD static void update(T& p, T g, T (&s)[2], const Scalars<T>& c) {
    T &m = s[0], &v = s[1];
    m = lerp(m, g, c.weight1);
    v = fma(c.beta2, v, c.weight2 * g * g);
    const T root = fma(sqrt(v), c.inverse_sqrt_correction2, c.eps);
    p = p * c.decay - c.step_size * m / root;
  }
};

}  // namespace FUSEDOPT_NAMESPACE
