// Adam on the rows that a sparse gradient holds (Kingma & Ba 2015), as torch.optim.SparseAdam: eps is added to the root
// before its bias is corrected.
#pragma once

#include "rule.h"

namespace FUSEDOPT_NAMESPACE {

struct SparseAdam : RuleDefaults {
  static constexpr const char* name = "sparse_adam";
  struct Hypers {
    double lr, beta1, beta2, eps;
  };
  static constexpr const char* hyper_names[] = {"lr", "betas.0", "betas.1", "eps"};
  static constexpr const char* state_names[] = {"exp_avg", "exp_avg_sq"};
  static constexpr Kind state_kinds[] = {Kind::average, Kind::magnitude};
  static constexpr bool indexed = true;

  static constexpr bool guarded = true;

  template <class T>
  struct Scalars {
    T step_size, weight1, weight2, eps;
  };

  FUSEDOPT_HD static Scalars<double> prepare(const Hypers& h, double* counters, bool) {
    const double step = counters[0] += 1;
    const double step_size = h.lr * sqrt(1 - pown(h.beta2, step)) / (1 - pown(h.beta1, step));
    return {step_size, 1 - h.beta1, 1 - h.beta2, h.eps};
  }

  template <int variant, class T>
  FUSEDOPT_HD static void update(T& p, T g, T (&s)[2], const Scalars<T>& c) {
    T &m = s[0], &v = s[1];
    m = lerp(m, g, c.weight1);
    v = lerp(v, g * g, c.weight2);
    p = p - c.step_size * m / (sqrt(v) + c.eps);
  }
};

}  // namespace FUSEDOPT_NAMESPACE
