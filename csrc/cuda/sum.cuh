// Sums in the order that step.h fixes, by the lanes of one warp.
#pragma once

#include <cuda_runtime.h>

#include "table.h"

namespace FUSEDOPT_NAMESPACE {

constexpr int kSumsPerLane = fusedopt::kAccumulators / fusedopt::cuda::kLanes;

// The sum of all accumulators, of which a lane has those at lane + 32 j. Every lane gets it.
template <class T>
__device__ T total(T (&sum)[kSumsPerLane]) {
#pragma unroll
  for (int half = kSumsPerLane / 2; half > 0; half /= 2) {
#pragma unroll
    for (int j = 0; j < half; ++j) sum[j] += sum[half + j];
  }
  T all = sum[0];
#pragma unroll
  for (int lanes = fusedopt::cuda::kLanes / 2; lanes > 0; lanes /= 2) all += __shfl_xor_sync(~0u, all, lanes);
  return all;
}

}  // namespace FUSEDOPT_NAMESPACE
