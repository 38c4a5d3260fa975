// What the kernels for tensors with factored second moments find in device memory, and how a block's threads add.
#pragma once

#include <cuda_runtime.h>

#include <type_traits>

#include "../rules/adafactor.h"
#include "../tiling.h"
#include "kernels.cuh"
#include "sum.cuh"

namespace FUSEDOPT_NAMESPACE {

using fusedopt::Factored;
using fusedopt::FactoredOperand;
using fusedopt::kAccumulators;

constexpr int kThreads = kTileStrips * kLanes;
static_assert(kThreads == kAccumulators);
constexpr int kPerLane = kChunk / kLanes;  // elements of a row

struct FactoredEntry {
  Factored tensor;
  fusedopt::FactoredSums sums;
  void* factors;  // of each column
  double* means;  // of each matrix's row_var, clamped
};

struct FactoredArguments {
  FactoredEntry* entries;
  const uint32_t* starts;  // of the blocks of each tensor
  uint32_t count;
  const uint32_t* skipped;  // null: known to be 0
};

struct FactoredPrepare {
  FactoredEntry* entries;
  uint32_t count;
  DeviceNumber grad_scale, found_inf;
  uint32_t* skipped;
};

// Any storage, looked up as it goes.
struct AnyStored {};

template <class T, class S>
__device__ T get(const FactoredOperand& operand, int64_t at) {
  if constexpr (!std::is_same<S, AnyStored>::value) {
    return static_cast<T>(decode(static_cast<const S*>(operand.data)[at]));
  } else {
    T value = 0;
    with_storage(operand.dtype, [&](auto type) {
      value = static_cast<T>(decode(static_cast<const decltype(type)*>(operand.data)[at]));
    });
    return value;
  }
}
template <class T, class S>
__device__ void set(const FactoredOperand& operand, int64_t at, T value) {
  if constexpr (!std::is_same<S, AnyStored>::value) {
    encode(value, static_cast<S*>(operand.data)[at]);
  } else {
    with_storage(operand.dtype, [&](auto type) { encode(value, static_cast<decltype(type)*>(operand.data)[at]); });
  }
}

// The tensor of a block, and which of its blocks this is.
template <class T>
struct FactoredBlock {
  const FactoredEntry* entry;
  int64_t index;
  Adafactor::Scalars scalars;
  T limit, weight, multiplier;

  // False if the step is none.
  __device__ bool find(const FactoredArguments& a) {
    if (a.skipped && *a.skipped) return false;
    const uint32_t which = find_row(a.starts, a.count, blockIdx.x, threadIdx.x % kLanes);
    entry = a.entries + which;
    index = blockIdx.x - a.starts[which];
    memcpy(&scalars, entry->tensor.scalars, sizeof(scalars));
    limit = static_cast<T>(1 / scalars.eps1);
    weight = static_cast<T>(scalars.weight);
    multiplier = static_cast<T>(scalars.multiplier);
    return true;
  }
};

// Adds what the warps found of a tile, one after another.
__device__ inline double add_strips(double mine) {
  __shared__ double strips[kTileStrips];
  if (threadIdx.x % kLanes == 0) strips[threadIdx.x / kLanes] = mine;
  __syncthreads();
  double sum = 0;
  for (int i = 0; i < kTileStrips; ++i) sum += strips[i];
  __syncthreads();
  return sum;
}

// Doubles in the order of step.h, by one warp.
__device__ inline double add_by_warp(const double* values, int64_t count) {
  double sum[kSumsPerLane] = {};
  for (int64_t first = 0; first < count; first += kAccumulators)
    for (int j = 0; j < kSumsPerLane; ++j) {
      const int64_t i = first + j * kLanes + threadIdx.x % kLanes;
      if (i < count) sum[j] += values[i];
    }
  return total(sum);
}

// The sum of all threads' accumulators, for all of the block.
__device__ inline double add_accumulators(double mine) {
  __shared__ double partial[kAccumulators];
  __shared__ double all;
  partial[threadIdx.x] = mine;
  __syncthreads();
  if (threadIdx.x < kLanes) {
    double sum[kSumsPerLane];
    for (int j = 0; j < kSumsPerLane; ++j) sum[j] = partial[j * kLanes + threadIdx.x];
    const double result = total(sum);
    if (threadIdx.x == 0) all = result;
  }
  __syncthreads();
  return all;
}

}  // namespace FUSEDOPT_NAMESPACE
