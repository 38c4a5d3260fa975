// The kernels for the compiler's baseline: SSE2 on x86-64, NEON on ARM.
#define FUSEDOPT_NAMESPACE fusedopt_generic
#include "isa.h"
#include "factored.h"
#include "sweep.h"
#include "history.h"

namespace fusedopt {
const Rule* rules_generic(int& count) { return fusedopt_generic::rule_table(fusedopt_generic::AllRules(), count); }
const history::Kernels& history_generic() {
  static const history::Kernels kernels = fusedopt_generic::history_kernels();
  return kernels;
}
const FactoredKernels* factored_generic() { return fusedopt_generic::factored_kernels(); }
}  // namespace fusedopt
