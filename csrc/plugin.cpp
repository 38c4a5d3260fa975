#include "plugin.h"

#include "cpu/isa.h"
#ifdef FUSEDOPT_RULE_ON_CUDA
#include "cuda/plugin_kernels.h"
#endif

const fusedopt::Plugin* fusedopt_plugin() {
  using namespace fusedopt;
  static const Plugin plugin = {
      sizeof(Plugin),
      sizeof(Rule),
      sizeof(Row),
#ifdef FUSEDOPT_X86
      {rules_generic, rules_avx2, rules_avx512},
#else
      {rules_generic, nullptr, nullptr},
#endif
#ifdef FUSEDOPT_RULE_ON_CUDA
      cuda::only_kernels(),
#else
      nullptr,
#endif
  };
  return &plugin;
}
