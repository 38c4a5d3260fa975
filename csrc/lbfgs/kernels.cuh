// The CUDA engine's sweeps over the vectors of L-BFGS. A warp takes a chunk, and adds as the CPU does: results have the
// same bits.
#pragma once

#include "engines.h"

#include "../codec.h"
#include "../cuda/sum.cuh"

namespace FUSEDOPT_NAMESPACE {

using fusedopt::kAccumulators;
using fusedopt::kChunk;
using fusedopt::Layout;
using fusedopt::cuda::kLanes;
using fusedopt::cuda::kWarps;
using fusedopt::history::Scattered;
using fusedopt::history::Segment;

// Vectors that a launch's parameters hold.
constexpr int kSlice = 128;

// The chunk of a warp: a lane has elements lane + 32 q.
struct Span {
  int64_t chunk, begin;
  int n;

  __device__ explicit Span(int64_t numel)
      : chunk(int64_t{blockIdx.x} * kWarps + threadIdx.x / kLanes), begin(chunk * kChunk) {
    const int64_t left = numel - begin;
    n = static_cast<int>(left < 0 ? 0 : left < kChunk ? left : kChunk);
  }
  __device__ static int lane() { return threadIdx.x % kLanes; }
  __device__ static int element(int q) { return q * kLanes + lane(); }
  __device__ bool has(int q) const { return element(q) < n; }
  // A lane's element q of a flat vector, or 0 beyond its end, which changes no sum.
  template <class T>
  __device__ T at(const void* vector, int q) const {
    return has(q) ? static_cast<const T*>(vector)[begin + element(q)] : T(0);
  }
};

// Finds a lane's elements of a scattered vector, in ascending order.
template <class T>
class Finder {
 public:
  __device__ Finder(const Scattered& all, const Span& span) : layouts_(all.layouts), begin_(span.begin) {
    int64_t low = 0, high = all.count;  // the last that does not begin beyond the chunk
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      (all.segments[middle].begin <= span.begin ? low : high) = middle;
    }
    segment_ = all.segments + low;
    if (segment_->data && segment_->layout < 0 && segment_[1].begin >= span.begin + span.n)
      direct_ = static_cast<T*>(segment_->data) + (span.begin - segment_->begin);
  }

  // Null where there are zeros.
  __device__ T* operator()(int element) {
    if (direct_) return direct_ + element;
    const int64_t at = begin_ + element;
    while (segment_[1].begin <= at) ++segment_;
    T* data = static_cast<T*>(segment_->data);
    int64_t index = at - segment_->begin;
    if (!data || segment_->layout < 0) return data ? data + index : nullptr;
    const Layout& layout = layouts_[segment_->layout];
    return data + offset_of(layout, index);
  }

 private:
  const Segment* segment_;
  const Layout* layouts_;
  int64_t begin_;
  T* direct_ = nullptr;
};

// x.g and, with `pair`, x.y of a chunk; x(q) is a lane's element q.
template <bool pair, class T, class X>
__device__ void dots(X&& x, const T (&g)[kPerLane], const T (&y)[kPerLane], T* out) {
  T with_g[kSumsPerLane] = {}, with_y[kSumsPerLane] = {};
#pragma unroll
  for (int q = 0; q < kPerLane; ++q) {
    // All loads of doubles at once would leave too few registers.
    if (sizeof(T) == 8 && q % (pair ? 8 : 16) == 0) asm volatile("" ::: "memory");
    const T e = x(q);
    with_g[q % kSumsPerLane] = fma(e, g[q], with_g[q % kSumsPerLane]);
    if constexpr (pair) with_y[q % kSumsPerLane] = fma(e, y[q], with_y[q % kSumsPerLane]);
  }
  const T a = total(with_g), b = pair ? total(with_y) : T(0);
  if (Span::lane() > 0) return;
  out[0] = a;
  out[1] = b;
}

template <class T>
struct ProductsArguments {
  int64_t numel;
  Scattered grad;
  const void *previous, *direction;
  T t;
  T* sums;
  int results;
  int first, count;  // which of the vectors these are
  const void* vectors[kSlice];
};

template <class T, bool pair>
__global__ void __launch_bounds__(kWarps* kLanes, 1) history_products(const __grid_constant__ ProductsArguments<T> a) {
  const Span span(a.numel);
  if (span.n == 0) return;
  T g[kPerLane], y[kPerLane];
  Finder<const T> grad(a.grad, span);
#pragma unroll
  for (int q = 0; q < kPerLane; ++q) {
    const T* at = span.has(q) ? grad(Span::element(q)) : nullptr;
    g[q] = at ? *at : T(0);
    y[q] = pair ? g[q] - span.at<T>(a.previous, q) : T(0);
  }
  T* out = a.sums + span.chunk * a.results;
  if (a.first == 0) {
    T largest = 0, sum[kSumsPerLane] = {};
#pragma unroll
    for (int q = 0; q < kPerLane; ++q) {
      largest = maximum(largest, absolute(g[q]));
      sum[q % kSumsPerLane] += absolute(g[q]);
    }
    largest = largest_of_lanes(largest);
    const T all = total(sum);
    if (Span::lane() == 0) {
      out[0] = largest;
      out[1] = all;
    }
    if constexpr (pair) {
      dots<true>([&](int q) { return y[q]; }, g, y, out + 2);
      dots<true>([&](int q) { return a.t * span.at<T>(a.direction, q); }, g, y, out + 4);
    }
  }
  out += 2 + 2 * (a.first + (pair ? 2 : 0));
  for (int k = 0; k < a.count; ++k, out += 2) dots<pair>([&](int q) { return span.at<T>(a.vectors[k], q); }, g, y, out);
}

