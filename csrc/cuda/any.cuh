// Rows of any mix, any strides and with extras. As in cpu/tile.h, operands come into fast memory as numbers of the
// arithmetic, are updated there and go back; a kernel calls the same few functions for all of its operands.
#pragma once

#include "../write_back.h"
#include "draws.cuh"
#include "kernels.cuh"

namespace FUSEDOPT_NAMESPACE {

using fusedopt::cuda::kAnyWarps;
using fusedopt::cuda::TableExtras;

// Elements of a row that a warp takes at a time, one block of codes, and what a lane has of them.
constexpr int kAnyTile = fusedopt::kCodeBlock;
constexpr int kShare = kAnyTile / kLanes;

struct Share {
  int64_t begin;  // the tile's first element in the row
  int n;          // its elements
  bool whole;     // all of a tile's, one after the other in memory

  // Neighbouring lanes have neighbouring elements.
  __device__ int element(int j) const { return j * kLanes + static_cast<int>(threadIdx.x) % kLanes; }
};

// A lane's numbers in a tile in shared memory. Nobody else touches them, so nobody waits.
template <class T>
struct Column {
  T* first;

  __device__ T& operator[](int j) const { return first[j * kLanes]; }
};

// One operand of a row in device memory.
struct AnyOperand {
  void* data;
  const uint64_t* layout;  // null: dense
  Dtype dtype;
  uint8_t place, places;  // in the layout

  // Where element e of the row lies.
  __device__ int64_t offset(int64_t e) const {
    if (!layout) return e;
    int64_t offset = 0;
    // A division of 64 bits is a hundred instructions, and ptxas copies what a kernel calls into each kernel.
#pragma unroll 1
    for (int d = static_cast<int>(layout[0]) - 1; d >= 0; --d) {
      const uint64_t* dim = layout + 2 + d * (1 + places);
      const int64_t size = static_cast<int64_t>(dim[0]), index = d == 0 ? e : e % size;
      e /= size;
      const bool looked_up = d == 0 && layout[1] != 0 && place != fusedopt::kGrad;
      const int64_t slice = looked_up ? reinterpret_cast<const int64_t*>(layout[1])[index] : index;
      offset += slice * static_cast<int64_t>(dim[1 + place]);
    }
    return offset;
  }
};

// Where a warp's elements of one operand lie as they are in device memory, in the order of the row.
struct alignas(sizeof(uint4)) Staging {
  char bytes[kAnyTile * sizeof(double)];
};

template <class Word>
__device__ void copy_word(void* to, const void* from) {
  *static_cast<Bytes<Word>*>(to) = *static_cast<const Bytes<Word>*>(from);
}
__device__ inline void copy_element(void* to, const void* from, int size) {
  if (size == 4) return copy_word<uint32_t>(to, from);
  if (size == 2) return copy_word<uint16_t>(to, from);
  copy_word<uint64_t>(to, from);
}

// Moves a tile's elements of an operand to or from the staging as so many bytes, whatever they mean. All lanes of a
// warp come here together, and each may move what is another's.
template <bool in>
__device__ __noinline__ void move(const AnyOperand operand, const Share share, Staging& staging, int size) {
  char* const data = static_cast<char*>(operand.data);
  const int lane = threadIdx.x % kLanes;
  __syncwarp();
  if (share.whole && reinterpret_cast<uint64_t>(data) % sizeof(uint4) == 0) {
    uint4* const there = reinterpret_cast<uint4*>(data + share.begin * size) + lane;
    auto* const here = reinterpret_cast<Bytes<uint4>*>(staging.bytes) + lane;
    const int words = kAnyTile / static_cast<int>(sizeof(uint4)) * size;
    constexpr int kMost = sizeof(Staging) / sizeof(uint4) / kLanes;
    uint4 raw[kMost];
#pragma unroll
    for (int k = 0; k < kMost; ++k)
      if (k * kLanes + lane < words) raw[k] = in ? __ldcg(there + k * kLanes) : here[k * kLanes].word;
#pragma unroll
    for (int k = 0; k < kMost; ++k)
      if (k * kLanes + lane < words) in ? void(here[k * kLanes].word = raw[k]) : __stcg(there + k * kLanes, raw[k]);
  } else {
#pragma unroll 1
    for (int i = lane; i < share.n; i += kLanes) {
      char* const there = data + operand.offset(share.begin + i) * size;
      char* const here = staging.bytes + i * size;
      in ? copy_element(here, there, size) : copy_element(there, here, size);
    }
  }
  if (in) __syncwarp();
}

// Calls f(stored, j, e) for each of a lane's elements, number e of the row. `stored` is what was read, if it is asked
// to be, and what f makes of it is written back, if that is asked.
template <class Stored, bool reads, bool writes, class F>
__device__ void each_of(const AnyOperand& operand, const Share& share, Staging& staging, F&& f) {
  if (reads)
    move<true>(operand, share, staging, sizeof(Stored));
  else
    __syncwarp();  // until all have read what was in the staging before
  Stored* const stored = reinterpret_cast<Stored*>(staging.bytes);
#pragma unroll 1
  for (int j = 0; j < kShare && share.element(j) < share.n; ++j)
    f(stored[share.element(j)], j, share.begin + share.element(j));
  if (writes) move<false>(operand, share, staging, sizeof(Stored));
}

template <bool reads, bool writes, class F>
__device__ void each(const AnyOperand& operand, const Share& share, Staging& staging, F&& f) {
  with_storage(operand.dtype, [&](auto type) { each_of<decltype(type), reads, writes>(operand, share, staging, f); });
}

template <class T>
__device__ __noinline__ void load_operand(const AnyOperand operand, const Share share, Staging& staging,
                                          const Column<T> to) {
  each<true, false>(operand, share, staging, [&](auto& x, int j, int64_t) { to[j] = static_cast<T>(decode(x)); });
}
template <class T>
__device__ __noinline__ void store_operand(const AnyOperand operand, const Share share, Staging& staging,
                                           const Column<T> from) {
  each<false, true>(operand, share, staging, [&](auto& x, int j, int64_t) { encode(from[j], x); });
}
template <class T>
__device__ __noinline__ void store_by_chance(const AnyOperand operand, const Share share, Staging& staging,
                                             const Column<T> from, const AnyDraws draws) {
  each<false, true>(operand, share, staging,
                    [&](auto& x, int j, int64_t e) { encode_by_chance(from[j], draws(e), x); });
}

// One state in codes. What a lane's words hold are its own elements, and blocks are whole: zeros lie beyond the row's
// end.
struct AnyCodes {
  uint32_t* words;
  float* scales;
  Dtype dtype;
  AnyOperand where;  // the same elements, were they numbers

