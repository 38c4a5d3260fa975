// The list of rules: the only C++ registry. A new rule is one header and its name here.
#pragma once

#include "adadelta.h"
#include "adagrad.h"
#include "adam.h"
#include "adamax.h"
#include "adan.h"
#include "asgd.h"
#include "lamb.h"
#include "lars.h"
#include "lion.h"
#include "nadam.h"
#include "radam.h"
#include "rmsprop.h"
#include "rprop.h"
#include "sgd.h"

namespace FUSEDOPT_NAMESPACE {

template <class... Rules>
struct RuleList {};

using AllRules =
    RuleList<SGD, Adam, RMSprop, Adagrad, Adadelta, Adamax, NAdam, RAdam, ASGD, Rprop, Lion, Adan, LAMB, LARS>;

}  // namespace FUSEDOPT_NAMESPACE
