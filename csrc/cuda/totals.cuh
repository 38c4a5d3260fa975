// Sums of rows of which other processes have parts, on their way to these and back: between the sweep that makes a
// row's sums, chunk by chunk, and what is concluded from them.
#pragma once

#include <cuda_runtime.h>

#include "sum.cuh"

namespace FUSEDOPT_NAMESPACE {

using fusedopt::cuda::JointTotalsArguments;
using fusedopt::cuda::TotalsArguments;

// The sums of a row's chunks and how many there are; none where the launch has nothing of the row.
__device__ inline double* sums_of_row(const TotalsArguments& a, uint32_t& chunks) {
  const uint32_t* starts = reinterpret_cast<const uint32_t*>(a.words + a.starts) + blockIdx.x;
  chunks = a.parts[blockIdx.x] ? starts[1] - starts[0] : 0;
  return reinterpret_cast<double*>(a.words + a.sums) + static_cast<int64_t>(starts[0]) * a.count;
}

// A block for each row: adds the sums of its chunks, in the order of all sums.
__global__ void __launch_bounds__(fusedopt::kAccumulators) collect_totals(const __grid_constant__ TotalsArguments a) {
  __shared__ double partial[fusedopt::kAccumulators];
  uint32_t chunks;
  const double* sums = sums_of_row(a, chunks);
  if (chunks == 0) return;
  for (uint32_t k = 0; k < a.count; ++k) {
    double sum = 0;
    for (uint32_t i = threadIdx.x; i < chunks; i += fusedopt::kAccumulators) sum += sums[i * a.count + k];
    partial[threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.x < fusedopt::cuda::kLanes) {
      double mine[kSumsPerLane];
      for (int j = 0; j < kSumsPerLane; ++j) mine[j] = partial[j * fusedopt::cuda::kLanes + threadIdx.x];
      const double all = total(mine);
      if (threadIdx.x == 0) a.totals[blockIdx.x * a.count + k] = all;
    }
    __syncthreads();
  }
}

// And back: the first chunk stands for the whole tensor.
__global__ void __launch_bounds__(fusedopt::kAccumulators) return_totals(const __grid_constant__ TotalsArguments a) {
  uint32_t chunks;
  double* sums = sums_of_row(a, chunks);
  for (uint32_t i = threadIdx.x; i < chunks * a.count; i += fusedopt::kAccumulators)
    sums[i] = i < a.count ? a.totals[blockIdx.x * a.count + i] : 0;
}

// A warp for each row: what the launches have noted of it, of which it is in one at most.
__global__ void __launch_bounds__(fusedopt::cuda::kLanes)
    collect_joint_totals(const __grid_constant__ JointTotalsArguments a) {
  const uint32_t k = threadIdx.x, at = blockIdx.x * a.count + k;
  if (!a.parts[blockIdx.x] || k >= a.count) return;
  double sum = 0;
  for (uint32_t launch = 0; launch < a.launches; ++launch) sum += a.noted[launch * a.rows * a.count + at];
  a.totals[at] = sum;
}

// And back, to the first launch, also of a row that is in none.
__global__ void __launch_bounds__(fusedopt::cuda::kLanes)
    return_joint_totals(const __grid_constant__ JointTotalsArguments a) {
  const uint32_t k = threadIdx.x, at = blockIdx.x * a.count + k;
  if (!a.parts[blockIdx.x] || k >= a.count) return;
  for (uint32_t launch = 0; launch < a.launches; ++launch)
    a.noted[launch * a.rows * a.count + at] = launch == 0 ? a.totals[at] : 0;
}

}  // namespace FUSEDOPT_NAMESPACE
