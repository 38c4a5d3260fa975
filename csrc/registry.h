// The rules that there are. The build compiles each struct in rules/*.h that is one once for each CPU instruction set
// (cpu/isa/rule.cpp) and once for CUDA (cuda/rule.cu), and tells registry.cpp the list of these objects. A shared
// object that brings a rule is built in the same way and has a list of its own.
#pragma once

#include <vector>

#include "step.h"

namespace fusedopt {

namespace cuda {
class RuleKernels;
}

// What an object defines. Lists of either end with a null.
struct CpuRule {
  const char* isa;
  const Rule& (*rule)();
};
using CudaRule = const cuda::RuleKernels& (*)();

struct Registry {
  const CpuRule* cpu;
  const CudaRule* cuda;  // empty if nvcc was not there
};

// What was linked with whoever asks.
Registry linked_rules();

// The package's rules, then those from shared objects.
__attribute__((visibility("default"))) std::vector<Registry>& registries();

}  // namespace fusedopt
