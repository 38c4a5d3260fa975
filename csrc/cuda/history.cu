// The CUDA engine's sweeps over the vectors of L-BFGS. A warp takes a chunk, and adds as the CPU does: results have the
// same bits.
#define FUSEDOPT_NAMESPACE fusedopt_cuda
#include "history.h"

#include <algorithm>

#include "../codec.h"
#include "runtime.h"
#include "sum.cuh"

namespace FUSEDOPT_NAMESPACE {

using fusedopt::kAccumulators;
using fusedopt::kChunk;
using fusedopt::Layout;
using fusedopt::cuda::kLanes;
using fusedopt::cuda::kWarps;
using fusedopt::history::Scattered;
using fusedopt::history::Segment;

constexpr int kPerLane = kChunk / kLanes;
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

// Where an element of a strided tensor lies. Not inlined: the divisions, 32 times unrolled, took a minute to compile.
__device__ __noinline__ int64_t offset_of(const Layout& layout, int64_t index) {
  int64_t offset = 0;
  for (int d = layout.dims - 1; d >= 0; --d) {
    offset += index % layout.size[d] * layout.stride[fusedopt::kParam][d];
    index /= layout.size[d];
  }
  return offset;
}

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
__device__ T largest_of_lanes(T mine) {
#pragma unroll
  for (int lanes = kLanes / 2; lanes > 0; lanes /= 2) mine = maximum(mine, __shfl_xor_sync(~0u, mine, lanes));
  return mine;
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
  __shared__ double partial[kAccumulators];
  double mine = 0;
  for (int64_t i = threadIdx.x; i < chunks; i += kAccumulators) {
    const double one = static_cast<double>(sums[i * results + blockIdx.x]);
    mine = blockIdx.x == 0 ? maximum(mine, one) : mine + one;
  }
  partial[threadIdx.x] = mine;
  __syncthreads();
  if (threadIdx.x >= kLanes) return;
  double all[kSumsPerLane], largest = 0;
  for (int j = 0; j < kSumsPerLane; ++j) {
    all[j] = partial[j * kLanes + threadIdx.x];
    largest = maximum(largest, all[j]);
  }
  const double sum = total(all);
  largest = largest_of_lanes(largest);
  if (threadIdx.x == 0) out[blockIdx.x] = blockIdx.x == 0 ? largest : sum;
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

namespace fusedopt::cuda {
namespace {

template <class T>
cudaError_t bring_for() {
  return bring(fusedopt_cuda::history_products<T, true>, fusedopt_cuda::history_products<T, false>,
               fusedopt_cuda::history_direction<T>, fusedopt_cuda::history_conclude<T>, fusedopt_cuda::history_move<T>,
               fusedopt_cuda::history_gather<T>);
}

uint32_t blocks_of(int64_t numel) { return static_cast<uint32_t>((history::chunks_of(numel) + kWarps - 1) / kWarps); }

template <class... Parameters, class... Arguments>
void put_chunks(int64_t numel, const Place& place, void (*kernel)(Parameters...), const Arguments&... arguments) {
  put(place, blocks_of(numel), kWarps * kLanes, kernel, arguments...);
}

template <class T>
void conclude(int64_t numel, int results, const T* sums, double* out, const Place& place) {
  put(place, static_cast<uint32_t>(results), kAccumulators, fusedopt_cuda::history_conclude<T>, sums,
      history::chunks_of(numel), results, out);
}

template <class T>
void put_products(const history::Products& job, T* sums, double* out, const Place& place) {
  int first = 0;
  do {
    fusedopt_cuda::ProductsArguments<T> arguments = {job.numel,
                                                     job.grad,
                                                     job.previous,
                                                     job.direction,
                                                     static_cast<T>(job.t),
                                                     sums,
                                                     job.results(),
                                                     first,
                                                     std::min(job.count - first, fusedopt_cuda::kSlice),
                                                     {}};
    std::copy_n(job.vectors + first, arguments.count, arguments.vectors);
    put_chunks(job.numel, place,
               job.previous ? fusedopt_cuda::history_products<T, true> : fusedopt_cuda::history_products<T, false>,
               arguments);
    first += arguments.count;
  } while (first < job.count);
  conclude(job.numel, job.results(), sums, out, place);
}

template <class T>
void put_direction(const history::Direction& job, T* sums, double* out, const Place& place, bool& wrote) {
  const int all = job.dir_count + job.step_count;
  int first = 0;
  do {
    const int count = std::min(all - first, fusedopt_cuda::kSlice), last = first + count;
    const bool ends = last == all, scales = job.dir_count >= first && (job.dir_count < last || ends);
    fusedopt_cuda::DirectionArguments<T> arguments = {job.numel,
                                                      job.grad,
                                                      job.previous,
                                                      job.direction,
                                                      job.y,
                                                      job.s,
                                                      static_cast<T>(job.t),
                                                      static_cast<T>(job.scale),
                                                      sums,
                                                      first == 0,
                                                      ends,
                                                      count,
                                                      scales ? job.dir_count - first : -1,
                                                      {},
                                                      {}};
    for (int k = 0; k < count; ++k) {
      const int at = first + k;
      const history::Term& term = at < job.dir_count ? job.dirs[at] : job.steps[at - job.dir_count];
      arguments.vectors[k] = term.vector;
      arguments.factors[k] = static_cast<T>(term.factor);
    }
    put_chunks(job.numel, place, fusedopt_cuda::history_direction<T>, arguments);
    wrote = true;
    first = last;
  } while (first < all);
  conclude(job.numel, job.kResults, sums, out, place);
}

}  // namespace

bool ready_for_history(const Place& place) {
  static Brought brought;
  const bool captured = capturing(place);
  brought.to(place.device, [] {
    for (const cudaError_t error : {bring_for<float>(), bring_for<double>()})
      if (error != cudaSuccess) return error;
    return cudaSuccess;
  });
  return captured;
}

void products(const history::Products& job, bool wide, void* sums, double* out, const Place& place) {
  use(place.device);
  wide ? put_products(job, static_cast<double*>(sums), out, place)
       : put_products(job, static_cast<float*>(sums), out, place);
}

void direction(const history::Direction& job, bool wide, void* sums, double* out, const Place& place) {
  use(place.device);
  put_together([&](bool& wrote) {
    wide ? put_direction(job, static_cast<double*>(sums), out, place, wrote)
         : put_direction(job, static_cast<float*>(sums), out, place, wrote);
  });
}

void move(const history::Move& job, bool wide, const Place& place) {
  use(place.device);
  if (wide)
    put_chunks(job.numel, place, fusedopt_cuda::history_move<double>, job, job.t);
  else
    put_chunks(job.numel, place, fusedopt_cuda::history_move<float>, job, static_cast<float>(job.t));
}

void gather(const history::Gather& job, bool wide, const Place& place) {
  use(place.device);
  put_chunks(job.numel, place, wide ? fusedopt_cuda::history_gather<double> : fusedopt_cuda::history_gather<float>,
             job);
}

}  // namespace fusedopt::cuda