template <class T>
struct DirectionArguments {
  int64_t numel;
  Scattered grad;
  void *previous, *direction, *y, *s;
  T t, scale;
  T* sums;
  bool begins, ends;
  int count, scale_before;  // the term before which the sum is scaled; -1: none
  const void* vectors[kSlice];
  T factors[kSlice];
};

template <class T>
__global__ void __launch_bounds__(kWarps* kLanes, 1)
    history_direction(const __grid_constant__ DirectionArguments<T> a) {
  const Span span(a.numel);
  if (span.n == 0) return;
  T* previous = static_cast<T*>(a.previous) + span.begin;
  T* direction = static_cast<T*>(a.direction) + span.begin;
  T sum[kPerLane];
  if (a.begins) {
    Finder<const T> grad(a.grad, span);
#pragma unroll
    for (int q = 0; q < kPerLane; ++q) {
      sum[q] = 0;
      if (!span.has(q)) continue;
      const int e = Span::element(q);
      const T* at = grad(e);
      const T g = at ? *at : T(0);
      if (a.y) {
        static_cast<T*>(a.y)[span.begin + e] = g - previous[e];
        static_cast<T*>(a.s)[span.begin + e] = a.t * direction[e];
      }
      previous[e] = g;
      sum[q] = -g;
    }
  } else {
#pragma unroll
    for (int q = 0; q < kPerLane; ++q) sum[q] = span.at<T>(a.direction, q);
  }
  const auto scale = [&] {
#pragma unroll
    for (int q = 0; q < kPerLane; ++q) sum[q] *= a.scale;
  };
  for (int k = 0; k < a.count; ++k) {
    if (k == a.scale_before) scale();
#pragma unroll
    for (int q = 0; q < kPerLane; ++q) sum[q] = fma(a.factors[k], span.at<T>(a.vectors[k], q), sum[q]);
  }
  if (a.count == a.scale_before) scale();
#pragma unroll
  for (int q = 0; q < kPerLane; ++q)
    if (span.has(q)) direction[Span::element(q)] = sum[q];
  if (!a.ends) return;

  T largest = 0, slope[kSumsPerLane] = {};
#pragma unroll
  for (int q = 0; q < kPerLane; ++q) {
    if (!span.has(q)) continue;
    largest = maximum(largest, absolute(sum[q]));
    slope[q % kSumsPerLane] = fma(sum[q], previous[Span::element(q)], slope[q % kSumsPerLane]);
  }
  largest = largest_of_lanes(largest);
  const T all = total(slope);
  if (Span::lane() > 0) return;
  T* out = a.sums + span.chunk * fusedopt::history::Direction::kResults;
  out[0] = largest;
  out[1] = all;
}

// A block for each result, a thread for each accumulator.
template <class T>
__global__ void __launch_bounds__(kAccumulators)
    history_conclude(const T* sums, int64_t chunks, int results, double* out) {
  double mine = 0, all[kSumsPerLane];
  for (int64_t i = threadIdx.x; i < chunks; i += kAccumulators) {
    const double one = static_cast<double>(sums[i * results + blockIdx.x]);
    mine = blockIdx.x == 0 ? maximum(mine, one) : mine + one;
  }
  if (!bring_together(mine, all)) return;
  const double result = blockIdx.x == 0 ? largest(all) : total(all);
  if (threadIdx.x == 0) out[blockIdx.x] = result;
}

template <class T>
__global__ void __launch_bounds__(kWarps* kLanes) history_move(const __grid_constant__ fusedopt::history::Move a, T t) {
  const Span span(a.numel);
  if (span.n == 0) return;
  Finder<T> param(a.param, span);
#pragma unroll 8
  for (int q = 0; q < kPerLane; ++q) {
    if (!span.has(q)) continue;
    T* p = param(Span::element(q));
    T* origin = a.origin ? static_cast<T*>(a.origin) + span.begin + Span::element(q) : nullptr;
    if (origin && a.fetch) *origin = *p;
    *p = fma(t, span.at<T>(a.direction, q), origin ? *origin : *p);
  }
}

template <class T>
__global__ void __launch_bounds__(kWarps* kLanes) history_gather(const __grid_constant__ fusedopt::history::Gather a) {
  const Span span(a.numel);
  if (span.n == 0) return;
  Finder<const T> grad(a.grad, span);
#pragma unroll 8
  for (int q = 0; q < kPerLane; ++q) {
    if (!span.has(q)) continue;
    const T* at = grad(Span::element(q));
    static_cast<T*>(a.out)[span.begin + Span::element(q)] = at ? *at : T(0);
  }
}

}  // namespace FUSEDOPT_NAMESPACE
