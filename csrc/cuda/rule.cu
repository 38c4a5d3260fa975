// The kernels of a few rules for rows of one mix. The build includes the rules' headers before this, and in
// FUSEDOPT_RULES(do) is do(Rule) for each. It puts some into an object: machine code is compressed object by object and
// much of it is alike, and what kernels include is read once for them.
#include "measure.cuh"
#include "rule_kernels.h"

namespace FUSEDOPT_NAMESPACE {

template <class R, int variant, class T, class... Mixes>
void add_mixes(MixKernels& kernels, MixList<Mixes...>, int first) {
  int at = first;
  ((kernels.update[variant][at++] = update<R, variant, Mixes, T>), ...);
  if constexpr (R::sums > 0 && R::measures(variant)) {
    at = first;
    ((kernels.measure[variant][at++] = measure<R, variant, Mixes, T>), ...);
  }
}

template <class R, int variant>
void add_variants(MixKernels& kernels) {
  if constexpr (variant < R::variants) {
    add_mixes<R, variant, float>(kernels, FloatMixes(), 0);
    add_mixes<R, variant, double>(kernels, DoubleMixes(), kDoubleMixes);
    add_variants<R, variant + 1>(kernels);
  }
}

template <class R>
MixKernels mix_kernels_of() {
  MixKernels kernels;
  add_variants<R, 0>(kernels);
  return kernels;
}
#define FUSEDOPT_KERNELS(R) template MixKernels mix_kernels_of<R>();
FUSEDOPT_RULES(FUSEDOPT_KERNELS)

}  // namespace FUSEDOPT_NAMESPACE
