// Sums in the order that step.h fixes. Included once for each instruction set, in a namespace of its own.
#pragma once

#include "../step.h"

namespace FUSEDOPT_NAMESPACE {

// The sum of all accumulators, which it uses up.
template <class T>
inline T total(T (&sum)[fusedopt::kAccumulators]) {
  for (int half = fusedopt::kAccumulators / 2; half > 0; half /= 2)
#pragma GCC ivdep
    for (int i = 0; i < half; ++i) sum[i] += sum[half + i];
  return sum[0];
}

}  // namespace FUSEDOPT_NAMESPACE
