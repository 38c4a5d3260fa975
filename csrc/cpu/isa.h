// What the objects of one instruction set define, beside its rules: every source in cpu/isa/ is compiled once for each.
#pragma once

#include "../factored.h"
#include "../history.h"
#include "../norm.h"
#include "../step.h"

namespace fusedopt {

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
