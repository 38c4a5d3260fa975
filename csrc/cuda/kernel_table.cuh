// What the kernels of a rule have in common with those of Adafactor, as the launcher sees them.
#pragma once

#include "advance.cuh"
#include "rule_kernels.h"

namespace FUSEDOPT_NAMESPACE {

using fusedopt::cuda::kLargePatch;
using fusedopt::cuda::kSmallPatch;

// Of kernels that are compiled for one rule.
template <class R>
struct Only {
  template <class F>
  __device__ static void with(int, F&& f) {
    f(R());
  }
};

template <class R, class Rules>
class KernelTable : public fusedopt::cuda::RuleKernels {
 public:
  explicit KernelTable(int number) : number_(number) {}
  const char* name() const override { return key_of<R>(); }

  cudaError_t load() const override {
    cudaFuncAttributes attributes;
    const cudaError_t error = cudaFuncGetAttributes(&attributes, fusedopt_cuda::advance<Rules, kSmallPatch>);
    return error != cudaSuccess ? error
                                : cudaFuncGetAttributes(&attributes, fusedopt_cuda::advance<Rules, kLargePatch>);
  }
  cudaError_t use(int device) const override {
    int now = -1;
    const cudaError_t error = cudaGetDevice(&now);
    return error != cudaSuccess || now == device ? error : cudaSetDevice(device);
  }

  cudaError_t advance(Config& config, const AdvanceArguments& a, const Patch<kSmallPatch>& patch) const override {
    return cudaLaunchKernelEx(&config, fusedopt_cuda::advance<Rules, kSmallPatch>, a, rule(), patch);
  }
  cudaError_t advance(Config& config, const AdvanceArguments& a, const Patch<kLargePatch>& patch) const override {
    return cudaLaunchKernelEx(&config, fusedopt_cuda::advance<Rules, kLargePatch>, a, rule(), patch);
  }

 protected:
  ~KernelTable() = default;

  CommonRule rule() const {
    CommonRule rule = {};
    rule.number = static_cast<uint16_t>(number_);
    rule.hypers = Shape<R>::kHypers;
    rule.states = Shape<R>::kStates;
    rule.counters = R::counters;
    rule.scalars = Shape<R>::kScalars;
    rule.sums = R::sums;
    rule.joint = R::joint;
    return rule;
  }

 private:
  const int number_;
};

}  // namespace FUSEDOPT_NAMESPACE
