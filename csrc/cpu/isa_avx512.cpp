// The kernels for AVX512. Nothing but C headers may stand before the pragma: an inline function of the standard library
// compiled below it could be the copy that the linker keeps for everyone.
#include <cmath>
#include <cstdint>
#include <cstring>

#include "isa.h"

#ifdef FUSEDOPT_X86
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,prefer-vector-width=512")
#define FUSEDOPT_NAMESPACE fusedopt_avx512
#include "factored.h"
#include "sweep.h"
#include "history.h"

namespace fusedopt {
const Rule* rules_avx512(int& count) { return fusedopt_avx512::rule_table(fusedopt_avx512::AllRules(), count); }
const history::Kernels& history_avx512() {
  static const history::Kernels kernels = fusedopt_avx512::history_kernels();
  return kernels;
}
const FactoredKernels* factored_avx512() { return fusedopt_avx512::factored_kernels(); }
}  // namespace fusedopt
#endif
