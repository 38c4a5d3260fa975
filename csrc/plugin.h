// A shared object that brings one rule: isa_*.cpp, prefetch.cpp, plugin.cpp and kernels.cu, compiled with the rule
// named as rules/all.h says. The package loads it with dlopen and asks for this.
#pragma once

#include <cstddef>

#include "step.h"

namespace fusedopt {

namespace cuda {
class RuleKernels;
}

using RulesOf = const Rule* (*)(int& count);

struct Plugin {
  // As its compiler saw them: another size is another version of the package.
  size_t plugin_size, rule_size, row_size;
  RulesOf rules[3];                  // by cpu::Isa::place; null where the compiler had no such set
  const cuda::RuleKernels* kernels;  // null if nvcc was not there
};

}  // namespace fusedopt

extern "C" __attribute__((visibility("default"))) const fusedopt::Plugin* fusedopt_plugin();
