// The instruction sets that have kernels, and the table of rules each provides.
#pragma once

#include "../factored.h"
#include "../history.h"
#include "../norm.h"
#include "../step.h"

// Clang has no `#pragma GCC target`: it builds the generic kernels only. So does who asks for no others.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(FUSEDOPT_GENERIC_ONLY)
#define FUSEDOPT_X86
#endif

namespace fusedopt {

// How many elements ahead of the vector loop memory is asked for.
extern const int64_t g_prefetch_distance;

const Rule* rules_generic(int& count);
const Rule* rules_avx2(int& count);
const Rule* rules_avx512(int& count);

const FactoredKernels* factored_generic();
const FactoredKernels* factored_avx2();
const FactoredKernels* factored_avx512();
const history::Kernels& history_generic();
const history::Kernels& history_avx2();
const history::Kernels& history_avx512();
const NormKernels& norm_generic();
const NormKernels& norm_avx2();
const NormKernels& norm_avx512();

}  // namespace fusedopt
