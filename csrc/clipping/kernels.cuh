// The kernels that add up the terms of a norm and scale gradients. A warp takes a chunk, and adds as the CPU does:
// results have the same bits.
#pragma once

#include "../cuda/kernels.cuh"
#include "../cuda/sum.cuh"
#include "clip.h"

namespace FUSEDOPT_NAMESPACE {

using fusedopt::kAccumulators;
using fusedopt::Term;
using fusedopt::cuda::kWarps;

// A warp's share.
struct NormChunk {
  void* data;
  int64_t begin;
  int n;
  Dtype dtype;
  bool complex;

  template <class Grad>
  __device__ NormChunk(const Grad& grad, uint32_t chunk)
      : data(grad.data), begin(static_cast<int64_t>(chunk) * kChunk), dtype(grad.dtype), complex(grad.complex) {
    const int64_t left = grad.numel - begin;
    n = static_cast<int>(left < kChunk ? left : kChunk);
  }
};

// Gradients that are dense, as many as a launch's parameters hold.
template <int capacity>
struct DenseGrads {
  static constexpr bool kDense = true;
  struct Entry {
    void* data;
    int64_t numel;
    uint32_t first;  // of its chunks
    Dtype dtype;
    bool complex;
  };
  uint32_t count, chunks;
  Entry entry[capacity];

  __device__ NormChunk find(uint32_t chunk) const {
    uint32_t low = 0, high = count;  // the last that does not begin beyond the chunk
    while (high - low > 1) {
      const uint32_t middle = (low + high) / 2;
      (entry[middle].first <= chunk ? low : high) = middle;
    }
    return {entry[low], chunk - entry[low].first};
  }
  __device__ int64_t place(int64_t e) const { return e; }
};

// One gradient of any strides.
struct StridedGrad {
  static constexpr bool kDense = false;
  uint32_t chunks;
  fusedopt::NormEntry grad;
  fusedopt::Layout layout;

