// Kernels that all rules have in common, and all kernels of a rule as the launcher sees them. The build includes the
// rules' headers before this, and in FUSEDOPT_RULES(do) is do(Rule) for each.
#include "common.cuh"
#include "kernel_table.cuh"
#include "linked.cuh"

namespace FUSEDOPT_NAMESPACE {

FUSEDOPT_LINKED(Linked)

// For floats with few states, with many, and for doubles.
using CommonKernel = SumKernels::Kernel;
const CommonKernel kUpdateAny[] = {update_any<Linked, kFewStates, float>,
                                   update_any<Linked, fusedopt::kMaxStates, float>,
                                   update_any<Linked, fusedopt::kMaxStates, double>};

template <class R>
MixKernels mix_kernels_of();
// Which of the rules with sums it is (sums.cu).
template <class R>
int number_with_sums();

template <class R>
class KernelsOf final : public KernelTable<R, Linked> {
  using Config = const cudaLaunchConfig_t;

 public:
  explicit KernelsOf(int number) : KernelTable<R, Linked>(number) {}

  cudaError_t load() const override {
    cudaError_t error = KernelTable<R, Linked>::load();
    const auto also = [&](auto* kernel) {
      cudaFuncAttributes attributes;
      if (error == cudaSuccess && kernel) error = cudaFuncGetAttributes(&attributes, kernel);
    };
    for (CommonKernel kernel : kUpdateAny) also(kernel);
    if constexpr (R::sums > 0) {
      for (CommonKernel kernel : sum_kernels().measure) also(kernel);
      also(sum_kernels().conclude);
      if (R::joint) also(sum_kernels().conclude_all);
    }
    for (const auto* of_variants : {mixes_.update, mixes_.measure})
      for (int variant = 0; variant < R::variants; ++variant)
        for (MixKernels::Kernel kernel : of_variants[variant]) also(kernel);
    return error;
  }

  cudaError_t update(Config& config, int kernel, const UpdateArguments& a) const override {
    return launch(config, kernel, a, mixes_.update, kUpdateAny, this->rule());
  }
  cudaError_t measure(Config& config, int kernel, const UpdateArguments& a) const override {
    if constexpr (R::sums > 0)
      return launch(config, kernel, a, mixes_.measure, sum_kernels().measure, with_sums());
    else
      return cudaErrorNotSupported;
  }
  cudaError_t conclude(Config& config, const UpdateArguments& a) const override {
    if constexpr (R::sums > 0)
      return cudaLaunchKernelEx(&config, sum_kernels().conclude, a, with_sums());
    else
      return cudaErrorNotSupported;
  }
  cudaError_t conclude_all(Config& config, const fusedopt::cuda::JointArguments& a) const override {
    if constexpr (R::joint)
      return cudaLaunchKernelEx(&config, sum_kernels().conclude_all, a, with_sums());
    else
      return cudaErrorNotSupported;
  }

 private:
  cudaError_t launch(Config& config, int kernel, const UpdateArguments& a, const MixKernels::Kernel (*mixes)[kMixes],
                     const CommonKernel* any, CommonRule rule) const {
    const int variant = kernel / kMixes, mix = kernel % kMixes;
    if (mix < kAnyMix) return cudaLaunchKernelEx(&config, mixes[variant][mix], a);
    rule.variant = static_cast<uint8_t>(variant);
    for (int k = 0; k < Shape<R>::kStates; ++k) rule.kept |= R::keeps(variant, k) ? 1 << k : 0;
    return cudaLaunchKernelEx(&config, any[mix > kAnyMix ? 2 : has_few_states<R>(variant) ? 0 : 1], a, rule);
  }
  CommonRule with_sums() const {
    CommonRule rule = this->rule();
    rule.number = static_cast<uint16_t>(number_with_sums<R>());
    return rule;
  }

  const MixKernels mixes_ = mix_kernels_of<R>();
};

template <class R>
const fusedopt::cuda::RuleKernels& kernels_of();
#define FUSEDOPT_KERNELS(R)                            \
  template <>                                          \
  const fusedopt::cuda::RuleKernels& kernels_of<R>() { \
    static const KernelsOf<R> kernels(Linked::k##R);   \
    return kernels;                                    \
  }
FUSEDOPT_RULES(FUSEDOPT_KERNELS)

}  // namespace FUSEDOPT_NAMESPACE
