// How a rule sweeps device memory. A warp takes one chunk of one tensor and knows nothing of other warps; whole
// vectors, odd tails and misaligned tensors go through the same registers and the same update.
#pragma once

#include <cuda_runtime.h>

#include "../codec.h"
#include "../shape.h"
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

// n values of an operand from consecutive addresses, 16 bytes at a time. They are read and written once a step, so the
// caches may drop them first; only the param stays for the next forward pass.
template <bool stays, int n, class S>
__device__ void load_vector(const S* from, S (&to)[n]) {
  constexpr int kLoads = n * sizeof(S) / sizeof(uint4);
  uint4 raw[kLoads];
#pragma unroll
  for (int k = 0; k < kLoads; ++k)
    raw[k] =
        stays ? __ldcg(reinterpret_cast<const uint4*>(from) + k) : __ldcs(reinterpret_cast<const uint4*>(from) + k);
  memcpy(to, raw, sizeof(raw));
}

template <bool stays, int n, class S>
__device__ void store_vector(S* to, const S (&from)[n]) {
  constexpr int kStores = n * sizeof(S) / sizeof(uint4);
  uint4 raw[kStores];
  memcpy(raw, from, sizeof(raw));
#pragma unroll
  for (int k = 0; k < kStores; ++k) {
    if (stays)
      __stcg(reinterpret_cast<uint4*>(to) + k, raw[k]);
    else
      __stcs(reinterpret_cast<uint4*>(to) + k, raw[k]);
  }
}

// What a lane holds of a tile: kVector elements of each operand, 16 bytes of the narrowest.
template <class R, int variant, class M, class T>
struct Tile {
  using P = typename M::Param;
  using G = typename M::Grad;
  using S = typename M::State;
  static constexpr int kStates = Shape<R>::kStates;
  static constexpr int kNarrowest = sizeof(P) < sizeof(S) ? sizeof(P) : sizeof(S);
  static constexpr int kVector = 16 / (kNarrowest < static_cast<int>(sizeof(G)) ? kNarrowest : sizeof(G));
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
  // Blocks of an SM: 80 registers a thread with three, 128 with two, which is what it takes not to spill.
  static constexpr int kBlocks = sizeof(T) == sizeof(double) || kept() > (kVector > 4 ? 2 : 3) ? 2 : 3;

  P p[kVector];
  G g[kVector];
  S s[kStates][kVector];

  // A full tile, a lane's elements side by side.
  __device__ void load(const TableRow<kStates>& row, int64_t at) {
    load_vector<true>(static_cast<const P*>(row.param) + at, p);
    load_vector<false>(static_cast<const G*>(row.grad) + at, g);
#pragma unroll
    for (int k = 0; k < kStates; ++k)
      if (R::keeps(variant, k)) load_vector<false>(static_cast<const S*>(row.state[k]) + at, s[k]);
  }
  __device__ void store(const TableRow<kStates>& row, int64_t at) const {
    store_vector<true>(static_cast<P*>(row.param) + at, p);
#pragma unroll
    for (int k = 0; k < kStates; ++k)
      if (R::keeps(variant, k)) store_vector<false>(static_cast<S*>(row.state[k]) + at, s[k]);
  }

  // The first n elements of a tile, or of one that is not aligned: neighbouring lanes take neighbouring elements, so
  // that narrow accesses coalesce.
  __device__ void load(const TableRow<kStates>& row, int64_t at, int n) {
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      if (i * kLanes >= n) continue;
      const int64_t e = at + i * kLanes;
      p[i] = static_cast<const P*>(row.param)[e];
      g[i] = static_cast<const G*>(row.grad)[e];
#pragma unroll
      for (int k = 0; k < kStates; ++k)
        if (R::keeps(variant, k)) s[k][i] = static_cast<const S*>(row.state[k])[e];
    }
  }
  __device__ void store(const TableRow<kStates>& row, int64_t at, int n) const {
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      if (i * kLanes >= n) continue;
      const int64_t e = at + i * kLanes;
      static_cast<P*>(row.param)[e] = p[i];
#pragma unroll
      for (int k = 0; k < kStates; ++k)
        if (R::keeps(variant, k)) static_cast<S*>(row.state[k])[e] = s[k][i];
    }
  }

  // The one place where a rule meets memory.
  __device__ void update(T multiplier, const typename R::template Scalars<T>& c) {
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      T value[kStates] = {};
#pragma unroll
      for (int k = 0; k < kStates; ++k)
        if (R::keeps(variant, k)) value[k] = static_cast<T>(decode(s[k][i]));
      T param = static_cast<T>(decode(p[i]));
      R::template update<variant>(param, static_cast<T>(decode(g[i])) * multiplier, value, c);
      encode(param, p[i]);
#pragma unroll
      for (int k = 0; k < kStates; ++k)
        if (R::keeps(variant, k)) encode(value[k], s[k][i]);
    }
  }

  __device__ static bool aligned(const TableRow<kStates>& row) {
    uint64_t bits = reinterpret_cast<uint64_t>(row.param) | reinterpret_cast<uint64_t>(row.grad);
#pragma unroll
    for (int k = 0; k < kStates; ++k)
      if (R::keeps(variant, k)) bits |= reinterpret_cast<uint64_t>(row.state[k]);
    return bits % sizeof(uint4) == 0;
  }
};

// Dense rows of one mix.
template <class R, int variant, class M, class T>
__global__ void __launch_bounds__(fusedopt::cuda::kWarps* kLanes, Tile<R, variant, M, T>::kBlocks)
    update(const __grid_constant__ UpdateArguments a) {
  using Registers = Tile<R, variant, M, T>;
  Chunk<R> chunk;
  if (!chunk.find(a)) return;
  const TableRow<Shape<R>::kStates> row = *chunk.row;
  const T* numbers = static_cast<const T*>(chunk.numbers);
  const T multiplier = numbers[0];
  const auto scalars = Shape<R>::template scalars<T>(numbers);
  const int lane = threadIdx.x % kLanes;

  int at = 0;
  if (Registers::aligned(row)) {
    constexpr int kUnroll = Registers::kUnroll;
    for (; at + kUnroll * Registers::kElements <= chunk.n; at += kUnroll * Registers::kElements) {
      const int64_t first = chunk.begin + at + lane * Registers::kVector;
      Registers tile[kUnroll];
#pragma unroll
      for (int k = 0; k < kUnroll; ++k) tile[k].load(row, first + k * Registers::kElements);
#pragma unroll
      for (int k = 0; k < kUnroll; ++k) tile[k].update(multiplier, scalars);
#pragma unroll
      for (int k = 0; k < kUnroll; ++k) tile[k].store(row, first + k * Registers::kElements);
    }
  }
  for (; at < chunk.n; at += Registers::kElements) {
    Registers tile = {};
    tile.load(row, chunk.begin + at + lane, chunk.n - at - lane);
    tile.update(multiplier, scalars);
    tile.store(row, chunk.begin + at + lane, chunk.n - at - lane);
  }
}

}  // namespace FUSEDOPT_NAMESPACE