  __device__ NormChunk find(uint32_t chunk) const { return {grad, chunk}; }
  __device__ int64_t place(int64_t e) const { return offset_of(layout, e); }
};

template <class Grads>
struct MeasureArguments {
  fusedopt::NormOrder order;
  double* sums;  // of the first of these chunks
  Grads grads;
};

// Squares of a chunk: all loads of a dense whole one are under way before the first is used.
template <class S, class Grads>
__device__ void add_squares(const Grads& grads, const NormChunk& chunk, double (&sum)[kSumsPerLane]) {
  const S* data = static_cast<const S*>(chunk.data);
  const int lane = threadIdx.x % kLanes;
  if (Grads::kDense && chunk.n == kChunk) {
    S raw[kPerLane];
#pragma unroll
    for (int q = 0; q < kPerLane; ++q) raw[q] = data[chunk.begin + q * kLanes + lane];
#pragma unroll
    for (int q = 0; q < kPerLane; ++q) {
      const double e = static_cast<double>(decode(raw[q]));
      sum[q % kSumsPerLane] += e * e;
    }
    return;
  }
  for (int at = 0; at < chunk.n; at += kAccumulators) {
#pragma unroll
    for (int j = 0; j < kSumsPerLane; ++j) {
      const int i = at + j * kLanes + lane;
      if (i >= chunk.n) continue;
      const double e = static_cast<double>(decode(data[grads.place(chunk.begin + i)]));
      sum[j] += e * e;
    }
  }
}

template <class Grads>
__global__ void __launch_bounds__(kWarps* kLanes, 2) norm_squares(const __grid_constant__ MeasureArguments<Grads> a) {
  const uint32_t index = blockIdx.x * kWarps + threadIdx.x / kLanes;
  if (index >= a.grads.chunks) return;
  const NormChunk chunk = a.grads.find(index);
  double sum[kSumsPerLane] = {};
  with_storage(chunk.dtype, [&](auto type) { add_squares<decltype(type)>(a.grads, chunk, sum); });
  const double all = total(sum);
  if (threadIdx.x % kLanes == 0) a.sums[index] = all;
}

__device__ inline double read_element(const NormChunk& chunk, int64_t place) {
  double element = 0;
  with_storage(chunk.dtype, [&](auto type) {
    element = static_cast<double>(decode(static_cast<const decltype(type)*>(chunk.data)[place]));
  });
  return element;
}

// Any other term.
template <class Grads>
__global__ void __launch_bounds__(kWarps* kLanes) norm_terms(const __grid_constant__ MeasureArguments<Grads> a) {
  const uint32_t index = blockIdx.x * kWarps + threadIdx.x / kLanes;
  if (index >= a.grads.chunks) return;
  const NormChunk chunk = a.grads.find(index);
  const int lane = threadIdx.x % kLanes, n = chunk.complex ? chunk.n / 2 : chunk.n;
  const bool keeps_largest = a.order.term == Term::largest;
  double sum[kSumsPerLane] = {};
  for (int at = 0; at < n; at += kAccumulators) {
    for (int j = 0; j < kSumsPerLane; ++j) {
      const int i = at + j * kLanes + lane;
      if (i >= n) continue;
      const auto real = [&](int64_t e) { return read_element(chunk, a.grads.place(chunk.begin + e)); };
      double size;
      if (chunk.complex) {
        const double re = real(2 * i), im = real(2 * i + 1);
        size = sqrt(re * re + im * im);
      } else {
        size = absolute(real(i));
      }
      if (a.order.term == Term::power) size = power(size, a.order.p);
      sum[j] = keeps_largest ? maximum(sum[j], size) : sum[j] + size;
    }
  }
  const double all = keeps_largest ? largest(sum) : total(sum);
  if (lane == 0) a.sums[index] = all;
}

// A block for each chunk of sums, a thread for each accumulator.
__global__ void __launch_bounds__(kAccumulators)
    norm_fold(const double* sums, int64_t count, bool keeps_largest, double* out) {
  double mine = 0, all[kSumsPerLane];
  const int64_t begin = int64_t{blockIdx.x} * kChunk;
#pragma unroll
  for (int r = 0; r < kChunk; r += kAccumulators) {
    const int64_t i = begin + r + threadIdx.x;
    if (i < count) mine = keeps_largest ? maximum(mine, sums[i]) : mine + sums[i];
  }
  if (!bring_together(mine, all)) return;
  const double result = keeps_largest ? largest(all) : total(all);
  if (threadIdx.x == 0) out[blockIdx.x] = result;
}

struct ClipArguments {
  const double* total;
  double scale;
  DeviceNumber scale_there;  // in its place, if given
  fusedopt::ClipRequest request;
  void* norm;
  double* numbers;
};

__global__ void norm_clip(const __grid_constant__ ClipArguments a) {
  const double scale = a.scale_there.at ? read_number(a.scale_there.at, a.scale_there.dtype) : a.scale;
  const Clip result = clip(*a.total, scale, a.request);
  if (a.request.wide)
    *static_cast<double*>(a.norm) = result.norm;
  else
    *static_cast<float*>(a.norm) = static_cast<float>(result.norm);
  a.numbers[0] = result.coefficient;
  a.numbers[1] = result.divisor;
}

template <class Grads>
struct ScaleArguments {
  double coefficient;
  DeviceNumber coefficient_there;  // in its place, if given
  Grads grads;
};

template <class Grads>
__global__ void __launch_bounds__(kWarps* kLanes) norm_scale(const __grid_constant__ ScaleArguments<Grads> a) {
  const uint32_t index = blockIdx.x * kWarps + threadIdx.x / kLanes;
  if (index >= a.grads.chunks) return;
  const double coefficient =
      a.coefficient_there.at ? read_number(a.coefficient_there.at, a.coefficient_there.dtype) : a.coefficient;
  if (coefficient == 1) return;
  const NormChunk chunk = a.grads.find(index);
  with_storage(chunk.dtype, [&](auto type) {
    using S = decltype(type);
    using T = decltype(decode(type));
    S* data = static_cast<S*>(chunk.data);
    const T by = static_cast<T>(coefficient);
#pragma unroll 8
    for (int i = threadIdx.x % kLanes; i < chunk.n; i += kLanes) {
      S& x = data[a.grads.place(chunk.begin + i)];
      encode(decode(x) * by, x);
    }
  });
}

}  // namespace FUSEDOPT_NAMESPACE