  // Slices that are looked up are whole blocks.
  __device__ int64_t block(const Share& share) const {
    const bool looked_up = where.layout && where.layout[1] != 0;
    return (looked_up ? where.offset(share.begin) : share.begin) / kAnyTile;
  }
  template <class C>
  __device__ uint32_t* of_lane(int64_t block) const {
    return words + block * C::kWords + threadIdx.x % kLanes;
  }
};

template <class T>
__device__ __noinline__ void load_codes(const AnyCodes codes, const Share share, const Column<T> to) {
  const int64_t block = codes.block(share);
  const float scale = codes.scales[block];
  with_code(codes.dtype, [&](auto code) {
    using C = decltype(code);
    constexpr int kWords = C::kWords / kLanes;
    const uint32_t* words = codes.of_lane<C>(block);
    uint32_t word[kWords];
#pragma unroll
    for (int w = 0; w < kWords; ++w) word[w] = words[w * kLanes];
#pragma unroll
    for (int w = 0; w < kWords; ++w)
      each_place<C>([&](auto place) {
        to[place * kWords + w] = static_cast<T>(decode<C, decltype(place)::value>(word[w], scale));
      });
  });
}

// All lanes of a warp come here together.
template <class T>
__device__ __noinline__ void store_codes(const AnyCodes codes, const Share share, const Column<T> from, bool by_chance,
                                         const AnyDraws draws) {
  const auto number = [&](int j) { return share.element(j) < share.n ? static_cast<float>(from[j]) : 0.0f; };
  uint32_t largest = 0;
  for (int j = 0; j < kShare; ++j) {
    const uint32_t magnitude = magnitude_of(number(j));
    largest = magnitude > largest ? magnitude : largest;
  }
  for (int lanes = kLanes / 2; lanes > 0; lanes /= 2) {
    const uint32_t other = __shfl_xor_sync(~0u, largest, lanes);
    largest = other > largest ? other : largest;
  }
  const int64_t block = codes.block(share);
  with_code(codes.dtype, [&](auto code) {
    using C = decltype(code);
    constexpr int kWords = C::kWords / kLanes;
    uint32_t* words = codes.of_lane<C>(block);
    const float scale = scale_of<C>(largest);
    const Coder<C> coder(scale);
    if (threadIdx.x % kLanes == 0) codes.scales[block] = scale;
#pragma unroll 1
    for (int w = 0; w < kWords; ++w) {
      uint32_t word = 0;
      each_place<C>([&](auto place) {
        const int j = place * kWords + w;
        const uint32_t r = by_chance ? draws(share.begin + share.element(j)) : kNearest;
        word |= coder.template encode<decltype(place)::value>(number(j), r);
      });
      words[w * kLanes] = word;
    }
  });
}

// What all elements of a warp's chunk share. In shared memory, where functions find it.
struct AnyRow {
  AnyOperand param, grad, partner, average;
  Pair pair;
  uint8_t flags;
  double average_weight;
  uint64_t key;
  const fusedopt::Numbering* numbering;
  Staging staging;

