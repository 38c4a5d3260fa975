// The build says what it links: FUSEDOPT_CPU_RULES(do) is do(isa, Rule) for each object of cpu/isa/rule.cpp, and
// FUSEDOPT_CUDA_RULES(do) is do(Rule) for each of cuda/rule.cu. An object that is missing is an error of the linker,
// and since these are lists of functions nothing depends on the order in which objects are initialised.
#include "registry.h"

#define FUSEDOPT_DECLARE(isa, R)     \
  namespace fusedopt_##isa {         \
    struct R;                        \
    template <class>                 \
    const fusedopt::Rule& rule_of(); \
  }
#define FUSEDOPT_DECLARE_CUDA(R)                   \
  namespace fusedopt_cuda {                        \
  struct R;                                        \
  template <class>                                 \
  const fusedopt::cuda::RuleKernels& kernels_of(); \
  }
FUSEDOPT_CPU_RULES(FUSEDOPT_DECLARE)
FUSEDOPT_CUDA_RULES(FUSEDOPT_DECLARE_CUDA)

namespace fusedopt {

#define FUSEDOPT_ENTRY(isa, R) {#isa, fusedopt_##isa::rule_of<fusedopt_##isa::R>},
#define FUSEDOPT_ENTRY_CUDA(R) fusedopt_cuda::kernels_of<fusedopt_cuda::R>,

Registry linked_rules() {
  static const CpuRule cpu[] = {FUSEDOPT_CPU_RULES(FUSEDOPT_ENTRY){}};
  static const CudaRule cuda[] = {FUSEDOPT_CUDA_RULES(FUSEDOPT_ENTRY_CUDA) nullptr};
  return {cpu, cuda};
}

}  // namespace fusedopt
