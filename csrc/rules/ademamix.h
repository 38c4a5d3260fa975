// AdEMAMix, Adam with a second, much slower average of the gradients (Pagliardini et al. 2024), as bitsandbytes'
// AdEMAMix.
#pragma once

#include "rule.h"

namespace FUSEDOPT_NAMESPACE {

struct AdEMAMix : RuleDefaults {
  static constexpr const char* name = "ademamix";
  struct Hypers {
    double lr, beta1, beta2, beta3, alpha, t_alpha, t_beta3, eps, weight_decay;
  };
  static constexpr const char* hyper_names[] = {"lr",      "betas.0", "betas.1", "betas.2",     "alpha",
                                                "t_alpha", "t_beta3", "eps",     "weight_decay"};
  static constexpr const char* state_names[] = {"exp_avg", "exp_avg_sq", "exp_avg_slow"};
  static constexpr Kind state_kinds[] = {Kind::average, Kind::magnitude, Kind::average};

  static constexpr bool guarded = true;

  template <class T>
  struct Scalars {
    T step_size, slow_step_size, decay, weight1, beta2, weight2, weight3, inverse_sqrt_correction2, eps;
  };

  // On the way from beta1 to beta3 so that the average's length grows by as much in each step:
  // exp(log b1 log b3 / ((1 - s) log b3 + s log b1)), divided by log b1, which is infinite for beta1 = 0.
  FUSEDOPT_HD static double warmed_beta3(const Hypers& h, double step) {
    if (!(step < h.t_beta3)) return h.beta3;
    const bool normal = h.beta1 > 1e-300 && h.beta3 > 1e-300;
    const double ratio = normal ? logarithm(h.beta3).high / logarithm(h.beta1).high : 0;
    const double s = step / h.t_beta3, beta3 = power(h.beta3, 1 / ((1 - s) * ratio + s));
    return beta3 < h.beta3 ? beta3 : h.beta3;
  }

  FUSEDOPT_HD static Scalars<double> prepare(const Hypers& h, double* counters, bool) {
    const double step = counters[0] += 1;
    const double alpha = step < h.t_alpha ? step / h.t_alpha * h.alpha : h.alpha;
    Scalars<double> c;
    c.step_size = h.lr / (1 - pown(h.beta1, step));
    c.slow_step_size = h.lr * alpha;
    c.decay = 1 - decay_of(h.lr, h.weight_decay);
    c.weight1 = 1 - h.beta1;
    c.beta2 = h.beta2;
    c.weight2 = 1 - h.beta2;
    c.weight3 = 1 - warmed_beta3(h, step);
    c.inverse_sqrt_correction2 = 1 / sqrt(1 - pown(h.beta2, step));
    c.eps = h.eps;
    return c;
  }

  template <int variant, class T>
  FUSEDOPT_HD static void update(T& p, T g, T (&s)[3], const Scalars<T>& c) {
    T &fast = s[0], &v = s[1], &slow = s[2];
    fast = lerp(fast, g, c.weight1);
    slow = lerp(slow, g, c.weight3);
    v = fma(c.beta2, v, c.weight2 * g * g);
    const T v_hat_root = sqrt(v) * c.inverse_sqrt_correction2;
    p = p * c.decay - fma(c.step_size, fast, c.slow_step_size * slow) / (v_hat_root + c.eps);
  }
};

}  // namespace FUSEDOPT_NAMESPACE
