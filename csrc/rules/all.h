// The list of rules: the only C++ registry. A new rule is one header and its name here.
#pragma once

#include "adam.h"
#include "rmsprop.h"
#include "sgd.h"

namespace FUSEDOPT_NAMESPACE {

template <class... Rules>
struct RuleList {
  static constexpr int size = sizeof...(Rules);
};

using AllRules = RuleList<SGD, Adam, RMSprop>;

}  // namespace FUSEDOPT_NAMESPACE
