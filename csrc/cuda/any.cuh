// Rows of any mix, any strides and with extras. Most tiles are whole, dense and of storages that training runs on: of
// those a lane has eight elements of each operand in registers, first as they lie in memory, so that the loads of all
// operands are under way before the first is looked at, then as numbers. Other tiles go element by element.
#pragma once

#include "any_lane.cuh"

namespace FUSEDOPT_NAMESPACE {

// A warp's row, and a lane's numbers of the tile at hand.
template <class R, int variant, class T>
class AnyTile {
 public:
  static constexpr int kStates = Shape<R>::kStates;
  T p[kShare], g[kShare], s[kStates][kShare];

  __device__ AnyTile(const UpdateArguments& a, const Chunk<R>& chunk) : row_(a, chunk.row, chunk.slot) {
    registers_ = sizeof(T) == sizeof(float) && !row_.layout && in_registers(row_.row->dtypes[0]) &&
                 in_registers(row_.row->dtypes[1]);
#pragma unroll
    for (int k = 0; k < kStates; ++k)
      if (R::keeps(variant, k))
        registers_ = registers_ && in_registers(row_.row->dtypes[2 + k]) &&
                     !(row_.by_chance(k) && row_.row->dtypes[2 + k] == Dtype::f16);
    if (const auto* extras = row_.extras)
      registers_ = registers_ && in_registers(extras->partner_dtype) && in_registers(extras->average_dtype) &&
                   !(row_.has(fusedopt::cuda::kStochastic) && row_.row->dtypes[0] == Dtype::f16);
  }

  // Of the tile that begins with element `at` of the chunk.
  __device__ Share share(const Chunk<R>& chunk, int at) const {
    return {chunk.begin + at, kAnyTile < chunk.n - at ? kAnyTile : chunk.n - at};
  }
  __device__ bool in_registers_of(const Share& share) const {
    return sizeof(T) == sizeof(float) && registers_ && share.n == kAnyTile;
  }

  // All at once: only where that is in registers.
  __device__ void load(const Share& share) {
    Raw grad, state[kStates];
    fetch(row_.operand(fusedopt::kParam), share, param_);
    if (row_.reads_partner()) fetch_partner(share);
    fetch(row_.operand(fusedopt::kGrad), share, grad);
    if (row_.extras && row_.extras->average) fetch(row_.operand(fusedopt::kAverage), share, average_);
#pragma unroll
    for (int k = 0; k < kStates; ++k) {
      if (!R::keeps(variant, k)) continue;
      row_.coded(k) ? fetch_codes(AnyCodes(row_, k, share), state[k]) : fetch(row_.state(k), share, state[k]);
    }
    decode_all(row_.row->dtypes[0], param_, p);
    complete_param<float>(part(share, grad), row_.pair(), static_cast<float*>(p));
    decode_all(row_.row->dtypes[1], grad, g);
#pragma unroll
    for (int k = 0; k < kStates; ++k) {
      if (!R::keeps(variant, k)) continue;
      if (row_.coded(k)) {
        const Numbers<float> numbers = decode_codes(row_.row->dtypes[2 + k], state[k]);
        memcpy(s[k], numbers.at, sizeof(numbers));
      } else {
        decode_all(row_.row->dtypes[2 + k], state[k], s[k]);
      }
    }
  }

  __device__ void store(const Share& share) {
    Raw grad, raw;
#pragma unroll
    for (int k = 0; k < kStates; ++k) {
      if (!R::keeps(variant, k)) continue;
      if (row_.coded(k)) {
        store_codes_of(k, share, s[k]);
        continue;
      }
      encode_all(row_.row->dtypes[2 + k], share, s[k], row_.by_chance(k), row_.draws_of(fusedopt::kState + k), raw);
      put(row_.state(k), share, raw);
    }
    const WriteBack<float> how = row_.template how<float>();
    write_back(part(share, grad), how, static_cast<float*>(p));
    put(row_.operand(fusedopt::kParam), share, param_);
    if (how.pair != Pair::none) put_partner(share);
    if (how.averages) put(row_.operand(fusedopt::kAverage), share, average_);
    if (how.clears_grad) put(row_.operand(fusedopt::kGrad), share, grad);
  }

