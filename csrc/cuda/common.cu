// The kernels that rules have in common, and all kernels of a rule as the launcher sees them. The build includes the
// rules' headers before this, and in FUSEDOPT_RULES(do) is do(Rule) for each.
#include "common.cuh"
#include "kernel_table.cuh"

namespace FUSEDOPT_NAMESPACE {

struct Linked {
#define FUSEDOPT_NUMBER(R) k##R,
  enum { FUSEDOPT_RULES(FUSEDOPT_NUMBER) };

  template <class F>
  __device__ static void with(int number, F&& f) {
    switch (number) {
#define FUSEDOPT_CASE(R) \
  case k##R:             \
    return f(R());
      FUSEDOPT_RULES(FUSEDOPT_CASE)
    }
  }
};

// For floats with few states, with many, and for doubles.
using CommonKernel = void (*)(UpdateArguments, CommonRule);
const CommonKernel kUpdateAny[] = {update_any<Linked, kFewStates, float>,
                                   update_any<Linked, fusedopt::kMaxStates, float>,
                                   update_any<Linked, fusedopt::kMaxStates, double>};
const CommonKernel kMeasureAny[] = {measure_any<Linked, kFewStates, float>,
                                    measure_any<Linked, fusedopt::kMaxStates, float>,
                                    measure_any<Linked, fusedopt::kMaxStates, double>};

template <class R>
MixKernels mix_kernels_of();

template <class R>
class KernelsOf final : public KernelTable<R, Linked> {
  using Config = const cudaLaunchConfig_t;

 public:
  explicit KernelsOf(int number) : KernelTable<R, Linked>(number) {}

  cudaError_t load() const override {
    const bool sums = R::sums > 0, joint = R::joint;
    cudaError_t error = KernelTable<R, Linked>::load();
    const auto also = [&](auto* kernel) {
      cudaFuncAttributes attributes;
      if (error == cudaSuccess && kernel) error = cudaFuncGetAttributes(&attributes, kernel);
    };
    for (CommonKernel kernel : kUpdateAny) also(kernel);
    if (sums)
      for (CommonKernel kernel : kMeasureAny) also(kernel);
    if (sums) also(fusedopt_cuda::conclude<Linked>);
    if (joint) also(fusedopt_cuda::conclude_all<Linked>);
    for (const auto* of_variants : {mixes_.update, mixes_.measure})
      for (int variant = 0; variant < R::variants; ++variant)
        for (MixKernels::Kernel kernel : of_variants[variant]) also(kernel);
    return error;
  }

  cudaError_t update(Config& config, int kernel, const UpdateArguments& a) const override {
    return launch(config, kernel, a, mixes_.update, kUpdateAny);
  }
  cudaError_t measure(Config& config, int kernel, const UpdateArguments& a) const override {
    return launch(config, kernel, a, mixes_.measure, kMeasureAny);
  }
  cudaError_t conclude(Config& config, const UpdateArguments& a) const override {
    return cudaLaunchKernelEx(&config, fusedopt_cuda::conclude<Linked>, a, this->rule());
  }
  cudaError_t conclude_all(Config& config, const JointArguments& a) const override {
    return cudaLaunchKernelEx(&config, fusedopt_cuda::conclude_all<Linked>, a, this->rule());
  }

 private:
  cudaError_t launch(Config& config, int kernel, const UpdateArguments& a, const MixKernels::Kernel (*mixes)[kMixes],
                     const CommonKernel* any) const {
    const int variant = kernel / kMixes, mix = kernel % kMixes;
    if (mix < kAnyMix) return cudaLaunchKernelEx(&config, mixes[variant][mix], a);
    CommonRule rule = this->rule();
    rule.variant = static_cast<uint8_t>(variant);
    for (int k = 0; k < Shape<R>::kStates; ++k) rule.kept |= R::keeps(variant, k) ? 1 << k : 0;
    return cudaLaunchKernelEx(&config, any[mix > kAnyMix ? 2 : has_few_states<R>(variant) ? 0 : 1], a, rule);
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
