// Rows of any rule and mix, any strides and with extras. Most tiles are whole, dense and of storages that training runs
// on: of those a lane has eight elements of each operand in registers, first as they lie in memory, so that the loads
// of all operands are under way before the first is looked at, then as numbers. Other tiles go element by element.
#pragma once

#include "any_lane.cuh"

namespace FUSEDOPT_NAMESPACE {

// A warp's row, which has the first of so many states or some of them, and a lane's numbers of the tile at hand.
template <class T, int kStates>
class AnyTile {
 public:
  // Floats are in registers, where a place has to be known when it is compiled.
  static constexpr int kUnroll = sizeof(T) == sizeof(float) ? kShare : 1;
  // Of the param, the gradient and the states.
  struct Values {
    T p[kShare], g[kShare], s[kStates][kShare];
  } at;

  __device__ AnyTile(const UpdateArguments& a, const CommonRule& rule, const AnyChunk& chunk)
      : row_(a, rule, chunk.row, chunk.slot) {
    registers_ = sizeof(T) == sizeof(float) && !row_.layout && in_registers(row_.row->dtypes[0]) &&
                 in_registers(row_.row->dtypes[1]);
#pragma unroll
    for (int k = 0; k < kStates; ++k)
      if (row_.keeps(k))
        registers_ = registers_ && in_registers(row_.row->dtypes[2 + k]) &&
                     !(row_.by_chance(k) && row_.row->dtypes[2 + k] == Dtype::f16);
    if (const auto* extras = row_.extras)
      registers_ = registers_ && in_registers(extras->partner_dtype) && in_registers(extras->average_dtype) &&
                   !(row_.has(fusedopt::cuda::kStochastic) && row_.row->dtypes[0] == Dtype::f16);
  }

  // Of the tile that begins with element `at` of the chunk.
  __device__ static Share share(const AnyChunk& chunk, int at) {
    return {chunk.begin + at, kAnyTile < chunk.n - at ? kAnyTile : chunk.n - at};
  }

  // Elements beyond the row's end are zeros.
  __device__ void load(const Share& share) {
    if constexpr (sizeof(T) == sizeof(float)) {
      if (in_registers_of(share)) return load_at_once(share);
      Values one_by_one;
      load_one_by_one(share, one_by_one);
#pragma unroll
      for (int j = 0; j < kShare; ++j) copy(one_by_one, at, j);
    } else {
      load_one_by_one(share, at);
    }
  }
  __device__ void store(const Share& share) {
    if constexpr (sizeof(T) == sizeof(float)) {
      if (in_registers_of(share)) return store_at_once(share);
      Values one_by_one;
#pragma unroll
      for (int j = 0; j < kShare; ++j) copy(at, one_by_one, j);
      store_one_by_one(share, one_by_one);
    } else {
      store_one_by_one(share, at);
    }
  }

 private:
  __device__ bool in_registers_of(const Share& share) const { return registers_ && share.n == kAnyTile; }
  __device__ static void copy(const Values& from, Values& to, int j) {
    to.p[j] = from.p[j];
    to.g[j] = from.g[j];
#pragma unroll
    for (int k = 0; k < kStates; ++k) to.s[k][j] = from.s[k][j];
  }

  __device__ void load_at_once(const Share& share) {
    Raw grad, state[kStates];
    fetch(row_.operand(fusedopt::kParam), share, param_);
    if (row_.reads_partner()) fetch_partner(share);
    fetch(row_.operand(fusedopt::kGrad), share, grad);
    if (row_.extras && row_.extras->average) fetch(row_.operand(fusedopt::kAverage), share, average_);
#pragma unroll
    for (int k = 0; k < kStates; ++k) {
      if (!row_.keeps(k)) continue;
      row_.coded(k) ? fetch_codes(AnyCodes(row_, k, share), state[k]) : fetch(row_.state(k), share, state[k]);
    }
    decode_all(row_.row->dtypes[0], param_, at.p);
    complete_param<float>(part(share, grad), row_.pair(), static_cast<float*>(at.p));
    decode_all(row_.row->dtypes[1], grad, at.g);
#pragma unroll
    for (int k = 0; k < kStates; ++k) {
      if (!row_.keeps(k)) continue;
      if (row_.coded(k)) {
        const Numbers<float> numbers = decode_codes(row_.row->dtypes[2 + k], state[k]);
        memcpy(at.s[k], numbers.at, sizeof(numbers));
      } else {
        decode_all(row_.row->dtypes[2 + k], state[k], at.s[k]);
      }
    }
  }

