// Rectified Adam (Liu et al. 2020), as torch.optim.RAdam: eps is added to the root before its bias is corrected.
#pragma once

#include "rule.h"

namespace FUSEDOPT_NAMESPACE {

struct RAdam : RuleDefaults {
  static constexpr const char* name = "radam";
  struct Hypers {
    double lr, beta1, beta2, eps, weight_decay, decoupled;
  };
  static constexpr const char* hyper_names[] = {"lr",  "betas.0",      "betas.1",
                                                "eps", "weight_decay", "decoupled_weight_decay"};
  static constexpr const char* state_names[] = {"exp_avg", "exp_avg_sq"};
  static constexpr Kind state_kinds[] = {Kind::average, Kind::magnitude};

  static constexpr bool guarded = true;

  template <class T>
  struct Scalars {
    T step_size, rectified, decay, l2, weight1, beta2, weight2, eps;
  };

  FUSEDOPT_HD static Scalars<double> prepare(const Hypers& h, double* counters, bool) {
    const double step = counters[0] += 1;
    const double beta2_power = pown(h.beta2, step), correction2 = 1 - beta2_power;
    // The length of the moving average: while it is short, its variance is unknown and the step is plain momentum.
    const double rho_max = 2 / (1 - h.beta2) - 1;
    const double rho = rho_max - 2 * step * beta2_power / correction2;
    Scalars<double> c;
    c.step_size = h.lr / (1 - pown(h.beta1, step));
    c.rectified = rho > 5 ? 1 : 0;
    if (rho > 5)
      c.step_size =
          c.step_size * sqrt(correction2 * ((rho - 4) * (rho - 2) * rho_max) / ((rho_max - 4) * (rho_max - 2) * rho));
    c.decay = h.decoupled != 0 ? 1 - decay_of(h.lr, h.weight_decay) : 1;
    c.l2 = h.decoupled != 0 ? 0 : h.weight_decay;
    c.weight1 = 1 - h.beta1;
    c.beta2 = h.beta2;
    c.weight2 = 1 - h.beta2;
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
    p = p - c.step_size * m / (c.rectified != T(0) ? sqrt(v) + c.eps : T(1));
  }
};

}  // namespace FUSEDOPT_NAMESPACE
