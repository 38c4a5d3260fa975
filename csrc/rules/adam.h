// Adam (Kingma & Ba 2015), AMSGrad (Reddi et al. 2018) and AdamW (Loshchilov & Hutter 2019), as torch.optim.Adam and
// AdamW; and both cautious (see caution() in rule.h).
#pragma once

#include "rule.h"

namespace FUSEDOPT_NAMESPACE {

struct Adam : RuleDefaults {
  static constexpr const char* name = "adam";
  struct Hypers {
    double lr, beta1, beta2, eps, weight_decay, amsgrad, decoupled, bias_correction, caution;
  };
  static constexpr const char* hyper_names[] = {
      "lr",     "betas.0", "betas.1", "eps", "weight_decay", "amsgrad", "decoupled_weight_decay", "bias_correction",
      "caution"};
  static constexpr const char* state_names[] = {"exp_avg", "exp_avg_sq", "max_exp_avg_sq"};
  static constexpr Kind state_kinds[] = {Kind::average, Kind::magnitude, Kind::magnitude};

  enum { plain, with_amsgrad, cautious, cautious_with_amsgrad, variants };
  FUSEDOPT_HD static int variant(const Hypers& h) {
    return (h.amsgrad != 0 ? with_amsgrad : plain) + (h.caution != 0 ? cautious : plain);
  }
  FUSEDOPT_HD static constexpr bool keeps(int variant, int state) { return state < 2 || variant % 2 == with_amsgrad; }
  static constexpr bool guarded = true;
  FUSEDOPT_HD static constexpr bool measures(int variant) { return variant >= cautious; }

  template <class T>
  struct Scalars {
    T step_size, decay, l2, weight1, beta2, weight2, inverse_sqrt_correction2, eps;
  };

  FUSEDOPT_HD static Scalars<double> prepare(const Hypers& h, double* counters, bool) {
    const double step = counters[0] += 1;
    Scalars<double> c;
    const bool corrects = h.bias_correction != 0;
    c.step_size = corrects ? h.lr / (1 - pown(h.beta1, step)) : h.lr;
    c.decay = h.decoupled != 0 ? 1 - decay_of(h.lr, h.weight_decay) : 1;
    c.l2 = h.decoupled != 0 ? 0 : h.weight_decay;
    c.weight1 = 1 - h.beta1;
    c.beta2 = h.beta2;
    c.weight2 = 1 - h.beta2;
    c.inverse_sqrt_correction2 = corrects ? 1 / sqrt(1 - pown(h.beta2, step)) : 1;
    c.eps = h.eps;
    return c;
  }

  template <class T>
  FUSEDOPT_HD static void average(T& p, T& g, T& m, const Scalars<T>& c) {
    p = p * c.decay;
    if (c.l2 != T(0)) g = fma(c.l2, p, g);
    m = lerp(m, g, c.weight1);
  }

  // Elements that move, and all.
  static constexpr int sums = 2;
  template <int variant, class T>
  FUSEDOPT_HD static void measure(T p, T g, T (&s)[3], const Scalars<T>& c, T (&terms)[2]) {
    average(p, g, s[0], c);
    terms[0] = caution(s[0], g);
    terms[1] = T(1);
  }
  template <class T>
  FUSEDOPT_HD static void conclude(const double* sums, Scalars<T>& c) {
    c.step_size = static_cast<T>(c.step_size * growth_by_caution(sums[0], sums[1]));
  }

  template <int variant, class T>
  FUSEDOPT_HD static void update(T& p, T g, T (&s)[3], const Scalars<T>& c) {
    T &m = s[0], &v = s[1], &v_max = s[2];
    average(p, g, m, c);
    v = fma(c.beta2, v, c.weight2 * g * g);
    if constexpr (keeps(variant, 2)) v_max = maximum(v_max, v);
    const T v_hat_root = sqrt(keeps(variant, 2) ? v_max : v) * c.inverse_sqrt_correction2;
    const T step = measures(variant) ? c.step_size * caution(m, g) : c.step_size;
    p = p - step * m / (v_hat_root + c.eps);
  }
};

}  // namespace FUSEDOPT_NAMESPACE