  __device__ void store_at_once(const Share& share) {
    Raw grad, raw;
#pragma unroll
    for (int k = 0; k < kStates; ++k) {
      if (!row_.keeps(k)) continue;
      if (row_.coded(k)) {
        store_codes_of(k, share, at.s[k]);
        continue;
      }
      encode_all(row_.row->dtypes[2 + k], share, at.s[k], row_.by_chance(k), row_.draws_of(fusedopt::kState + k), raw);
      put(row_.state(k), share, raw);
    }
    const WriteBack<float> how = row_.how<float>();
    write_back(part(share, grad), how, static_cast<float*>(at.p));
    put(row_.operand(fusedopt::kParam), share, param_);
    if (how.pair != Pair::none) put_partner(share);
    if (how.averages) put(row_.operand(fusedopt::kAverage), share, average_);
    if (how.clears_grad) put(row_.operand(fusedopt::kGrad), share, grad);
  }

  // In memory of the lane's own, so that loops need not be unrolled.
  __device__ void load_one_by_one(const Share& share, Values& to) const {
#pragma unroll 1
    for (int j = 0; j < kShare; ++j) {
      const int64_t e = share.begin + share.element(j);
      const bool there = share.element(j) < share.n;
      to.p[j] = there ? load_one<T>(row_, e) : 0;
      to.g[j] = there ? read_one<T>(row_.operand(fusedopt::kGrad), e) : 0;
#pragma unroll 1
      for (int k = 0; k < row_.rule.states; ++k)
        if (row_.keeps(k) && !row_.coded(k)) to.s[k][j] = there ? read_one<T>(row_.state(k), e) : 0;
    }
#pragma unroll 1
    for (int k = 0; k < row_.rule.states; ++k)
      if (row_.keeps(k) && row_.coded(k)) load_codes_of(k, share, to.s[k]);
  }
  __device__ void store_one_by_one(const Share& share, Values& from) const {
#pragma unroll 1
    for (int j = 0; j < kShare; ++j) {
      const int64_t e = share.begin + share.element(j);
      const bool there = share.element(j) < share.n;
      if (there) store_one<T>(row_, e, from.p[j]);
#pragma unroll 1
      for (int k = 0; k < row_.rule.states; ++k) {
        if (!row_.keeps(k)) continue;
        if (row_.coded(k))
          from.s[k][j] = there ? from.s[k][j] : 0;
        else if (there)
          write_one<T>(row_.state(k), e, from.s[k][j], row_.by_chance(k), row_.draws_of(fusedopt::kState + k));
      }
    }
#pragma unroll 1
    for (int k = 0; k < row_.rule.states; ++k)
      if (row_.keeps(k) && row_.coded(k)) store_codes_of(k, share, from.s[k]);
  }
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

  // The lower half of a param has no dtype of its own.
  __device__ AnyOperand partner() const {
    AnyOperand operand = row_.operand(fusedopt::kPartner);
    if (row_.pair() == Pair::remainder) operand.dtype = Dtype::bf16;
    return operand;
  }
  __device__ void fetch_partner(const Share& share) { fetch(partner(), share, partner_); }
  __device__ void put_partner(const Share& share) const { put(partner(), share, partner_); }
  __device__ AnyPart part(const Share& share, Raw& grad) { return {row_, share, param_, partner_, average_, grad}; }

  const AnyRow row_;
  bool registers_;
  Raw param_, partner_, average_;
};

}  // namespace FUSEDOPT_NAMESPACE
