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

// The sum of all accumulators as total() in sum.cuh has it, where a lane has those of its vectors: its j-th is number
// j / vector * kLanes * vector + lane * vector + j % vector. Lanes that add theirs to each other's share the work.
template <int vector>
__device__ double total_of_vectors(double (&sum)[kSumsPerLane]) {
#pragma unroll
  for (int half = kSumsPerLane / 2; half >= vector; half /= 2) {
#pragma unroll
    for (int j = 0; j < half; ++j) sum[j] += sum[half + j];
  }
  int count = vector;
#pragma unroll
  for (int lanes = kLanes / 2; lanes > 0; lanes /= 2) {
    if (count > 1) {
      count /= 2;
      const bool upper = threadIdx.x & lanes;
#pragma unroll
      for (int j = 0; j < count; ++j) {
        const double given = upper ? sum[j] : sum[count + j];
        sum[j] = (upper ? sum[count + j] : sum[j]) + __shfl_xor_sync(~0u, given, lanes);
      }
    } else {
      sum[0] += __shfl_xor_sync(~0u, sum[0], lanes);
    }
  }
  // What is left are the accumulators within a vector, of which the first halving sent the upper half to the upper
  // lanes.
  double all = sum[0];
#pragma unroll
  for (int half = vector / 2, lanes = kLanes / 2; half > 0; half /= 2, lanes /= 2)
    all += __shfl_xor_sync(~0u, all, lanes);
  return all;
}

template <class S>
__device__ void add_square(S x, double& sum) {
  const double e = static_cast<double>(decode(x));
  sum += e * e;
}

// Of a dense whole chunk all loads are under way before the first is used. Returns the numbers of a Word.
template <class Word, class S>
__device__ int add_squares_of_whole(const S* data, double (&sum)[kSumsPerLane]) {
  constexpr int kVector = sizeof(Word) / sizeof(S), kWords = kPerLane / kVector;
  Word raw[kWords];
#pragma unroll
  for (int w = 0; w < kWords; ++w) raw[w] = reinterpret_cast<const Word*>(data)[w * kLanes + threadIdx.x % kLanes];
  S numbers[kPerLane];
  memcpy(numbers, raw, sizeof(raw));
#pragma unroll
  for (int q = 0; q < kPerLane; ++q) add_square(numbers[q], sum[q % kSumsPerLane]);
  return kVector;
}

// Returns how long the vectors are of which a lane has the sums.
template <class S, class Grads>
__device__ int add_squares(const Grads& grads, const NormChunk& chunk, double (&sum)[kSumsPerLane]) {
  const S* data = static_cast<const S*>(chunk.data);
  if (Grads::kDense && chunk.n == kChunk) {
    const bool aligned = reinterpret_cast<uint64_t>(data) % sizeof(uint4) == 0;
    data += chunk.begin;
    return aligned ? add_squares_of_whole<uint4>(data, sum) : add_squares_of_whole<S>(data, sum);
  }
  for (int at = 0; at < chunk.n; at += kAccumulators) {
#pragma unroll
    for (int j = 0; j < kSumsPerLane; ++j) {
      const int i = at + j * kLanes + static_cast<int>(threadIdx.x) % kLanes;
      if (i < chunk.n) add_square(data[grads.place(chunk.begin + i)], sum[j]);
    }
  }
  return 1;
}

template <class Grads>
__global__ void __launch_bounds__(kWarps* kLanes, 2) norm_squares(const __grid_constant__ MeasureArguments<Grads> a) {
  const uint32_t index = blockIdx.x * kWarps + threadIdx.x / kLanes;
  if (index >= a.grads.chunks) return;
  const NormChunk chunk = a.grads.find(index);
  double sum[kSumsPerLane] = {};
  int vector = 1;
  with_storage(chunk.dtype, [&](auto type) { vector = add_squares<decltype(type)>(a.grads, chunk, sum); });
  const double all = vector == 8   ? total_of_vectors<8>(sum)
                     : vector == 4 ? total_of_vectors<4>(sum)
                     : vector == 2 ? total_of_vectors<2>(sum)
                                   : total(sum);
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
