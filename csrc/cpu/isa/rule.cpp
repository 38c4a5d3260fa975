// One rule for one instruction set. The build names its header and its struct; all other code of a rule is sweep.h's.
#include "target.h"

#include "../sweep.h"
#include FUSEDOPT_RULE_FILE

namespace FUSEDOPT_NAMESPACE {
template const fusedopt::Rule& rule_of<FUSEDOPT_RULE>();
}
