// How a rule sweeps device memory. A warp takes one chunk of one tensor and knows nothing of other warps; whole
// vectors, odd tails and misaligned tensors go through the same registers and the same update.
#pragma once

#include <cuda_runtime.h>

#include <type_traits>

#include "../codec.h"
#include "../shape.h"
#include "elements.cuh"
#include "guarded.cuh"
#include "table.h"

namespace FUSEDOPT_NAMESPACE {

using fusedopt::Dtype;
using fusedopt::kChunk;
using fusedopt::cuda::DeviceNumber;
using fusedopt::cuda::kLanes;
using fusedopt::cuda::TableRow;
using fusedopt::cuda::TableView;
using fusedopt::cuda::UpdateArguments;

__device__ inline double read_number(const void* at, Dtype dtype) {
  double number = 0;
  with_storage(dtype,
               [&](auto type) { number = static_cast<double>(decode(*static_cast<const decltype(type)*>(at))); });
  return number;
}

// The last row with starts[row] <= chunk; every lane takes a probe, so a thousand rows need two rounds.
__device__ inline uint32_t find_row(const uint32_t* starts, uint32_t rows, uint32_t chunk, unsigned lane) {
  uint32_t first = 0;
  while (rows > 1) {
    const uint32_t step = (rows + kLanes - 1) / kLanes;
    const unsigned at_or_before = __ballot_sync(~0u, lane * step < rows && starts[first + lane * step] <= chunk);
    const uint32_t skip = (__popc(at_or_before) - 1) * step;
    first += skip;
    rows = rows - skip < step ? rows - skip : step;
  }
  return first;
}

// A warp's share of an update, for rules of so many states, or of at most so many.
template <int states>
struct ChunkOf {
  const TableRow<states>* row;
  uint32_t slot;
  uint32_t index;  // of the chunk among all of the launch
  int64_t begin;
  int n;
  const void* numbers;  // the multiplier and the scalars

  // False if there is none.
  __device__ bool find(const UpdateArguments& a, int scalars, int words = fusedopt::cuda::row_words(states)) {
    const unsigned lane = threadIdx.x % kLanes;
    const uint32_t chunk = blockIdx.x * fusedopt::cuda::kWarps + threadIdx.x / kLanes;
    if (chunk >= a.chunks || (a.skipped && *a.skipped)) return false;
    const uint32_t* starts = reinterpret_cast<const uint32_t*>(a.table.words + a.starts);
    index = chunk;
    slot = find_row(starts, a.rows, chunk, lane);
    row = reinterpret_cast<const TableRow<states>*>(a.table.words + a.table.rows + static_cast<size_t>(slot) * words);
    begin = static_cast<int64_t>(chunk - starts[slot]) * kChunk;
    n = row->numel - begin < kChunk ? static_cast<int>(row->numel - begin) : kChunk;
    numbers = a.table.words + a.table.scalars + row->entry * fusedopt::cuda::scalar_words(scalars);
    return true;
  }
};
template <class R>
struct Chunk : ChunkOf<Shape<R>::kStates> {
  __device__ bool find(const UpdateArguments& a) { return ChunkOf<Shape<R>::kStates>::find(a, Shape<R>::kScalars); }
};

// What a lane holds of a tile: kVector elements of each operand, so many bytes of the narrowest.
template <class R, int variant, class M, class T, int kBytesOfNarrowest = 16>
struct Tile {
  using P = typename M::Param;
  using G = typename M::Grad;
  using S = typename M::State;
  static constexpr int kStates = Shape<R>::kStates;
  static constexpr int kNarrowest = sizeof(P) < sizeof(S) ? sizeof(P) : sizeof(S);
  static constexpr int kVector =
      kBytesOfNarrowest / (kNarrowest < static_cast<int>(sizeof(G)) ? kNarrowest : sizeof(G));
  static constexpr int kElements = kVector * kLanes;

