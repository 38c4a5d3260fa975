// What Muon (Jordan et al. 2024) does before and after it makes a matrix orthogonal, as torch.optim.Muon.
#pragma once

#include "rule.h"

namespace FUSEDOPT_NAMESPACE {

// The momentum of each gradient, written where the matrix products will read it: that is the `param` here.
struct MuonMomentum : RuleDefaults {
  static constexpr const char* name = "muon_momentum";
  struct Hypers {
    double momentum, nesterov;
  };
  static constexpr const char* hyper_names[] = {"momentum", "nesterov"};
  static constexpr const char* state_names[] = {"momentum_buffer"};
  static constexpr Kind state_kinds[] = {Kind::average};
  static constexpr int counters = 0;

  template <class T>
  struct Scalars {
    T weight, momentum, nesterov;
  };

  FUSEDOPT_HD static Scalars<double> prepare(const Hypers& h, double*, bool) {
    return {1 - h.momentum, h.momentum, h.nesterov};
  }

  template <int variant, class T>
  FUSEDOPT_HD static void update(T& direction, T g, T (&s)[1], const Scalars<T>& c) {
    T& buffer = s[0];
    buffer = lerp(buffer, g, c.weight);
    const T ahead = lerp(g, buffer, c.momentum);
    direction = c.nesterov != T(0) ? ahead : buffer;
  }
};

// The step along the orthogonal matrix, which comes as the `grad`.
struct MuonUpdate : RuleDefaults {
  static constexpr const char* name = "muon_update";
  struct Hypers {
    double lr, weight_decay, ratio;  // the last is of the matrix: what its shape does to the learning rate
  };
  static constexpr const char* hyper_names[] = {"lr", "weight_decay", "ratio"};
  static constexpr const char* state_names[] = {"momentum_buffer"};
  FUSEDOPT_HD static constexpr bool keeps(int, int) { return false; }
  static constexpr int counters = 0;

  template <class T>
  struct Scalars {
    T lr, decay;
  };

  FUSEDOPT_HD static Scalars<double> prepare(const Hypers& h, double*, bool) {
    return {h.lr * h.ratio, 1 - decay_of(h.lr, h.weight_decay)};
  }

  template <int variant, class T>
  FUSEDOPT_HD static void update(T& p, T orthogonal, T (&)[1], const Scalars<T>& c) {
    p = fma(-c.lr, orthogonal, p * c.decay);
  }
};

}  // namespace FUSEDOPT_NAMESPACE