  // One after the other.
  __device__ T grad_one(int64_t e) const { return read_one<T>(row_.operand(fusedopt::kGrad), e); }
  __device__ T state_one(int k, int64_t e) const { return read_one<T>(row_.state(k), e); }
  __device__ T load_param_one(int64_t e) const { return load_one<T, kStates>(row_, e); }
  __device__ void store_param_one(int64_t e, T p) const { store_one<T, kStates>(row_, e, p); }
  __device__ void store_state_one(int k, int64_t e, T x) const {
    write_one<T>(row_.state(k), e, x, row_.by_chance(k), row_.draws_of(fusedopt::kState + k));
  }
  __device__ bool coded(int k) const { return row_.coded(k); }
  __device__ void load_codes_of(int k, const Share& share, T* to) const {
    Raw raw;
    fetch_codes(AnyCodes(row_, k, share), raw);
    const Numbers<float> numbers = decode_codes(row_.row->dtypes[2 + k], raw);
#pragma unroll
    for (int j = 0; j < kShare; ++j) to[j] = numbers.at[j];
  }
  __device__ void store_codes_of(int k, const Share& share, const T* from) const {
    Numbers<float> numbers;
#pragma unroll
    for (int j = 0; j < kShare; ++j) numbers.at[j] = static_cast<float>(from[j]);
    store_codes(AnyCodes(row_, k, share), numbers, row_.by_chance(k), row_.draws_of(fusedopt::kState + k),
                share.begin + share.element(0));
  }

 private:
  // The lower half of a param has no dtype of its own.
  __device__ AnyOperand partner() const {
    AnyOperand operand = row_.operand(fusedopt::kPartner);
    if (row_.pair() == Pair::remainder) operand.dtype = Dtype::bf16;
    return operand;
  }
  __device__ void fetch_partner(const Share& share) { fetch(partner(), share, partner_); }
  __device__ void put_partner(const Share& share) const { put(partner(), share, partner_); }
  __device__ AnyPart<kStates> part(const Share& share, Raw& grad) {
    return {row_, share, param_, partner_, average_, grad};
  }

  const AnyRow<kStates> row_;
  bool registers_;
  Raw param_, partner_, average_;
};

// A tile whose elements are stepped one after the other.
template <class R, int variant, class T, class Scalars>
__device__ void step_one_by_one(const AnyTile<R, variant, T>& tile, const Share& share, T multiplier,
                                const Scalars& scalars) {
  constexpr int kStates = Shape<R>::kStates;
  T coded[kStates][kShare];
#pragma unroll
  for (int k = 0; k < kStates; ++k)
    if (R::keeps(variant, k) && tile.coded(k)) tile.load_codes_of(k, share, coded[k]);
#pragma unroll 1
  for (int j = 0; j < kShare; ++j) {
    const int64_t e = share.begin + share.element(j);
    const bool there = share.element(j) < share.n;
    T p = 0, g = 0, s[kStates] = {};  // zeros are what codes have beyond the row's end
    if (there) {
      p = tile.load_param_one(e);
      g = tile.grad_one(e);
#pragma unroll
      for (int k = 0; k < kStates; ++k)
        if (R::keeps(variant, k)) s[k] = tile.coded(k) ? coded[k][j] : tile.state_one(k, e);
      R::template update<variant>(p, g * multiplier, s, scalars);
      tile.store_param_one(e, p);
    }
#pragma unroll
    for (int k = 0; k < kStates; ++k) {
      if (!R::keeps(variant, k)) continue;
      if (tile.coded(k))
        coded[k][j] = s[k];
      else if (there)
        tile.store_state_one(k, e, s[k]);
    }
  }
#pragma unroll
  for (int k = 0; k < kStates; ++k)
    if (R::keeps(variant, k) && tile.coded(k)) tile.store_codes_of(k, share, coded[k]);
}

// Blocks of an SM: a thread gets 128 registers.
constexpr int kAnyBlocks = 2;

template <class R, int variant, class T>
__global__ void __launch_bounds__(fusedopt::cuda::kWarps* kLanes, kAnyBlocks)
    update_any(const __grid_constant__ UpdateArguments a) {
  constexpr int kStates = Shape<R>::kStates;
  Chunk<R> chunk;
  if (!chunk.find(a)) return;
  AnyTile<R, variant, T> tile(a, chunk);
  const T* numbers = static_cast<const T*>(chunk.numbers);
  const T multiplier = numbers[0];
  const auto scalars = Shape<R>::template scalars<T>(numbers);

#pragma unroll 1
  for (int at = 0; at < chunk.n; at += kAnyTile) {
    const Share share = tile.share(chunk, at);
    if constexpr (sizeof(T) == sizeof(float)) {
      if (tile.in_registers_of(share)) {
        tile.load(share);
#pragma unroll
        for (int j = 0; j < kShare; ++j) {
          T s[kStates] = {};
#pragma unroll
          for (int k = 0; k < kStates; ++k)
            if (R::keeps(variant, k)) s[k] = tile.s[k][j];
          R::template update<variant>(tile.p[j], tile.g[j] * multiplier, s, scalars);
#pragma unroll
          for (int k = 0; k < kStates; ++k)
            if (R::keeps(variant, k)) tile.s[k][j] = s[k];
        }
        tile.store(share);
        continue;
      }
    }
    step_one_by_one(tile, share, multiplier, scalars);
  }
}

}  // namespace FUSEDOPT_NAMESPACE
