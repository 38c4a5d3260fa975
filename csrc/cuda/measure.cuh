// The sweep before the update of a rule that needs sums over whole tensors, and the kernel that changes their scalars.
#pragma once

#include "any.cuh"
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

template <class R, int variant, class T>
__global__ void __launch_bounds__(fusedopt::cuda::kWarps* kLanes, kAnyBlocks)
    measure_any(const __grid_constant__ UpdateArguments a) {
  static_assert(kAnyTile == fusedopt::kAccumulators);
  constexpr int kStates = Shape<R>::kStates;
  Chunk<R> chunk;
  if (!chunk.find(a)) return;
  AnyTile<R, variant, T> tile(a, chunk);
  const T* numbers = static_cast<const T*>(chunk.numbers);
  const T multiplier = numbers[0];
  const auto scalars = Shape<R>::template scalars<T>(numbers);
  bool loaded = false;
  const auto load = [&](int at) {
    const Share share = tile.share(chunk, at);
    loaded = tile.in_registers_of(share);
    if constexpr (sizeof(T) == sizeof(float))
      if (loaded) return tile.load(share);
#pragma unroll
    for (int k = 0; k < kStates; ++k)
      if (R::keeps(variant, k) && tile.coded(k)) tile.load_codes_of(k, share, tile.s[k]);
  };
  sum_chunk<R, variant, T>(a, chunk, load, [&](int i, int j, T(&out)[R::sums]) {
    const int64_t e = chunk.begin + i;
    const T p = loaded ? tile.p[j] : tile.load_param_one(e), g = loaded ? tile.g[j] : tile.grad_one(e);
    T s[kStates] = {};
#pragma unroll
    for (int k = 0; k < kStates; ++k)
      if (R::keeps(variant, k)) s[k] = loaded || tile.coded(k) ? tile.s[k][j] : tile.state_one(k, e);
    R::template measure<variant>(p, g * multiplier, s, scalars, out);
  });
}

// The sums over everything for which one(i, k) gives sum k of part i, in [first, last), by a block of kAccumulators
// threads. True in its first warp, which has them.
template <class R, class F>
__device__ bool add_up(uint32_t first, uint32_t last, double (&all)[R::sums], F&& one) {
  bool has_them = false;
  for (int k = 0; k < R::sums; ++k) {
    double sum = 0, of_lane[kSumsPerLane];
    for (uint32_t i = first + threadIdx.x; i < last; i += fusedopt::kAccumulators) sum += one(i, k);
    if (k > 0) __syncthreads();
    has_them = bring_together(sum, of_lane);
    if (has_them) all[k] = total(of_lane);
  }
  return has_them;
}

template <class R, class T>
__device__ T* numbers_of(const TableView& table, uint32_t entry) {
  return reinterpret_cast<T*>(table.words + table.scalars + entry * fusedopt::cuda::scalar_words(Shape<R>::kScalars));
}

// A block for each row of a launch, a thread for each accumulator: adds the sums of the row's chunks and lets the rule
// change the scalars, or notes them for conclude_all.
template <class R, class T>
__global__ void __launch_bounds__(fusedopt::kAccumulators) conclude(const __grid_constant__ UpdateArguments a) {
  if (a.skipped && *a.skipped) return;
  const uint32_t* starts = reinterpret_cast<const uint32_t*>(a.table.words + a.starts);
  const uint32_t first = starts[blockIdx.x], last = starts[blockIdx.x + 1];
  // Slots without chunks in this launch may hold what an earlier step has left.
  if (first == last && !R::joint) return;
  const double* sums = reinterpret_cast<const double*>(a.table.words + a.sums);
  double all[R::sums];
  if (!add_up<R>(first, last, all, [&](uint32_t i, int k) { return sums[i * R::sums + k]; }) || threadIdx.x > 0) return;
  if constexpr (R::joint) {
    memcpy(a.table.words + a.totals + blockIdx.x * R::sums, all, sizeof(all));
  } else {
    const auto* row = reinterpret_cast<const TableRow<Shape<R>::kStates>*>(a.table.words + a.table.rows) + blockIdx.x;
    T* numbers = numbers_of<R, T>(a.table, row->entry);
    auto scalars = Shape<R>::template scalars<T>(numbers);
    if constexpr (R::remembers) {
      const Counters<R> kept(a.table, row->entry);
      double counters[R::counters];
      kept.read(counters);
      R::conclude(all, counters, scalars);
      kept.write(counters);
    } else {
      R::conclude(all, scalars);
    }
    memcpy(numbers + 1, &scalars, sizeof(scalars));
  }
}

template <class R, class T>
__device__ void conclude_entry(const JointArguments& a, uint32_t entry, const double* all, const double* hypers) {
  T* numbers = numbers_of<R, T>(a.table, entry);
  auto scalars = Shape<R>::template scalars<T>(numbers);
  auto group = Shape<R>::hypers(hypers);
  R::conclude(all, group, scalars);
  memcpy(numbers + 1, &scalars, sizeof(scalars));
}

// The hyper-parameters that groups keep, a bit for each: device code has no table of the rule's.
template <class R>
constexpr uint32_t kept_numbers_of() {
  uint32_t bits = 0;
  for (int i = 0; i < Shape<R>::kHypers; ++i) bits |= (R::scopes[i] == Scope::kept) ? 1u << i : 0u;
  return bits;
}

// One block: adds the sums of all rows, each of which has its chunks in one launch, and lets the rule change the
// scalars of all entries, then what groups keep.
template <class R>
__global__ void __launch_bounds__(fusedopt::kAccumulators) conclude_all(const __grid_constant__ JointArguments a) {
  if (a.skipped && *a.skipped) return;
  const double* totals = reinterpret_cast<const double*>(a.table.words + a.totals);
  double all[R::sums];
  const bool has_them = add_up<R>(0, a.rows, all, [&](uint32_t row, int k) {
    double sum = 0;
    for (uint32_t launch = 0; launch < a.launches; ++launch) sum += totals[(launch * a.rows + row) * R::sums + k];
    return sum;
  });
  if (!has_them) return;
  double hypers[Shape<R>::kHypers];
  for (uint32_t e = threadIdx.x; e < a.entries; e += kLanes) {
    const Counters<R> entry(a.table, e);
    GroupNumbers<R>(a.table, static_cast<uint32_t>(entry.entry[0])).read(hypers);
    if (entry.flags & fusedopt::cuda::kWide)
      conclude_entry<R, double>(a, e, all, hypers);
    else
      conclude_entry<R, float>(a, e, all, hypers);
  }
  __syncwarp();
  for (uint32_t g = threadIdx.x; g < a.groups; g += kLanes) {
    const GroupNumbers<R> group(a.table, g);
    group.read(hypers);
    auto kept = Shape<R>::hypers(hypers);
    typename R::template Scalars<double> unused = {};
    R::conclude(all, kept, unused);
    memcpy(hypers, &kept, sizeof(kept));
    constexpr uint32_t kept_numbers = kept_numbers_of<R>();
    for (int i = 0; i < Shape<R>::kHypers; ++i)
      if (kept_numbers >> i & 1) group.write(i, hypers[i]);
  }
}

}  // namespace FUSEDOPT_NAMESPACE
