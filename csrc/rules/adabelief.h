// AdaBelief, which divides by how far gradients are from their average (Zhuang et al. 2020), as the authors'
// adabelief-pytorch and timm's adabelief.py: eps is added to the variance in each step, and stays in it.
#pragma once

#include "rule.h"

namespace FUSEDOPT_NAMESPACE {

struct AdaBelief : RuleDefaults {
  static constexpr const char* name = "adabelief";
  struct Hypers {
    double lr, beta1, beta2, eps, weight_decay, amsgrad, decoupled, fixed, rectify, to_sgd;
  };
  static constexpr const char* hyper_names[] = {"lr",           "betas.0",           "betas.1",         "eps",
                                                "weight_decay", "amsgrad",           "decoupled_decay", "fixed_decay",
                                                "rectify",      "degenerated_to_sgd"};
  static constexpr const char* state_names[] = {"exp_avg", "exp_avg_var", "max_exp_avg_var"};
  // Deviations of a steady gradient are far below the squares of all others, which a shared scale would lose.
  static constexpr Kind state_kinds[] = {Kind::average, Kind::magnitude, Kind::magnitude};

  enum { plain, with_amsgrad, variants };
  FUSEDOPT_HD static int variant(const Hypers& h) { return h.amsgrad != 0 ? with_amsgrad : plain; }
  FUSEDOPT_HD static constexpr bool keeps(int variant, int state) { return state < 2 || variant == with_amsgrad; }

  template <class T>
  struct Scalars {
    T step_size, decay, l2, weight1, beta2, weight2, root_size, eps, adapts, of_largest;
  };

  FUSEDOPT_HD static Scalars<double> prepare(const Hypers& h, double* counters, bool) {
    const double step = counters[0] += 1;
    const double beta2_power = pown(h.beta2, step), correction2 = 1 - beta2_power;
    const double rho_max = 2 / (1 - h.beta2) - 1, rho = rho_max - 2 * step * beta2_power / correction2;
    const bool rectifies = h.rectify != 0;
    Scalars<double> c;
    c.step_size = h.lr / (1 - pown(h.beta1, step));
    // -1: nothing moves.
    c.adapts = !rectifies || rho >= 5 ? 1 : h.to_sgd != 0 ? 0 : -1;
    if (rectifies && rho >= 5)
      c.step_size =
          c.step_size * sqrt(correction2 * ((rho - 4) * (rho - 2) * rho_max) / ((rho_max - 4) * (rho_max - 2) * rho));
    c.decay = h.decoupled == 0 ? 1 : 1 - (h.fixed != 0 ? h.weight_decay : decay_of(h.lr, h.weight_decay));
    c.l2 = h.decoupled != 0 ? 0 : h.weight_decay;
    c.weight1 = 1 - h.beta1;
    c.beta2 = h.beta2;
    c.weight2 = 1 - h.beta2;
    c.root_size = rectifies ? 1 : 1 / sqrt(correction2);
    c.eps = h.eps;
    // The rectified step takes the variance itself.
    c.of_largest = rectifies ? 0 : 1;
    return c;
  }

  template <int variant, class T>
  FUSEDOPT_HD static void update(T& p, T g, T (&s)[3], const Scalars<T>& c) {
    T &m = s[0], &v = s[1], &v_max = s[2];
    p = p * c.decay;
    if (c.l2 != T(0)) g = fma(c.l2, p, g);
    m = lerp(m, g, c.weight1);
    const T surprise = g - m;
    v = fma(c.beta2, v, c.weight2 * surprise * surprise) + c.eps;
    if constexpr (variant == with_amsgrad) v_max = maximum(v_max, v);
    const T variance = variant == with_amsgrad && c.of_largest != T(0) ? v_max : v;
    const T root = fma(sqrt(variance), c.root_size, c.eps);
    p = p - c.step_size * (c.adapts < T(0) ? T(0) : m) / (c.adapts > T(0) ? root : T(1));
  }
};

}  // namespace FUSEDOPT_NAMESPACE
