// The kernels of a few rules. The build names their headers, the last more than once if there are fewer, and in
// FUSEDOPT_RULES(do) is do(Rule) for each. It puts three into an object: machine code is compressed object by object
// and much of it is alike, and what kernels include is read once for three rules.
#define FUSEDOPT_NAMESPACE fusedopt_cuda
#include "measure.cuh"
#include "rule_kernels.h"
#include FUSEDOPT_RULE_FILE_1
#include FUSEDOPT_RULE_FILE_2
#include FUSEDOPT_RULE_FILE_3

namespace FUSEDOPT_NAMESPACE {

using fusedopt::cuda::kLargePatch;
using fusedopt::cuda::kSmallPatch;

template <class R>
class KernelsOf final : public fusedopt::cuda::RuleKernels {
 public:
  KernelsOf() { add_variants<0>(); }

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

 private:
  using Kernel = void (*)(UpdateArguments);

  template <int variant>
  void add_variants() {
    if constexpr (variant < R::variants) {
      add_mixes<variant, float>(FloatMixes(), 0);
      add_mixes<variant, double>(DoubleMixes(), kDoubleMixes);
      Kernel* any = update_ + variant * kMixes + kAnyMix;
      any[0] = update_any<R, variant, float>;
      any[1] = update_any<R, variant, double>;
      if constexpr (R::sums > 0 && R::measures(variant)) {
        Kernel* measure = measure_ + variant * kMixes + kAnyMix;
        measure[0] = measure_any<R, variant, float>;
        measure[1] = measure_any<R, variant, double>;
        conclude_[0] = fusedopt_cuda::conclude<R, float>;
        conclude_[1] = fusedopt_cuda::conclude<R, double>;
      }
      add_variants<variant + 1>();
    }
  }

  template <int variant, class T, class... Mixes>
  void add_mixes(MixList<Mixes...>, int at) {
    ((add_mix<variant, Mixes, T>(variant * kMixes + at++)), ...);
  }
  template <int variant, class M, class T>
  void add_mix(int at) {
    update_[at] = fusedopt_cuda::update<R, variant, M, T>;
    if constexpr (R::sums > 0 && R::measures(variant)) measure_[at] = fusedopt_cuda::measure<R, variant, M, T>;
  }

  Kernel update_[fusedopt::kMaxVariants * kMixes] = {};
  Kernel measure_[fusedopt::kMaxVariants * kMixes] = {};
  Kernel conclude_[2] = {};
};

template <class R>
const fusedopt::cuda::RuleKernels& kernels_of() {
  static const KernelsOf<R> kernels;
  return kernels;
}
#define FUSEDOPT_KERNELS(R) template const fusedopt::cuda::RuleKernels& kernels_of<R>();
FUSEDOPT_RULES(FUSEDOPT_KERNELS)

}  // namespace FUSEDOPT_NAMESPACE
