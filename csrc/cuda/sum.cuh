// Sums in the order that step.h fixes, by the lanes of one warp or the threads of a block; and what else sweeps have in
// common in which a warp takes a chunk.
#pragma once

#include <cuda_runtime.h>

#include "../rules/rule.h"
#include "table.h"

namespace FUSEDOPT_NAMESPACE {

constexpr int kSumsPerLane = fusedopt::kAccumulators / fusedopt::cuda::kLanes;
constexpr int kPerLane = fusedopt::kChunk / fusedopt::cuda::kLanes;  // elements of a chunk

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

// The largest of what all lanes have. Every lane gets it.
template <class T>
__device__ T largest_of_lanes(T mine) {
#pragma unroll
  for (int lanes = fusedopt::cuda::kLanes / 2; lanes > 0; lanes /= 2)
    mine = maximum(mine, __shfl_xor_sync(~0u, mine, lanes));
  return mine;
}

// The largest of all accumulators.
template <class T>
__device__ T largest(const T (&of)[kSumsPerLane]) {
  T all = 0;
#pragma unroll
  for (int j = 0; j < kSumsPerLane; ++j) all = maximum(all, of[j]);
  return largest_of_lanes(all);
}

// Of a block of kAccumulators threads each has an accumulator. Its first warp, which is told by true, gets them all.
__device__ inline bool bring_together(double mine, double (&of_lane)[kSumsPerLane]) {
  __shared__ double every[fusedopt::kAccumulators];
  every[threadIdx.x] = mine;
  __syncthreads();
  if (threadIdx.x >= fusedopt::cuda::kLanes) return false;
#pragma unroll
  for (int j = 0; j < kSumsPerLane; ++j) of_lane[j] = every[j * fusedopt::cuda::kLanes + threadIdx.x];
  return true;
}

// Where an element of a strided tensor lies. Not inlined: the divisions, 32 times unrolled, took a minute to compile.
__device__ __noinline__ inline int64_t offset_of(const fusedopt::Layout& layout, int64_t index) {
  int64_t offset = 0;
  for (int d = layout.dims - 1; d >= 0; --d) {
    offset += index % layout.size[d] * layout.stride[fusedopt::kParam][d];
    index /= layout.size[d];
  }
  return offset;
}

}  // namespace FUSEDOPT_NAMESPACE
