// What the kernels for tensors with factored second moments find in device memory, and how a block's threads add.
#pragma once

#include <cuda_runtime.h>

#include <type_traits>

#include "../cuda/draws.cuh"
#include "../cuda/kernels.cuh"
#include "../cuda/sum.cuh"
#include "../write_back.h"
#include "cuda_table.h"
#include "maths.h"

namespace FUSEDOPT_NAMESPACE {

using fusedopt::FactoredOperand;
using fusedopt::FactoredWhole;
using fusedopt::kAccumulators;

constexpr int kThreads = kFactoredThreads;
static_assert(kThreads == kAccumulators);

// Any storage, looked up as it goes.
struct AnyStored {};

// Switches between storages are long, and loops over a lane's elements are unrolled.
template <class T>
__device__ __noinline__ T get_any(const FactoredOperand& operand, int64_t at) {
  T value = 0;
  with_storage(operand.dtype, [&](auto type) {
    value = static_cast<T>(decode(static_cast<const decltype(type)*>(operand.data)[at]));
  });
  return value;
}
template <class T>
__device__ __noinline__ void set_any(const FactoredOperand& operand, int64_t at, T value) {
  with_storage(operand.dtype, [&](auto type) { encode(value, static_cast<decltype(type)*>(operand.data)[at]); });
}

template <class T, class S>
__device__ T get(const FactoredOperand& operand, int64_t at) {
  if constexpr (std::is_same<S, AnyStored>::value)
    return get_any<T>(operand, at);
  else
    return static_cast<T>(decode(static_cast<const S*>(operand.data)[at]));
}
template <class T, class S>
__device__ void set(const FactoredOperand& operand, int64_t at, T value) {
  if constexpr (std::is_same<S, AnyStored>::value)
    set_any(operand, at, value);
  else
    encode(value, static_cast<S*>(operand.data)[at]);
}

// The tensor of a block, which of its blocks this is, and what is constant over the tensor.
template <class T>
struct FactoredBlock {
  uint64_t* words;  // of the table
  const FactoredEntry* entry;
  int64_t index;
  uint64_t key;  // of its draws
  Adafactor::Scalars<double> scalars;
  double eps1;
  T limit, weight, multiplier;

  // False if the step is none.
  __device__ bool find(const UpdateArguments& a) {
    if (a.skipped && *a.skipped) return false;
    words = a.table.words;
    const uint32_t* starts = reinterpret_cast<const uint32_t*>(words + a.starts);
    const uint32_t which = find_row(starts, a.rows, blockIdx.x, threadIdx.x % kLanes);
    entry = reinterpret_cast<const FactoredEntry*>(words + a.table.rows) + which;
    index = blockIdx.x - starts[which];
    const Factored& t = entry->tensor;
    key = stream(stream(a.key, a.first_slot + t.slot), fusedopt::kParam);
    const uint64_t* numbers =
        words + a.table.scalars + t.entry * fusedopt::cuda::scalar_words(Shape<Adafactor>::kScalars);
    multiplier = static_cast<T>(bit_cast<double>(numbers[0]));
    scalars = Shape<Adafactor>::scalars<double>(reinterpret_cast<const double*>(numbers));
    eps1 = Adafactor::eps1(scalars, t.eps);
    limit = static_cast<T>(1 / eps1);
    weight = static_cast<T>(scalars.weight);
    return true;
  }

  // What lies from a word of the table on.
  template <class Number>
  __device__ Number* at(uint32_t word) const {
    return reinterpret_cast<Number*>(words + word);
  }
};

// Params in any storage, with extras or without.
struct AnyParam {};

// Part of a row of a param: where it lies, and how its elements come and go.
template <class T, class P>
struct FactoredParam {
  const Factored& t;
  int64_t at;

  __device__ FactoredParam(const FactoredBlock<T>& block, int64_t matrix, int64_t row, int64_t col)
      : t(block.entry->tensor), at(element_start(t, fusedopt::kFactoredParam, matrix, row, col)) {}
  __device__ T load(int64_t i) const { return get<T, P>(operand(), at + i * operand().col); }
  __device__ void store(int64_t i, T p) const { set<T, P>(operand(), at + i * operand().col, p); }

 private:
  __device__ const FactoredOperand& operand() const { return t.operand[fusedopt::kFactoredParam]; }
};

template <class T>
struct FactoredParam<T, AnyParam> {
  const Factored& t;
  uint64_t key;
  int64_t matrix, row, col;

  __device__ FactoredParam(const FactoredBlock<T>& block, int64_t matrix, int64_t row, int64_t col)
      : t(block.entry->tensor), key(block.key), matrix(matrix), row(row), col(col) {}
  // Loops over a lane's elements are unrolled, and this is too long to be in them.
  __device__ __noinline__ T load(int64_t i) const {
    const Element element = {*this, i};
    T p;
    element.reload(&p);
    complete_param<T>(element, t.extras.pair, &p);
    return p;
  }
  __device__ __noinline__ void store(int64_t i, T p) const {
    const bool averages = t.operand[fusedopt::kFactoredAverage].data != nullptr;
    write_back(Element{*this, i}, how_of<T>(t.extras, averages), &p);
  }

 private:
  // As write_back.h wants it.
  struct Element {
    const FactoredParam& of;
    int64_t i;

    template <Access access, class F>
    __device__ void each(Operand operand, F&& f) const {
      with_storage(role(operand).dtype, [&](auto type) { each_of<access, decltype(type)>(operand, f); });
    }
    template <Access access, class Stored, class F>
    __device__ void each_of(Operand operand, F&& f) const {
      f(static_cast<Stored*>(role(operand).data)[place(operand)], 0);
    }
    __device__ T* reload(T* p) const {
      *p = get<T, AnyStored>(role(fusedopt::kParam), place(fusedopt::kParam));
      return p;
    }
    __device__ void store(const T* p) const { store_as(fusedopt::kParam, p); }
    __device__ void store_as(Operand operand, const T* p) const {
      set<T, AnyStored>(role(operand), place(operand), *p);
    }
    __device__ void store_by_chance(const T* p) const {
      const int64_t e = (of.matrix * of.t.rows + of.row) * of.t.cols + of.col + i;
      const uint32_t random = AnyDraws{of.key, of.t.whole ? &of.t.extras.numbering : nullptr}(e);
      with_storage(role(fusedopt::kParam).dtype, [&](auto type) {
        encode_by_chance(*p, random,
                         static_cast<decltype(type)*>(role(fusedopt::kParam).data)[place(fusedopt::kParam)]);
      });
    }

   private:
    __device__ static int number(Operand operand) {
      return operand == fusedopt::kParam     ? fusedopt::kFactoredParam
             : operand == fusedopt::kPartner ? fusedopt::kFactoredPartner
             : operand == fusedopt::kAverage ? fusedopt::kFactoredAverage
                                             : fusedopt::kFactoredGrad;
    }
    __device__ const FactoredOperand& role(Operand operand) const { return of.t.operand[number(operand)]; }
    // Of divisions of 64 bits.
    __device__ __noinline__ int64_t place(Operand operand) const {
      return element_start(of.t, number(operand), of.matrix, of.row, of.col) + i * role(operand).col;
    }
  };
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
  __shared__ double all;
  double of_lane[kSumsPerLane];
  if (bring_together(mine, of_lane)) {
    const double sum = total(of_lane);
    if (threadIdx.x == 0) all = sum;
  }
  __syncthreads();
  return all;
}

}  // namespace FUSEDOPT_NAMESPACE
