// The first line of every source in this folder: the instruction set that it is compiled for, as the build says. The
// instructions are asked for here and not on the command line, and nothing but C headers may stand before that: an
// inline function of the standard library compiled below it could be the copy that the linker keeps for everyone. What
// is asked for is told by the build's own names alone: before GCC 13 the pragma does not define __AVX2__ and its like.
#include <cmath>
#include <cstdint>
#include <cstring>

#include "../isa.h"

#if defined(FUSEDOPT_ISA_AVX512)
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512")
#define FUSEDOPT_NAMESPACE fusedopt_avx512
#define FUSEDOPT_F16C
#elif defined(FUSEDOPT_ISA_AVX2)
#pragma GCC target("avx2,fma,f16c")
#define FUSEDOPT_NAMESPACE fusedopt_avx2
#define FUSEDOPT_F16C
#else
// The compiler's baseline: SSE2 on x86-64, NEON on ARM.
#define FUSEDOPT_NAMESPACE fusedopt_generic
#endif
