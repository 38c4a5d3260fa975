// The kernels of a few rules. The build names their headers, the last more than once if there are fewer, and in
// FUSEDOPT_RULES(do) is do(Rule) for each. It puts three into an object: machine code is compressed object by object
// and much of it is alike, and what kernels include is read once for three rules.
#define FUSEDOPT_NAMESPACE fusedopt_cuda
#include "kernel_table.cuh"
#include "measure.cuh"
#include FUSEDOPT_RULE_FILE_1
#include FUSEDOPT_RULE_FILE_2
#include FUSEDOPT_RULE_FILE_3

namespace FUSEDOPT_NAMESPACE {

template <class R>
class KernelsOf final : public KernelTable<R, fusedopt::kMaxVariants * kMixes> {
  using Table = KernelTable<R, fusedopt::kMaxVariants * kMixes>;
  using Table::conclude_;
  using Table::measure_;
  using Table::update_;
  using typename Table::Kernel;

 public:
  KernelsOf() { add_variants<0>(); }

 private:
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
};

template <class R>
const fusedopt::cuda::RuleKernels& kernels_of() {
  static const KernelsOf<R> kernels;
  return kernels;
}
#define FUSEDOPT_KERNELS(R) template const fusedopt::cuda::RuleKernels& kernels_of<R>();
FUSEDOPT_RULES(FUSEDOPT_KERNELS)

}  // namespace FUSEDOPT_NAMESPACE