  __device__ bool has(uint8_t flag) const { return (flags & flag) != 0; }
  __device__ AnyDraws draws_of(int operand) const { return {stream(key, operand), numbering}; }
};

// A share of a row, as write_back.h wants it.
template <class T>
struct AnyPart {
  AnyRow& row;
  const Share& share;

  template <Access access, class F>
  __device__ void each(Operand operand, F&& f) const {
    FUSEDOPT_NAMESPACE::each<access != Access::writes, access != Access::reads>(
        of(operand), share, row.staging, [&](auto& x, int j, int64_t) { f(x, j); });
  }
  template <Access access, class Stored, class F>
  __device__ void each_of(Operand operand, F&& f) const {
    FUSEDOPT_NAMESPACE::each_of<Stored, access != Access::writes, access != Access::reads>(
        of(operand), share, row.staging, [&](auto& x, int j, int64_t) { f(x, j); });
  }
  __device__ Column<T> reload(Column<T> p) const {
    load_operand(row.param, share, row.staging, p);
    return p;
  }
  __device__ void store(Column<T> p) const { store_operand(row.param, share, row.staging, p); }
  __device__ void store_as(Operand operand, Column<T> p) const { store_operand(of(operand), share, row.staging, p); }
  __device__ void store_by_chance(Column<T> p) const {
    FUSEDOPT_NAMESPACE::store_by_chance(row.param, share, row.staging, p, row.draws_of(fusedopt::kParam));
  }

 private:
  __device__ const AnyOperand& of(Operand operand) const {
    return operand == fusedopt::kParam     ? row.param
           : operand == fusedopt::kPartner ? row.partner
           : operand == fusedopt::kAverage ? row.average
                                           : row.grad;
  }
};

template <class T>
__device__ __noinline__ void load_param(AnyRow& row, const Share share, const Column<T> p) {
  load_operand(row.param, share, row.staging, p);
  complete_param<T>(AnyPart<T>{row, share}, row.pair, p);
}

template <class T>
__device__ __noinline__ void store_param(AnyRow& row, const Share share, const Column<T> p) {
  const WriteBack<T> how = {row.pair,
                            row.has(fusedopt::cuda::kStochastic),
                            row.average.data != nullptr,
                            row.has(fusedopt::cuda::kNewAverage),
                            row.has(fusedopt::cuda::kClearsGrad),
                            static_cast<T>(row.average_weight)};
  write_back(AnyPart<T>{row, share}, how, p);
}

// Numbers of a warp's tile in shared memory, the row that they are from, and how they come and go.
template <class R, int variant, class T>
class AnyTile {
 public:
  static constexpr int kStates = Shape<R>::kStates;
  struct Memory {
    T numbers[2 + kStates][kAnyTile];
    AnyRow row;
  };

  __device__ AnyTile(const UpdateArguments& a, const Chunk<R>& chunk, Memory& memory)
      : memory_(memory),
        row_(*chunk.row),
        extras_(row_.extras ? reinterpret_cast<const TableExtras<kStates>*>(a.table.words + row_.extras) : nullptr),
        layout_(row_.layout ? a.table.words + row_.layout : nullptr) {
    if (threadIdx.x % kLanes == 0) {
      AnyRow& row = memory.row;
      row.param = operand(row_.param, row_.dtypes[0], 0);
      row.grad = operand(const_cast<void*>(row_.grad), row_.dtypes[1], 1);
      row.average_weight = extras_ ? extras_->average_weight : 0;
      row.key = stream(a.key, a.first_slot + chunk.slot);
      row.pair = extras_ ? extras_->pair : Pair::none;
      row.flags = extras_ ? extras_->flags : 0;
      row.numbering = row.has(fusedopt::cuda::kPart) ? &extras_->numbering : nullptr;
      row.average = operand(nullptr, Dtype::f32, 3 + kStates);
      if (extras_) {
        row.partner = operand(extras_->partner, extras_->partner_dtype, 2 + kStates);
        row.average = operand(extras_->average, extras_->average_dtype, 3 + kStates);
      }
    }
    __syncwarp();
  }

