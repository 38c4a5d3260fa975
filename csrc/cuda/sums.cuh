// The kernels that make sums over rows of any mix, and those that conclude from the sums of all rows, once for all
// rules of an object as those of common.cuh.
#pragma once

#include "common.cuh"
#include "sum.cuh"

namespace FUSEDOPT_NAMESPACE {

using fusedopt::kMaxSums;
using fusedopt::cuda::JointArguments;

template <class Rules, int states, class T>
__global__ void __launch_bounds__(fusedopt::cuda::kWarps* kLanes, kAnyBlocks)
    measure_any(const __grid_constant__ UpdateArguments a, const __grid_constant__ CommonRule rule) {
  static_assert(kAnyTile == fusedopt::kAccumulators && kShare == kSumsPerLane);
  using Tile = AnyTile<T, states>;
  AnyChunk chunk;
  if (!chunk.find(a, rule.scalars, fusedopt::cuda::row_words(rule.states))) return;
  Tile tile(a, rule, chunk);
  const T* numbers = static_cast<const T*>(chunk.numbers);
  const T multiplier = numbers[0];
  T sum[kMaxSums][kShare] = {};

#pragma unroll 1
  for (int at = 0; at < chunk.n; at += kAnyTile) {
    const Share share = Tile::share(chunk, at);
    tile.load(share);
    with_variant<Rules>(rule, [&](auto r, auto variant) {
      using R = decltype(r);
      if constexpr (R::sums > 0 && R::measures(variant) && is_served<R, states, T>(variant)) {
        constexpr int kStates = Shape<R>::kStates;
        const auto scalars = Shape<R>::template scalars<T>(numbers);
#pragma unroll Tile::kUnroll
        for (int j = 0; j < kShare; ++j) {
          if (share.element(j) >= share.n) continue;
          T s[kStates] = {}, out[R::sums];
#pragma unroll
          for (int k = 0; k < kStates; ++k)
            if (R::keeps(variant, k)) s[k] = tile.at.s[k][j];
          R::template measure<variant>(tile.at.p[j], tile.at.g[j] * multiplier, s, scalars, out);
#pragma unroll
          for (int k = 0; k < Shape<R>::sums_of(variant); ++k) sum[k][j] += out[k];
        }
      }
    });
  }
  double* sums = reinterpret_cast<double*>(a.table.words + a.sums) + chunk.index * rule.sums;
#pragma unroll
  for (int k = 0; k < kMaxSums; ++k) {
    if (k >= rule.sums) continue;
    const T all = total(sum[k]);
    if (threadIdx.x % kLanes == 0) sums[k] = static_cast<double>(all);
  }
}

// The sums over everything for which one(i, k) gives sum k of part i, in [first, last), by a block of kAccumulators
// threads. True in its first warp, which has them.
template <class F>
__device__ bool add_up(const CommonRule& rule, uint32_t first, uint32_t last, double (&all)[kMaxSums], F&& one) {
  bool has_them = false;
#pragma unroll 1
  for (int k = 0; k < rule.sums; ++k) {
    double sum = 0, of_lane[kSumsPerLane];
    for (uint32_t i = first + threadIdx.x; i < last; i += fusedopt::kAccumulators) sum += one(i, k);
    if (k > 0) __syncthreads();
    has_them = bring_together(sum, of_lane);
    if (has_them) all[k] = total(of_lane);
  }
  return has_them;
}

template <class T>
__device__ T* numbers_of(const TableView& table, const CommonRule& rule, uint32_t entry) {
  return reinterpret_cast<T*>(table.words + table.scalars + entry * fusedopt::cuda::scalar_words(rule.scalars));
}

// A block for each row of a launch, a thread for each accumulator: adds the sums of the row's chunks and lets the rule
// change the scalars, or notes them for conclude_all.
template <class Rules>
__global__ void __launch_bounds__(fusedopt::kAccumulators)
    conclude(const __grid_constant__ UpdateArguments a, const __grid_constant__ CommonRule rule) {
  if (a.skipped && *a.skipped) return;
  const uint32_t* starts = reinterpret_cast<const uint32_t*>(a.table.words + a.starts);
  const uint32_t first = starts[blockIdx.x], last = starts[blockIdx.x + 1];
  // Slots without chunks in this launch may hold what an earlier step has left.
  if (first == last && !rule.joint) return;
  const double* sums = reinterpret_cast<const double*>(a.table.words + a.sums);
  double all[kMaxSums];
  const bool has_them = add_up(rule, first, last, all, [&](uint32_t i, int k) { return sums[i * rule.sums + k]; });
  if (!has_them || threadIdx.x > 0) return;
  if (rule.joint) {
    double* totals = reinterpret_cast<double*>(a.table.words + a.totals) + blockIdx.x * rule.sums;
    for (int k = 0; k < rule.sums; ++k) totals[k] = all[k];
    return;
  }
  const uint64_t* rows = a.table.words + a.table.rows;
  const auto* row = reinterpret_cast<const TableRow<fusedopt::kMaxStates>*>(
      rows + blockIdx.x * fusedopt::cuda::row_words(rule.states));
  const Counters kept(a.table, rule, row->entry);
  const auto conclude_in = [&](auto number) {
    using T = decltype(number);
    T* numbers = numbers_of<T>(a.table, rule, row->entry);
    Rules::with(rule.number, [&](auto r) {
      using R = decltype(r);
      if constexpr (R::sums > 0 && !R::joint) {
        auto scalars = Shape<R>::template scalars<T>(numbers);
        if constexpr (R::remembers) {
          double counters[fusedopt::kMaxCounters];
          kept.read(counters);
          R::conclude(all, counters, scalars);
          kept.write(counters);
        } else {
          R::conclude(all, scalars);
        }
        memcpy(numbers + 1, &scalars, sizeof(scalars));
      }
    });
  };
  if (kept.flags & fusedopt::cuda::kWide)
    conclude_in(double());
  else
    conclude_in(float());
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
template <class Rules>
__global__ void __launch_bounds__(fusedopt::kAccumulators)
    conclude_all(const __grid_constant__ JointArguments a, const __grid_constant__ CommonRule rule) {
  if (a.skipped && *a.skipped) return;
  const double* totals = reinterpret_cast<const double*>(a.table.words + a.totals);
  double all[kMaxSums];
  const bool has_them = add_up(rule, 0, a.rows, all, [&](uint32_t row, int k) {
    double sum = 0;
    for (uint32_t launch = 0; launch < a.launches; ++launch) sum += totals[(launch * a.rows + row) * rule.sums + k];
    return sum;
  });
  if (!has_them) return;
  Rules::with(rule.number, [&](auto r) {
    using R = decltype(r);
    if constexpr (R::joint) {
      double hypers[fusedopt::kMaxHypers];
      const auto conclude_entry = [&](auto number, uint32_t entry) {
        using T = decltype(number);
        T* numbers = numbers_of<T>(a.table, rule, entry);
        auto scalars = Shape<R>::template scalars<T>(numbers);
        auto group = Shape<R>::hypers(hypers);
        R::conclude(all, group, scalars);
        memcpy(numbers + 1, &scalars, sizeof(scalars));
      };
      for (uint32_t e = threadIdx.x; e < a.entries; e += kLanes) {
        const Counters entry(a.table, rule, e);
        GroupNumbers(a.table, rule, static_cast<uint32_t>(entry.entry[0])).read(hypers);
        entry.flags& fusedopt::cuda::kWide ? conclude_entry(double(), e) : conclude_entry(float(), e);
      }
      __syncwarp();
      for (uint32_t g = threadIdx.x; g < a.groups; g += kLanes) {
        const GroupNumbers group(a.table, rule, g);
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
  });
}

}  // namespace FUSEDOPT_NAMESPACE