  static constexpr int kept() {
    int count = 0;
#pragma unroll
    for (int k = 0; k < kStates; ++k) count += R::keeps(variant, k);
    return count;
  }
  static constexpr int kBytes = kVector * (sizeof(P) + sizeof(G) + kept() * sizeof(S));
  // Tiles in flight together, as far as registers last: memory is far, and an SM needs some 32 KiB under way.
  static constexpr int kUnroll = kVector <= 4 && kBytes <= 64 ? 2 : 1;
  static constexpr bool kGuarded = R::guarded && sizeof(T) == sizeof(float);
  // Blocks of an SM: 128 registers a thread with two, 80 with three, 64 with four, which is what it takes not to spill.
  // With four the loads of narrow tiles are still under way together.
  static constexpr bool kNarrow = kept() < 2 || (kUnroll * kBytes <= 64 && !R::crowded);
  static constexpr int kBlocks = sizeof(T) == sizeof(double) || kept() > (kVector > 4 ? 2 : 3) ? 2
                                 : kGuarded && kNarrow                                         ? 4
                                                                                               : 3;

  Elements<P, kVector> p;
  Elements<G, kVector> g;
  Elements<S, kVector> s[kStates];

  // The row from an element on.
  __device__ static TableRow<kStates> from(TableRow<kStates> row, int64_t first) {
    row.param = opaque(static_cast<P*>(row.param) + first);
    row.grad = opaque(static_cast<const G*>(row.grad) + first);
#pragma unroll
    for (int k = 0; k < kStates; ++k)
      if (R::keeps(variant, k)) row.state[k] = opaque(static_cast<S*>(row.state[k]) + first);
    return row;
  }

  // A full tile, a lane's elements side by side, by accesses of at most so many bytes.
  template <int widest>
  __device__ void load(const TableRow<kStates>& row, int at) {
    p.template load<true, widest>(static_cast<const P*>(row.param) + at);
    g.template load<false, widest>(static_cast<const G*>(row.grad) + at);
#pragma unroll
    for (int k = 0; k < kStates; ++k)
      if (R::keeps(variant, k)) s[k].template load<false, widest>(static_cast<const S*>(row.state[k]) + at);
  }
  template <int widest>
  __device__ void store(const TableRow<kStates>& row, int at) const {
    p.template store<true, widest>(static_cast<P*>(row.param) + at);
#pragma unroll
    for (int k = 0; k < kStates; ++k)
      if (R::keeps(variant, k)) s[k].template store<false, widest>(static_cast<S*>(row.state[k]) + at);
  }

  // The first n elements of a tile, or of one that is not aligned: neighbouring lanes take neighbouring elements, so
  // that narrow accesses coalesce.
  __device__ void load(const TableRow<kStates>& row, int at, int n) {
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      if (i * kLanes >= n) continue;
      const int e = at + i * kLanes;
      p.set(i, static_cast<const P*>(row.param)[e]);
      g.set(i, static_cast<const G*>(row.grad)[e]);
#pragma unroll
      for (int k = 0; k < kStates; ++k)
        if (R::keeps(variant, k)) s[k].set(i, static_cast<const S*>(row.state[k])[e]);
    }
  }
  __device__ void store(const TableRow<kStates>& row, int at, int n) const {
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      if (i * kLanes >= n) continue;
      const int e = at + i * kLanes;
      static_cast<P*>(row.param)[e] = p[i];
#pragma unroll
      for (int k = 0; k < kStates; ++k)
        if (R::keeps(variant, k)) static_cast<S*>(row.state[k])[e] = s[k][i];
    }
  }

  // The one place where a rule meets memory. What it computes in, N, is T or guarded; `number` makes one.
  template <class N, class Make>
  __device__ void update(N multiplier, const typename R::template Scalars<N>& c, Make&& number) {
    static_assert(kVector % 2 == 0);
#pragma unroll
    for (int i = 0; i < kVector; i += 2) {
      // Two share a word. They are packed when both are there: all at last would take twice the registers until then.
      P params[2];
      S states[kStates][2];
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        N value[kStates] = {};
#pragma unroll
        for (int k = 0; k < kStates; ++k)
          if (R::keeps(variant, k)) value[k] = number(s[k].number(i + j));
        N param = number(p.number(i + j));
        R::template update<variant>(param, number(g.number(i + j)) * multiplier, value, c);
        encode(plain(param), params[j]);
#pragma unroll
        for (int k = 0; k < kStates; ++k)
          if (R::keeps(variant, k)) encode(plain(value[k]), states[k][j]);
      }
      p.set(i, params);
#pragma unroll
      for (int k = 0; k < kStates; ++k)
        if (R::keeps(variant, k)) s[k].set(i, states[k]);
    }
  }

  // Whether all operands are aligned to such accesses.
  template <int widest>
  __device__ static bool aligned(const TableRow<kStates>& row) {
    const auto beyond = [](const void* at, int size) {
      return reinterpret_cast<uint64_t>(at) % (kVector * size < widest ? kVector * size : widest);
    };
    uint64_t bits = beyond(row.param, sizeof(P)) | beyond(row.grad, sizeof(G));
#pragma unroll
    for (int k = 0; k < kStates; ++k)
      if (R::keeps(variant, k)) bits |= beyond(row.state[k], sizeof(S));
    return bits == 0;
  }
};