  // The tile that begins with element `at` of the chunk.
  __device__ Share share(const Chunk<R>& chunk, int at) const {
    const int n = kAnyTile < chunk.n - at ? kAnyTile : chunk.n - at;
    return {chunk.begin + at, n, !layout_ && n == kAnyTile};
  }

  // Numbers of operand `at`: param, grad, states.
  __device__ Column<T> column(int at) const { return {memory_.numbers[at] + threadIdx.x % kLanes}; }

  __device__ void load(const Share& share) const {
    load_param(memory_.row, share, column(0));
    load_operand(memory_.row.grad, share, memory_.row.staging, column(1));
    for (int k = 0; k < kStates; ++k) {
      if (!R::keeps(variant, k)) continue;
      if (coded(k))
        load_codes(codes(k), share, column(2 + k));
      else
        load_operand(state(k), share, memory_.row.staging, column(2 + k));
    }
  }

  __device__ void store(const Share& share) const {
    store_param(memory_.row, share, column(0));
    for (int k = 0; k < kStates; ++k) {
      if (!R::keeps(variant, k)) continue;
      const bool by_chance = extras_ && (extras_->by_chance >> k & 1);
      const AnyDraws draws = memory_.row.draws_of(fusedopt::kState + k);
      if (coded(k))
        store_codes(codes(k), share, column(2 + k), by_chance, draws);
      else if (by_chance)
        store_by_chance(state(k), share, memory_.row.staging, column(2 + k), draws);
      else
        store_operand(state(k), share, memory_.row.staging, column(2 + k));
    }
  }

 private:
  __device__ bool coded(int k) const { return extras_ && (extras_->coded >> k & 1); }
  __device__ AnyCodes codes(int k) const {
    return {static_cast<uint32_t*>(row_.state[k]), extras_->scales[k], row_.dtypes[2 + k], state(k)};
  }
  __device__ AnyOperand state(int k) const { return operand(row_.state[k], row_.dtypes[2 + k], 2 + k); }
  __device__ AnyOperand operand(void* data, Dtype dtype, int place) const {
    return {data, layout_, dtype, static_cast<uint8_t>(place),
            static_cast<uint8_t>(fusedopt::cuda::layout_operands(kStates))};
  }

  Memory& memory_;
  const TableRow<kStates>& row_;
  const TableExtras<kStates>* extras_;  // null: none
  const uint64_t* layout_;              // null: dense
};

// Blocks of an SM, as many as the tiles leave room for: a thread gets 72 registers, or 128 for doubles.
template <class T>
constexpr int kAnyBlocks = sizeof(T) == sizeof(double) ? 8 : 14;

template <class R, int variant, class T>
__global__ void __launch_bounds__(kAnyWarps* kLanes, kAnyBlocks<T>)
    update_any(const __grid_constant__ UpdateArguments a) {
  using Numbers = AnyTile<R, variant, T>;
  __shared__ typename Numbers::Memory memory[kAnyWarps];
  Chunk<R> chunk;
  if (!chunk.template find<kAnyWarps>(a)) return;
  const Numbers tile(a, chunk, memory[threadIdx.x / kLanes]);
  const T* numbers = static_cast<const T*>(chunk.numbers);
  const auto scalars = Shape<R>::template scalars<T>(numbers);

  for (int at = 0; at < chunk.n; at += kAnyTile) {
    const Share share = tile.share(chunk, at);
    tile.load(share);
#pragma unroll 2
    for (int j = 0; j < kShare; ++j) {
      if (share.element(j) >= share.n) break;
      T p = tile.column(0)[j], s[Numbers::kStates] = {};
      for (int k = 0; k < Numbers::kStates; ++k)
        if (R::keeps(variant, k)) s[k] = tile.column(2 + k)[j];
      R::template update<variant>(p, tile.column(1)[j] * numbers[0], s, scalars);
      tile.column(0)[j] = p;
      for (int k = 0; k < Numbers::kStates; ++k)
        if (R::keeps(variant, k)) tile.column(2 + k)[j] = s[k];
    }
    tile.store(share);
  }
}

}  // namespace FUSEDOPT_NAMESPACE
