// Stochastic gradient descent with momentum (Polyak 1964) and Nesterov momentum (Sutskever et al. 2013), as
// torch.optim.SGD; with a decay apart from the gradient (Loshchilov & Hutter 2019), as timm's sgdw.py.
#pragma once

#include "rule.h"

namespace FUSEDOPT_NAMESPACE {

struct SGD : RuleDefaults {
  static constexpr const char* name = "sgd";
  struct Hypers {
    double lr, momentum, dampening, weight_decay, nesterov, decoupled;
  };
  static constexpr const char* hyper_names[] = {"lr",           "momentum", "dampening",
                                                "weight_decay", "nesterov", "decoupled_weight_decay"};
  static constexpr const char* state_names[] = {"momentum_buffer"};
  static constexpr Kind state_kinds[] = {Kind::average};
  static constexpr bool like_grad(int) { return true; }
  static constexpr int counters = 0;

  enum { plain, with_momentum, variants };
  FUSEDOPT_HD static int variant(const Hypers& h) { return h.momentum != 0 ? with_momentum : plain; }
  FUSEDOPT_HD static constexpr bool keeps(int variant, int) { return variant == with_momentum; }

  template <class T>
  struct Scalars {
    T lr, momentum, nesterov_momentum, gradient_weight, decay, l2;
  };

  FUSEDOPT_HD static Scalars<double> prepare(const Hypers& h, double*, bool first) {
    Scalars<double> c;
    c.lr = h.lr;
    // The buffer starts as the gradient itself, undamped.
    c.momentum = first ? 0 : h.momentum;
    c.gradient_weight = first ? 1 : 1 - h.dampening;
    // Without Nesterov the step is the buffer: g = 0 * g + 1 * buffer would spoil infinities, so the rule selects on
    // it.
    c.nesterov_momentum = h.nesterov != 0 ? h.momentum : 0;
    c.decay = h.decoupled != 0 ? 1 - decay_of(h.lr, h.weight_decay) : 1;
    c.l2 = h.decoupled != 0 ? 0 : h.weight_decay;
    return c;
  }

  template <int variant, class T>
  FUSEDOPT_HD static void update(T& p, T g, T (&s)[1], const Scalars<T>& c) {
    if (c.l2 != T(0)) g = fma(c.l2, p, g);
    if constexpr (variant == with_momentum) {
      T& buffer = s[0];
      buffer = fma(c.momentum, buffer, c.gradient_weight * g);
      g = c.nesterov_momentum != T(0) ? fma(c.nesterov_momentum, buffer, g) : buffer;
    }
    p = fma(-c.lr, g, p * c.decay);
  }
};

}  // namespace FUSEDOPT_NAMESPACE
