// The kernels for AVX512. Nothing but C headers may stand before the pragma: an inline function of the standard library
// compiled below it could be the copy that the linker keeps for everyone.
#include <cmath>
#include <cstdint>
#include <cstring>

#include "isa.h"

#ifdef FUSEDOPT_X86
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512")
#define FUSEDOPT_NAMESPACE fusedopt_avx512
#define FUSEDOPT_F16C
#include "sweep.h"
#ifndef FUSEDOPT_RULE
#include "factored.h"
#include "history.h"
#include "norm.h"
#endif

namespace fusedopt {
const Rule* rules_avx512(int& count) { return fusedopt_avx512::rule_table(fusedopt_avx512::AllRules(), count); }
#ifndef FUSEDOPT_RULE  // a shared object brings a rule and nothing else
const FactoredKernels* factored_avx512() { return fusedopt_avx512::factored_kernels(); }
const history::Kernels& history_avx512() { return fusedopt_avx512::history_kernels(); }
const NormKernels& norm_avx512() { return fusedopt_avx512::norm_kernels(); }
#endif
}  // namespace fusedopt
#endif
