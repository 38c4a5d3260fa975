// The sweep before the update of a rule that needs sums over whole tensors, and the kernel that changes their scalars.
#pragma once

#include "kernels.cuh"
#include "sum.cuh"

namespace FUSEDOPT_NAMESPACE {

// Writes the sums of a warp's chunk. terms(i, j, out) gives the terms of its element i, a lane's j-th of the
// kAccumulators for which prepare(at) was called before.
template <class R, int variant, class T, class Prepare, class F>
__device__ void sum_chunk(const UpdateArguments& a, const Chunk<R>& chunk, Prepare&& prepare, F&& terms) {
  const int lane = threadIdx.x % kLanes;
  constexpr int kSums = Shape<R>::sums_of(variant);
  T sum[kSums][kSumsPerLane] = {};
  for (int at = 0; at < chunk.n; at += fusedopt::kAccumulators) {
    prepare(at);
#pragma unroll
    for (int j = 0; j < kSumsPerLane; ++j) {
      const int i = at + j * kLanes + lane;
      if (i >= chunk.n) continue;
      T out[R::sums];
      terms(i, j, out);
#pragma unroll
      for (int k = 0; k < kSums; ++k) sum[k][j] += out[k];
    }
  }
  double* sums = reinterpret_cast<double*>(a.table.words + a.sums) + chunk.index * R::sums;
#pragma unroll
  for (int k = 0; k < kSums; ++k) {
    const T all = total(sum[k]);
    if (lane == 0) sums[k] = static_cast<double>(all);
  }
  for (int k = kSums + lane; k < R::sums; k += kLanes) sums[k] = 0;
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
  sum_chunk<R, variant, T>(a, chunk, nothing, [&](int i, int, T(&out)[R::sums]) {
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

}  // namespace FUSEDOPT_NAMESPACE