// What the quick way computes with: the multiplier and the scalars.
template <class R, class N, class T>
struct QuickScalars {
  static constexpr int kScalars = Shape<R>::kScalars;
  T multiplier;
  typename R::template Scalars<N> all;

  __device__ explicit QuickScalars(const T* numbers) : multiplier(numbers[0]) {
    static_assert(sizeof(all) == kScalars * sizeof(N));
    // Not by way of memcpy, with which the compiler would keep them in memory.
    auto* const scalar = reinterpret_cast<N*>(&all);
#pragma unroll
    for (int i = 0; i < kScalars; ++i) scalar[i] = N(numbers[1 + i]);
  }

  // Whether they are those that the quick way is made for, which a rule asks whatever its operands.
  template <int variant>
  __device__ bool suit() const {
    if constexpr (std::is_same_v<N, Guarded>) {
      Guard guard;
      Guarded param(0.0f, &guard), states[Shape<R>::kStates];
#pragma unroll
      for (Guarded& state : states) state = param;
      R::template update<variant>(param, param, states, all);
      return !guard.far;
    }
    return true;
  }
};

// As many tiles as are in flight together, by accesses of at most so many bytes.
template <class OfTile, class R, int variant, class T, int widest>
class QuickTiles {
  using Row = TableRow<Shape<R>::kStates>;
  static constexpr int kUnroll = OfTile::kUnroll;
  OfTile tile_[kUnroll];

 public:
  using Number = std::conditional_t<OfTile::kGuarded, Guarded, T>;
  using Scalars = QuickScalars<R, Number, T>;
  static constexpr int kElements = kUnroll * OfTile::kElements;

  // From an element on, as long as they are whole; to the first of a tile in which an operand was out of the ordinary.
  __device__ static void sweep(const Row& row, int& at, int last, const Scalars& c) {
    for (; at <= last; at += kElements) {
      QuickTiles quick;
      if (!quick.step(row, at, c)) break;
      quick.store(row, at);
    }
  }

 private:
  // False if an operand was out of the ordinary.
  __device__ bool step(const Row& row, int at, const Scalars& c) {
#pragma unroll
    for (int k = 0; k < kUnroll; ++k) tile_[k].template load<widest>(row, at + k * OfTile::kElements);
    Guard guard;
    const auto number = [&](T x) {
      if constexpr (OfTile::kGuarded)
        return Guarded(x, &guard);
      else
        return x;
    };
#pragma unroll
    for (int k = 0; k < kUnroll; ++k) tile_[k].template update<Number>(c.multiplier, c.all, number);
    return guard.all_ordinary();
  }
  __device__ void store(const Row& row, int at) const {
#pragma unroll
    for (int k = 0; k < kUnroll; ++k) tile_[k].template store<widest>(row, at + k * OfTile::kElements);
  }
};

