// What the engines derive from a rule: its counts, checked against the limits of step.h, and its numbers as structs.
#pragma once

#include <cstring>

#include "step.h"
#include "rules/rule.h"

namespace FUSEDOPT_NAMESPACE {

// The name that a rule is found by: its own, or what the build gives a rule from outside.
template <class R>
constexpr const char* key_of() {
#ifdef FUSEDOPT_RULE_KEY
  return FUSEDOPT_RULE_KEY;
#else
  return R::name;
#endif
}

template <class R>
struct Shape {
  using Hypers = typename R::Hypers;
  using Scalars = typename R::template Scalars<double>;
  static constexpr int kHypers = sizeof(R::hyper_names) / sizeof(R::hyper_names[0]);
  static constexpr int kStates = sizeof(R::state_names) / sizeof(R::state_names[0]);
  static constexpr int kScalars = sizeof(Scalars) / sizeof(double);
  static_assert(kStates > 0, "state_names has an entry; where a variant has no state, keeps() says so");
  static_assert(sizeof(Hypers) == kHypers * sizeof(double), "Hypers holds one double for each of hyper_names");
  static_assert(kHypers <= fusedopt::kMaxHypers && kStates <= fusedopt::kMaxStates && kScalars < fusedopt::kMaxScalars);
  static_assert(R::sums <= fusedopt::kMaxSums);
  static_assert(R::counters <= fusedopt::kMaxCounters && R::variants <= fusedopt::kMaxVariants);

  // Of how many sums a variant gives the terms.
  FUSEDOPT_HD static constexpr int sums_of(int variant) {
    return R::sums_of(variant) < R::sums ? R::sums_of(variant) : R::sums;
  }

  FUSEDOPT_HD static Hypers hypers(const double* numbers) {
    Hypers h;
    memcpy(&h, numbers, sizeof(h));
    return h;
  }

  // The scalars of an update in T, after the multiplier of the gradient, which stands at numbers[0].
  template <class T, class Number>
  FUSEDOPT_HD static typename R::template Scalars<T> scalars(const Number* numbers) {
    T fields[kScalars];
    for (int i = 0; i < kScalars; ++i) fields[i] = static_cast<T>(numbers[1 + i]);
    typename R::template Scalars<T> c;
    memcpy(&c, fields, sizeof(c));
    return c;
  }
};

// What a rule says of itself, before an engine adds its kernels.
template <class R>
fusedopt::Rule described() {
  fusedopt::Rule rule = {};
  rule.name = key_of<R>();
  rule.hyper_names = R::hyper_names;
  rule.state_names = R::state_names;
  rule.counter_names = R::counter_names;
  rule.state_kinds = R::state_kinds;
  rule.hypers = Shape<R>::kHypers;
  rule.states = Shape<R>::kStates;
  rule.counters = R::counters;
  rule.scalars = Shape<R>::kScalars;
  rule.variants = R::variants;
  rule.prepare = [](const double* hypers, double* counters, bool first, double* scalars) {
    const auto made = R::prepare(Shape<R>::hypers(hypers), counters, first);
    memcpy(scalars, &made, sizeof(made));
  };
  return rule;
}

}  // namespace FUSEDOPT_NAMESPACE
