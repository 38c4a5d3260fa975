// The kernels for AVX2. Nothing but C headers may stand before the pragma: an inline function of the standard library
// compiled below it could be the copy that the linker keeps for everyone.
#include <cmath>
#include <cstdint>
#include <cstring>

#include "isa.h"

#ifdef FUSEDOPT_X86
#pragma GCC target("avx2,fma,f16c")
#define FUSEDOPT_NAMESPACE fusedopt_avx2
#define FUSEDOPT_F16C
#include "sweep.h"
#ifndef FUSEDOPT_RULE
#include "factored.h"
#include "history.h"
#include "norm.h"
#endif

namespace fusedopt {
const Rule* rules_avx2(int& count) { return fusedopt_avx2::rule_table(fusedopt_avx2::AllRules(), count); }
#ifndef FUSEDOPT_RULE  // a shared object brings a rule and nothing else
const FactoredKernels* factored_avx2() { return fusedopt_avx2::factored_kernels(); }
const history::Kernels& history_avx2() { return fusedopt_avx2::history_kernels(); }
const NormKernels& norm_avx2() { return fusedopt_avx2::norm_kernels(); }
#endif
}  // namespace fusedopt
#endif