// By accesses of 32 bytes, where a device has them: two tiles of float32 are one, of which a lane has twice as much;
// float32 beside 16 bits has as much anyway.
template <class R, int variant, class M, class T>
struct Wide {
  using Narrow = Tile<R, variant, M, T>;
  static constexpr bool kTwice = sizeof(T) == sizeof(float) && Narrow::kUnroll == 2;
  static constexpr bool kBeside = sizeof(typename M::State) == 2 * sizeof(typename M::Param);
  static constexpr bool kThere = kWidest == sizeof(Words32) && (kTwice || kBeside);
  using OfTile = Tile<R, variant, M, T, kTwice ? 32 : 16>;
  using Quick = QuickTiles<OfTile, R, variant, T, sizeof(Words32)>;
};

// Dense rows of one mix.
template <class R, int variant, class M, class T>
__global__ void __launch_bounds__(fusedopt::cuda::kWarps* kLanes, Tile<R, variant, M, T>::kBlocks)
    update(const __grid_constant__ UpdateArguments a) {
  using Registers = Tile<R, variant, M, T>;
  using Quick = QuickTiles<Registers, R, variant, T, sizeof(uint4)>;
  using OfWide = Wide<R, variant, M, T>;
  static_assert(Quick::kElements == OfWide::Quick::kElements);
  Chunk<R> chunk;
  if (!chunk.find(a)) return;
  const TableRow<Shape<R>::kStates> row = *chunk.row;
  const T* numbers = static_cast<const T*>(chunk.numbers);
  const T multiplier = numbers[0];
  const auto scalars = Shape<R>::template scalars<T>(numbers);
  const typename Quick::Scalars quick_scalars(numbers);
  const int lane = threadIdx.x % kLanes;
  const bool aligned = Registers::template aligned<sizeof(uint4)>(row);
  const bool wide = OfWide::kThere && OfWide::OfTile::template aligned<sizeof(Words32)>(row);
  // From a lane's first element to the next lane's.
  const int held = wide ? OfWide::OfTile::kVector : Registers::kVector;
  const auto mine = Registers::from(row, chunk.begin + lane * held);

  // From one element to the next: lanes whose operands are out of the ordinary take a tile in their own time.
  const int last = aligned && quick_scalars.template suit<variant>() ? chunk.n - Quick::kElements : -1;
  for (int at = 0; at < chunk.n; at += Registers::kElements) {
    if constexpr (OfWide::kThere)
      if (!OfWide::kTwice || at % Quick::kElements == 0)
        OfWide::Quick::sweep(mine, at, wide ? last : -1, quick_scalars);
    if constexpr (!OfWide::kThere || OfWide::kTwice) Quick::sweep(mine, at, wide ? -1 : last, quick_scalars);
    at = opaque(at);
    if (at >= chunk.n) break;
    Registers tile = {};
    int side_by_side = at - lane * (held - Registers::kVector);
    const int first = at - lane * (held - 1);
    if constexpr (OfWide::kTwice) {
      // Of a tile by 32 bytes that other lanes may have taken a lane has left what is its own there, in two parts.
      const int part = at % Quick::kElements, begin = at - part;
      if (wide && begin <= last) side_by_side = begin + part / kLanes;
    }
    const bool whole = aligned && at + Registers::kElements <= chunk.n;
    whole ? tile.template load<sizeof(uint4)>(mine, side_by_side) : tile.load(mine, first, chunk.n - at - lane);
    tile.template update<T>(multiplier, scalars, [](T x) { return x; });
    whole ? tile.template store<sizeof(uint4)>(mine, side_by_side) : tile.store(mine, first, chunk.n - at - lane);
  }
}

}  // namespace FUSEDOPT_NAMESPACE
