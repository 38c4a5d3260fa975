// The kernels of Adafactor, as the launcher sees those of rules.
#define FUSEDOPT_NAMESPACE fusedopt_cuda
#include "factored.cuh"
#include "rule_kernels.h"

namespace FUSEDOPT_NAMESPACE {

using fusedopt::cuda::kLargePatch;
using fusedopt::cuda::kSmallPatch;

class FactoredKernelsOf final : public fusedopt::cuda::RuleKernels {
 public:
  FactoredKernelsOf() {
    add<float, float>(0);
    add<float, bf16>(1);
    add<float, f16>(2);
    add<double, double>(3);
    add<float, AnyStored>(4);
    add<double, AnyStored>(5);
    add<float, WithExtras, AnyStored>(6);
    add<double, WithExtras, AnyStored>(7);
    kernels_[kConclude * kFactoredKinds] = factored_conclude;
  }

  const char* name() const override { return Adafactor::name; }

  cudaError_t load() const override {
    cudaFuncAttributes attributes;
    cudaError_t error = cudaFuncGetAttributes(&attributes, fusedopt_cuda::advance<Adafactor, kSmallPatch>);
    const auto also = [&](auto* kernel) {
      if (error == cudaSuccess && kernel) error = cudaFuncGetAttributes(&attributes, kernel);
    };
    also(fusedopt_cuda::advance<Adafactor, kLargePatch>);
    for (auto* kernel : kernels_) also(kernel);
    return error;
  }
  cudaError_t use(int device) const override {
    int now = -1;
    const cudaError_t error = cudaGetDevice(&now);
    return error != cudaSuccess || now == device ? error : cudaSetDevice(device);
  }

  cudaError_t advance(Config& config, const AdvanceArguments& a, const Patch<kSmallPatch>& patch) const override {
    return cudaLaunchKernelEx(&config, fusedopt_cuda::advance<Adafactor, kSmallPatch>, a, patch);
  }
  cudaError_t advance(Config& config, const AdvanceArguments& a, const Patch<kLargePatch>& patch) const override {
    return cudaLaunchKernelEx(&config, fusedopt_cuda::advance<Adafactor, kLargePatch>, a, patch);
  }
  cudaError_t update(Config& config, int kernel, const UpdateArguments& a) const override {
    return cudaLaunchKernelEx(&config, kernels_[kernel], a);
  }
  cudaError_t measure(Config&, int, const UpdateArguments&) const override { return cudaErrorNotSupported; }
  cudaError_t conclude(Config&, int, const UpdateArguments&) const override { return cudaErrorNotSupported; }
  cudaError_t conclude_all(Config&, const JointArguments&) const override { return cudaErrorNotSupported; }

 private:
  using Kernel = void (*)(UpdateArguments);

  template <class T, class P, class G = P>
  void add(int kind) {
    kernels_[kMeasure * kFactoredKinds + kind] = factored_measure<T, P, G>;
    kernels_[kFinish * kFactoredKinds + kind] = factored_finish<T>;
    kernels_[kSquare * kFactoredKinds + kind] = factored_square<T, P, G>;
    kernels_[kFactoredUpdate * kFactoredKinds + kind] = factored_update<T, P, G>;
  }

  Kernel kernels_[kFactoredPasses * kFactoredKinds] = {};
};

const fusedopt::cuda::RuleKernels& factored_kernels() {
  static const FactoredKernelsOf kernels;
  return kernels;
}

}  // namespace FUSEDOPT_NAMESPACE
