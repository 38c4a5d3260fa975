// The sweep before the update of a rule that needs sums over whole tensors, and the kernel that changes their scalars.
#pragma once

#include "any.cuh"
#include "sum.cuh"

namespace FUSEDOPT_NAMESPACE {

// Writes the sums of a warp's chunk. terms(i, j, out) gives the terms of its element i, a lane's j-th of the
// kAccumulators for which prepare(at) was called before.
template <class R, class T, class Prepare, class F>
__device__ void sum_chunk(const UpdateArguments& a, const Chunk<R>& chunk, Prepare&& prepare, F&& terms) {
  const int lane = threadIdx.x % kLanes;
  T sum[R::sums][kSumsPerLane] = {};
  for (int at = 0; at < chunk.n; at += fusedopt::kAccumulators) {
    prepare(at);
#pragma unroll
    for (int j = 0; j < kSumsPerLane; ++j) {
      const int i = at + j * kLanes + lane;
      if (i >= chunk.n) continue;
      T out[R::sums];
      terms(i, j, out);
#pragma unroll
      for (int k = 0; k < R::sums; ++k) sum[k][j] += out[k];
    }
  }
  double* sums = reinterpret_cast<double*>(a.table.words + a.sums) + chunk.index * R::sums;
#pragma unroll
  for (int k = 0; k < R::sums; ++k) {
    const T all = total(sum[k]);
    if (lane == 0) sums[k] = static_cast<double>(all);
  }
}

// Dense rows of one mix. Neighbouring lanes take neighbouring elements.
template <class R, int variant, class M, class T>
__global__ void __launch_bounds__(fusedopt::cuda::kWarps* kLanes) measure(const __grid_constant__ UpdateArguments a) {
  constexpr int kStates = Shape<R>::kStates;
  Chunk<R> chunk;
  if (!chunk.find(a)) return;
  const TableRow<kStates> row = *chunk.row;
  const T* numbers = static_cast<const T*>(chunk.numbers);
  const T multiplier = numbers[0];
  const auto scalars = Shape<R>::template scalars<T>(numbers);
  const auto nothing = [](int) {};
  sum_chunk<R, T>(a, chunk, nothing, [&](int i, int, T(&out)[R::sums]) {
    const int64_t e = chunk.begin + i;
    T s[kStates] = {};
#pragma unroll
    for (int k = 0; k < kStates; ++k)
      if (R::keeps(variant, k)) s[k] = static_cast<T>(decode(static_cast<const typename M::State*>(row.state[k])[e]));
    const T p = static_cast<T>(decode(static_cast<const typename M::Param*>(row.param)[e]));
    const T g = static_cast<T>(decode(static_cast<const typename M::Grad*>(row.grad)[e])) * multiplier;
    R::template measure<variant>(p, g, s, scalars, out);
  });
}

template <class R, int variant, class T>
__global__ void __launch_bounds__(kAnyWarps* kLanes) measure_any(const __grid_constant__ UpdateArguments a) {
  static_assert(kAnyTile == fusedopt::kAccumulators);
  using Numbers = AnyTile<R, variant, T>;
  __shared__ typename Numbers::Memory memory[kAnyWarps];
  Chunk<R> chunk;
  if (!chunk.template find<kAnyWarps>(a)) return;
  const Numbers tile(a, chunk, memory[threadIdx.x / kLanes]);
  const T* numbers = static_cast<const T*>(chunk.numbers);
  const auto scalars = Shape<R>::template scalars<T>(numbers);
  const auto load = [&](int at) { tile.load(tile.share(chunk, at)); };
  sum_chunk<R, T>(a, chunk, load, [&](int, int j, T(&out)[R::sums]) {
    T s[Numbers::kStates] = {};
    for (int k = 0; k < Numbers::kStates; ++k)
      if (R::keeps(variant, k)) s[k] = tile.column(2 + k)[j];
    R::template measure<variant>(tile.column(0)[j], tile.column(1)[j] * numbers[0], s, scalars, out);
  });
}

// A block for each row of a launch, a thread for each accumulator: adds the sums of the row's chunks and lets the rule
// change the scalars.
template <class R, class T>
__global__ void __launch_bounds__(fusedopt::kAccumulators) conclude(const __grid_constant__ UpdateArguments a) {
  if (a.skipped && *a.skipped) return;
  const uint32_t* starts = reinterpret_cast<const uint32_t*>(a.table.words + a.starts);
  const uint32_t first = starts[blockIdx.x], last = starts[blockIdx.x + 1];
  // Slots without chunks in this launch may hold what an earlier step has left.
  if (first == last) return;
  const double* sums = reinterpret_cast<const double*>(a.table.words + a.sums);
  __shared__ double partial[R::sums][fusedopt::kAccumulators];
  for (int k = 0; k < R::sums; ++k) {
    double sum = 0;
    for (uint32_t i = first + threadIdx.x; i < last; i += fusedopt::kAccumulators) sum += sums[i * R::sums + k];
    partial[k][threadIdx.x] = sum;
  }
  __syncthreads();
  if (threadIdx.x >= kLanes) return;
  double all[R::sums];
  for (int k = 0; k < R::sums; ++k) {
    double mine[kSumsPerLane];
    for (int j = 0; j < kSumsPerLane; ++j) mine[j] = partial[k][j * kLanes + threadIdx.x];
    all[k] = total(mine);
  }
  if (threadIdx.x > 0) return;
  const auto* row = reinterpret_cast<const TableRow<Shape<R>::kStates>*>(a.table.words + a.table.rows) + blockIdx.x;
  T* numbers = reinterpret_cast<T*>(a.table.words + a.table.scalars +
                                    row->entry * fusedopt::cuda::scalar_words(Shape<R>::kScalars));
  auto scalars = Shape<R>::template scalars<T>(numbers);
  R::conclude(all, scalars);
  memcpy(numbers + 1, &scalars, sizeof(scalars));
}

}  // namespace FUSEDOPT_NAMESPACE
