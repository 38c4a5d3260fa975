// The kernels of one rule as the launcher sees them: tables by their numbers, which a subclass fills.
#pragma once

#include "kernels.cuh"
#include "measure.cuh"
#include "rule_kernels.h"

namespace FUSEDOPT_NAMESPACE {

using fusedopt::cuda::kLargePatch;
using fusedopt::cuda::kSmallPatch;

template <class R, int size>
class KernelTable : public fusedopt::cuda::RuleKernels {
 public:
  const char* name() const override { return key_of<R>(); }

  cudaError_t load() const override {
    cudaFuncAttributes attributes;
    cudaError_t error = cudaFuncGetAttributes(&attributes, fusedopt_cuda::advance<R, kSmallPatch>);
    const auto also = [&](auto* kernel) {
      if (error == cudaSuccess && kernel) error = cudaFuncGetAttributes(&attributes, kernel);
    };
    also(fusedopt_cuda::advance<R, kLargePatch>);
    for (auto* kernel : update_) also(kernel);
    for (auto* kernel : measure_) also(kernel);
    for (auto* kernel : conclude_) also(kernel);
    if constexpr (R::joint) also(fusedopt_cuda::conclude_all<R>);
    return error;
  }
  cudaError_t use(int device) const override {
    int now = -1;
    const cudaError_t error = cudaGetDevice(&now);
    return error != cudaSuccess || now == device ? error : cudaSetDevice(device);
  }

  cudaError_t advance(Config& config, const AdvanceArguments& a, const Patch<kSmallPatch>& patch) const override {
    return cudaLaunchKernelEx(&config, fusedopt_cuda::advance<R, kSmallPatch>, a, patch);
  }
  cudaError_t advance(Config& config, const AdvanceArguments& a, const Patch<kLargePatch>& patch) const override {
    return cudaLaunchKernelEx(&config, fusedopt_cuda::advance<R, kLargePatch>, a, patch);
  }
  cudaError_t update(Config& config, int kernel, const UpdateArguments& a) const override {
    return cudaLaunchKernelEx(&config, update_[kernel], a);
  }
  cudaError_t measure(Config& config, int kernel, const UpdateArguments& a) const override {
    return cudaLaunchKernelEx(&config, measure_[kernel], a);
  }
  cudaError_t conclude(Config& config, int kernel, const UpdateArguments& a) const override {
    return cudaLaunchKernelEx(&config, conclude_[is_wide(kernel)], a);
  }
  cudaError_t conclude_all([[maybe_unused]] Config& config, [[maybe_unused]] const JointArguments& a) const override {
    if constexpr (R::joint) return cudaLaunchKernelEx(&config, fusedopt_cuda::conclude_all<R>, a);
    return cudaErrorNotSupported;
  }

 protected:
  ~KernelTable() = default;

  using Kernel = void (*)(UpdateArguments);
  Kernel update_[size] = {};
  Kernel measure_[size] = {};
  Kernel conclude_[2] = {};
};

}  // namespace FUSEDOPT_NAMESPACE
