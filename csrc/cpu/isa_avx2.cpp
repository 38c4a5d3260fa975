// The kernels for AVX2. Nothing but C headers may stand before the pragma: an inline function of the standard library
// compiled below it could be the copy that the linker keeps for everyone.
#include <cmath>
#include <cstdint>
#include <cstring>

#include "isa.h"

#ifdef FUSEDOPT_X86
#pragma GCC target("avx2,fma")
#define FUSEDOPT_NAMESPACE fusedopt_avx2
#include "factored.h"
#include "sweep.h"
#include "history.h"

namespace fusedopt {
const Rule* rules_avx2(int& count) { return fusedopt_avx2::rule_table(fusedopt_avx2::AllRules(), count); }
const history::Kernels& history_avx2() {
  static const history::Kernels kernels = fusedopt_avx2::history_kernels();
  return kernels;
}
const FactoredKernels* factored_avx2() { return fusedopt_avx2::factored_kernels(); }
}  // namespace fusedopt
#endif
