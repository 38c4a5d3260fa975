// The kernels for the compiler's baseline: SSE2 on x86-64, NEON on ARM.
#define FUSEDOPT_NAMESPACE fusedopt_generic
#include "isa.h"
#include "sweep.h"
#ifndef FUSEDOPT_RULE
#include "factored.h"
#include "history.h"
#include "norm.h"
#endif

namespace fusedopt {
const Rule* rules_generic(int& count) { return fusedopt_generic::rule_table(fusedopt_generic::AllRules(), count); }
#ifndef FUSEDOPT_RULE  // a shared object brings a rule and nothing else
const FactoredKernels* factored_generic() { return fusedopt_generic::factored_kernels(); }
const history::Kernels& history_generic() { return fusedopt_generic::history_kernels(); }
const NormKernels& norm_generic() { return fusedopt_generic::norm_kernels(); }
#endif
}  // namespace fusedopt
