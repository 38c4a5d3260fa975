// What the objects of one instruction set define, beside its rules: every source in cpu/isa/, and every room's isa.cpp,
// is compiled once for each. What the rooms' kernels are, rules need not know.
#pragma once

#include "../step.h"

namespace fusedopt {

struct FactoredKernels;
struct NormKernels;
namespace history {
struct Kernels;
}

// How many elements ahead of the vector loop memory is asked for.
extern const int64_t g_prefetch_distance;

}  // namespace fusedopt

#define FUSEDOPT_DECLARE_ISA(isa)                        \
  namespace fusedopt_##isa {                             \
    const fusedopt::FactoredKernels& factored_kernels(); \
    const fusedopt::history::Kernels& history_kernels(); \
    const fusedopt::NormKernels& norm_kernels();         \
  }
FUSEDOPT_DECLARE_ISA(generic)
FUSEDOPT_DECLARE_ISA(avx2)
FUSEDOPT_DECLARE_ISA(avx512)
