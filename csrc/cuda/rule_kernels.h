// The kernels of rules as the launcher sees them. A shared object may bring some: a kernel is known only to the runtime
// that it was linked with, so whatever the runtime has to do with one goes through here.
#pragma once

#include <cuda_runtime.h>

#include "../codec.h"
#include "table.h"

namespace fusedopt::cuda {

class RuleKernels {
 public:
  virtual const char* name() const = 0;
  // Has them brought to the current device; fails if there are none for it.
  virtual cudaError_t load() const = 0;
  // Makes a device current for this runtime, too.
  virtual cudaError_t use(int device) const = 0;

  using Config = const cudaLaunchConfig_t;
  virtual cudaError_t advance(Config& config, const AdvanceArguments& a, const Patch<kSmallPatch>& patch) const = 0;
  virtual cudaError_t advance(Config& config, const AdvanceArguments& a, const Patch<kLargePatch>& patch) const = 0;
  // `kernel` is what kernel_of() says of the rows.
  virtual cudaError_t update(Config& config, int kernel, const UpdateArguments& a) const = 0;
  // Of variants that have sums.
  virtual cudaError_t measure(Config&, int, const UpdateArguments&) const { return cudaErrorNotSupported; }
  virtual cudaError_t conclude(Config&, const UpdateArguments&) const { return cudaErrorNotSupported; }
  // Of joint rules.
  virtual cudaError_t conclude_all(Config&, const JointArguments&) const { return cudaErrorNotSupported; }

 protected:
  ~RuleKernels() = default;
};

}  // namespace fusedopt::cuda

namespace FUSEDOPT_NAMESPACE {

// Update kernels are numbered: for each variant those for the mixes of either list, then for any mix.
constexpr int kMixes = 7;
constexpr int kDoubleMixes = 4, kAnyMix = 5;

// Those of a rule for rows of one mix, which are compiled for it alone; null for any mix, and for variants without
// sums.
struct MixKernels {
  using Kernel = void (*)(fusedopt::cuda::UpdateArguments);
  Kernel update[fusedopt::kMaxVariants][kMixes] = {};
  Kernel measure[fusedopt::kMaxVariants][kMixes] = {};
};

// Those of rules with sums, which are compiled with these alone. For floats with few states, with many, and for
// doubles.
struct SumKernels {
  using Kernel = void (*)(fusedopt::cuda::UpdateArguments, fusedopt::cuda::CommonRule);
  Kernel measure[3];
  Kernel conclude;
  void (*conclude_all)(fusedopt::cuda::JointArguments, fusedopt::cuda::CommonRule);
};
const SumKernels& sum_kernels();

template <class M>
inline bool has_mix(const fusedopt::Row& row, const fusedopt::Rule& rule) {
  bool has = row.param_dtype == dtype_of(typename M::Param()) && row.grad_dtype == dtype_of(typename M::Grad());
  for (int k = 0; k < rule.states; ++k)
    has = has && (!row.state[k] || row.state_dtype[k] == dtype_of(typename M::State()));
  return has;
}

template <class... Mixes>
inline int find_mix(MixList<Mixes...>, const fusedopt::Row& row, const fusedopt::Rule& rule) {
  int at = 0;
  return ((has_mix<Mixes>(row, rule) ? true : (++at, false)) || ...) ? at : -1;
}

inline int kernel_of(const fusedopt::Row& row, const fusedopt::Rule& rule) {
  const bool wide = row.param_dtype == fusedopt::Dtype::f64;
  int mix = row.layout || row.extras ? -1
            : wide                   ? find_mix(DoubleMixes(), row, rule)
                                     : find_mix(FloatMixes(), row, rule);
  if (mix < 0)
    mix = kAnyMix + wide;
  else if (wide)
    mix += kDoubleMixes;
  return row.variant * kMixes + mix;
}

}  // namespace FUSEDOPT_NAMESPACE
