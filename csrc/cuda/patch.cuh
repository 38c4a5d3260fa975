// How words that the host has sent come into the table.
#pragma once

#include <cuda_runtime.h>

#include "table.h"

namespace FUSEDOPT_NAMESPACE {

using fusedopt::cuda::Patch;

template <int capacity>
__device__ void apply(uint64_t* words, const Patch<capacity>& patch) {
  for (uint32_t i = threadIdx.x; i < patch.count; i += blockDim.x) words[patch.at[i]] = patch.word[i];
}

// Words that do not fit beside the arguments of the advance kernel.
template <int capacity>
__global__ void __launch_bounds__(fusedopt::cuda::kAdvanceThreads)
    patch_table(uint64_t* words, const __grid_constant__ Patch<capacity> patch) {
  apply(words, patch);
}

}  // namespace FUSEDOPT_NAMESPACE
