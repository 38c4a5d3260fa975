// Adam with Nesterov momentum (Dozat 2016) and its momentum schedule, as torch.optim.NAdam.
#pragma once

#include "rule.h"

namespace FUSEDOPT_NAMESPACE {

struct NAdam : RuleDefaults {
  static constexpr const char* name = "nadam";
  struct Hypers {
    double lr, beta1, beta2, eps, weight_decay, momentum_decay, decoupled;
  };
  static constexpr const char* hyper_names[] = {
      "lr", "betas.0", "betas.1", "eps", "weight_decay", "momentum_decay", "decoupled_weight_decay"};
  static constexpr const char* state_names[] = {"exp_avg", "exp_avg_sq"};
  static constexpr Kind state_kinds[] = {Kind::average, Kind::magnitude};
  static constexpr int counters = 2;
  static constexpr const char* counter_names[] = {"step", "mu_product"};
  FUSEDOPT_HD static double initial_counter(const Hypers&, int counter) { return counter == 1 ? 1 : 0; }

  static constexpr bool guarded = true;
  static constexpr bool crowded = true;

  template <class T>
  struct Scalars {
    T grad_size, momentum_size, decay, l2, weight1, beta2, weight2, inverse_sqrt_correction2, eps;
  };

  FUSEDOPT_HD static Scalars<double> prepare(const Hypers& h, double* counters, bool) {
    const double step = counters[0] += 1;
    const double mu = h.beta1 * (1 - 0.5 * power(0.96, step * h.momentum_decay));
    const double mu_next = h.beta1 * (1 - 0.5 * power(0.96, (step + 1) * h.momentum_decay));
    const double mu_product = counters[1] *= mu;
    Scalars<double> c;
    c.grad_size = h.lr * (1 - mu) / (1 - mu_product);
    c.momentum_size = h.lr * mu_next / (1 - mu_product * mu_next);
    c.decay = h.decoupled != 0 ? 1 - decay_of(h.lr, h.weight_decay) : 1;
    c.l2 = h.decoupled != 0 ? 0 : h.weight_decay;
    c.weight1 = 1 - h.beta1;
    c.beta2 = h.beta2;
    c.weight2 = 1 - h.beta2;
    c.inverse_sqrt_correction2 = 1 / sqrt(1 - pown(h.beta2, step));
    c.eps = h.eps;
    return c;
  }

  template <int variant, class T>
  FUSEDOPT_HD static void update(T& p, T g, T (&s)[2], const Scalars<T>& c) {
    T &m = s[0], &v = s[1];
    p = p * c.decay;
    if (c.l2 != T(0)) g = fma(c.l2, p, g);
    m = lerp(m, g, c.weight1);
    v = fma(c.beta2, v, c.weight2 * g * g);
    const T denominator = fma(sqrt(v), c.inverse_sqrt_correction2, c.eps);
    // Two quotients as torch has them: of a sum, an infinity and its opposite would make NaN where these do not.
    p = p - c.grad_size * g / denominator;
    p = p - c.momentum_size * m / denominator;
  }
};

}  // namespace FUSEDOPT_NAMESPACE
