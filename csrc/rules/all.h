// The list of rules: the only C++ registry. A new rule is one header and its name here. A shared object that brings one
// rule of its own defines the file, the struct and the name to register it by.
#pragma once

#include "rule.h"

#ifdef FUSEDOPT_RULE
#include FUSEDOPT_RULE_FILE
#else
#include "adadelta.h"
#include "adagrad.h"
#include "adam.h"
#include "adamax.h"
#include "adan.h"
#include "asgd.h"
#include "lamb.h"
#include "lars.h"
#include "lion.h"
#include "muon.h"
#include "nadam.h"
#include "radam.h"
#include "rmsprop.h"
#include "rprop.h"
#include "sgd.h"
#include "sparse_adam.h"
#endif

namespace FUSEDOPT_NAMESPACE {

template <class... Rules>
struct RuleList {};

// The name that a rule is found by.
template <class R>
constexpr const char* key_of() {
#ifdef FUSEDOPT_RULE
  return FUSEDOPT_RULE_KEY;
#else
  return R::name;
#endif
}

#ifdef FUSEDOPT_RULE
using AllRules = RuleList<FUSEDOPT_RULE>;
#else
using AllRules = RuleList<SGD, Adam, RMSprop, Adagrad, Adadelta, Adamax, NAdam, RAdam, ASGD, Rprop, Lion, Adan, LAMB,
                          LARS, SparseAdam, MuonMomentum, MuonUpdate>;
#endif

}  // namespace FUSEDOPT_NAMESPACE
