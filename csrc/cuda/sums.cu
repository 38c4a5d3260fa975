// The kernels that rules with sums have in common. The build includes the headers of those rules before this, and in
// FUSEDOPT_RULES(do) is do(Rule) for each: an edit of another rule makes none of this anew.
#include "linked.cuh"
#include "rule_kernels.h"
#include "sums.cuh"

namespace FUSEDOPT_NAMESPACE {

FUSEDOPT_LINKED(WithSums)

const SumKernels& sum_kernels() {
  static const SumKernels kernels = {
      {measure_any<WithSums, kFewStates, float>, measure_any<WithSums, fusedopt::kMaxStates, float>,
       measure_any<WithSums, fusedopt::kMaxStates, double>},
      conclude<WithSums>,
      conclude_all<WithSums>};
  return kernels;
}

template <class R>
int number_with_sums();
#define FUSEDOPT_NUMBER_OF(R) \
  template <>                 \
  int number_with_sums<R>() { \
    return WithSums::k##R;    \
  }
FUSEDOPT_RULES(FUSEDOPT_NUMBER_OF)

}  // namespace FUSEDOPT_NAMESPACE
