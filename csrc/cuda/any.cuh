// Rows of any mix, any strides and with extras, an element at a time.
#pragma once

#include "../precision.h"
#include "kernels.cuh"

namespace FUSEDOPT_NAMESPACE {

using fusedopt::cuda::TableExtras;

// Where element e of a row lies in each operand.
template <int operands>
__device__ void locate(const uint64_t* layout, int64_t e, int64_t (&offset)[operands]) {
  for (int o = 0; o < operands; ++o) offset[o] = 0;
  for (int d = static_cast<int>(layout[0]) - 1; d >= 0; --d) {
    const uint64_t* dim = layout + 2 + d * (1 + operands);
    const int64_t size = static_cast<int64_t>(dim[0]), index = d == 0 ? e : e % size;
    e /= size;
    const bool looked_up = d == 0 && layout[1] != 0;
    const int64_t slice = looked_up ? reinterpret_cast<const int64_t*>(layout[1])[index] : index;
    for (int o = 0; o < operands; ++o)
      offset[o] += (o == fusedopt::kGrad ? index : slice) * static_cast<int64_t>(dim[1 + o]);
  }
}

// What all elements of a warp's chunk share.
template <class R>
struct AnyRow {
  static constexpr int kStates = Shape<R>::kStates;

  const TableRow<kStates>& row;
  const TableExtras<kStates>* extras;  // null: none
  const uint64_t* layout;              // null: dense
  double average_weight;
  uint64_t key;

  __device__ AnyRow(const UpdateArguments& a, const Chunk<R>& chunk)
      : row(*chunk.row),
        extras(row.extras ? reinterpret_cast<const TableExtras<kStates>*>(a.table.words + row.extras) : nullptr),
        layout(row.layout ? a.table.words + row.layout : nullptr),
        average_weight(a.average_weight),
        key(stream(a.key, chunk.slot)) {}

  __device__ bool coded(int k) const { return extras && (extras->coded >> k & 1); }
  __device__ bool any_coded() const { return extras && extras->coded; }
  __device__ fusedopt::Pair pair() const { return extras ? extras->pair : fusedopt::Pair::none; }
  __device__ bool has(uint8_t flag) const { return extras && (extras->flags & flag); }
};

template <class R, class T>
class AnyElement {
 public:
  static constexpr int kStates = Shape<R>::kStates;
  using Pair = fusedopt::Pair;

  __device__ AnyElement(const AnyRow<R>& of, int64_t e) : of_(of), e_(e) {
    for (int64_t& offset : offset_) offset = e;
    if (of.layout) locate(of.layout, e, offset_);
  }

  __device__ T param() const {
    const T p = load(of_.row.param, of_.row.dtypes[0], 0);
    if (of_.pair() == Pair::remainder)
      return static_cast<T>(join(static_cast<float>(p), static_cast<const int16_t*>(of_.extras->partner)[partner()]));
    if (of_.pair() == Pair::compensation) return p + load(of_.extras->partner, of_.extras->partner_dtype, kPartnerAt);
    return p;
  }
  __device__ T grad() const { return load(of_.row.grad, of_.row.dtypes[1], 1); }
  __device__ T state(int k) const {
    if (!of_.coded(k)) return load(of_.row.state[k], of_.row.dtypes[2 + k], 2 + k);
    T value = 0;
    with_code(of_.row.dtypes[2 + k], [&](auto type) {
      value = static_cast<T>(decode(static_cast<const decltype(type)*>(of_.row.state[k])[offset_[2 + k]],
                                    of_.extras->scales[k][e_ / fusedopt::kCodeBlock]));
    });
    return value;
  }

  __device__ void set_param(T p) const {
    const TableExtras<kStates>* extras = of_.extras;
    if (of_.pair() == Pair::remainder) {
      static_cast<bf16*>(of_.row.param)[offset_[0]] = upper_half(static_cast<float>(p));
      static_cast<int16_t*>(extras->partner)[partner()] = lower_half(static_cast<float>(p));
    } else {
      store(of_.row.param, of_.row.dtypes[0], 0, p, fusedopt::kParam,
            of_.has(fusedopt::cuda::kStochastic) && of_.pair() == Pair::none);
    }
    if (of_.pair() == Pair::copy) store(extras->partner, extras->partner_dtype, kPartnerAt, p);
    if (of_.pair() == Pair::compensation) {
      with_storage(extras->partner_dtype, [&](auto stored) {
        const float exact = static_cast<float>(p);
        encode(exact, stored);
        encode(lacking(exact, static_cast<float>(decode(stored))),
               static_cast<decltype(stored)*>(extras->partner)[partner()]);
      });
    }
    if (extras && extras->average) {
      const T weight = of_.has(fusedopt::cuda::kNewAverage) ? T(1) : static_cast<T>(of_.average_weight);
      const T before = load(extras->average, extras->average_dtype, kAverageAt);
      store(extras->average, extras->average_dtype, kAverageAt, lerp(before, p, weight));
    }
    if (of_.has(fusedopt::cuda::kClearsGrad)) store(const_cast<void*>(of_.row.grad), of_.row.dtypes[1], 1, T(0));
  }

  // `largest` is that of the block, in bits, for a state in codes.
  __device__ void set_state(int k, T value, uint32_t largest) const {
    const bool by_chance = of_.has(fusedopt::cuda::kStochastic);
    if (!of_.coded(k))
      return store(of_.row.state[k], of_.row.dtypes[2 + k], 2 + k, value, fusedopt::kState + k, by_chance);
    const float inverse = inverse_of(bit_cast<float>(largest));
    const uint32_t r = by_chance ? draw(stream(of_.key, fusedopt::kState + k), e_) : kNearest;
    with_code(of_.row.dtypes[2 + k], [&](auto type) {
      encode(static_cast<float>(value), inverse, r, static_cast<decltype(type)*>(of_.row.state[k])[offset_[2 + k]]);
    });
  }

 private:
  static constexpr int kPartnerAt = 2 + kStates, kAverageAt = 3 + kStates;

  __device__ int64_t partner() const { return offset_[kPartnerAt]; }
  __device__ T load(const void* base, Dtype dtype, int at) const {
    T value = 0;
    with_storage(dtype, [&](auto type) {
      value = static_cast<T>(decode(static_cast<const decltype(type)*>(base)[offset_[at]]));
    });
    return value;
  }
  __device__ void store(void* base, Dtype dtype, int at, T value, int operand = 0, bool by_chance = false) const {
    with_storage(dtype, [&](auto type) {
      auto& out = static_cast<decltype(type)*>(base)[offset_[at]];
      by_chance ? encode_by_chance(value, draw(stream(of_.key, operand), e_), out) : encode(value, out);
    });
  }

  const AnyRow<R>& of_;
  int64_t e_, offset_[4 + kStates];
};

template <class R, int variant, class T>
__global__ void __launch_bounds__(fusedopt::cuda::kWarps* kLanes, 2)
    update_any(const __grid_constant__ UpdateArguments a) {
  constexpr int kStates = Shape<R>::kStates;
  Chunk<R> chunk;
  if (!chunk.find(a)) return;
  const AnyRow<R> row(a, chunk);
  const T* numbers = static_cast<const T*>(chunk.numbers);
  const auto scalars = Shape<R>::template scalars<T>(numbers);
  const int lane = threadIdx.x % kLanes;
  const auto updated = [&](const AnyElement<R, T>& element, T(&s)[kStates]) {
    T p = element.param();
    for (int k = 0; k < kStates; ++k) s[k] = R::keeps(variant, k) ? element.state(k) : T(0);
    R::template update<variant>(p, element.grad() * numbers[0], s, scalars);
    return p;
  };

  for (int block = 0; block < chunk.n; block += fusedopt::kCodeBlock) {
    const int end = block + fusedopt::kCodeBlock < chunk.n ? block + fusedopt::kCodeBlock : chunk.n;
    // A block's largest must be known before the first of its codes is written, so codes are updated twice.
    uint32_t largest[kStates] = {};
    if (row.any_coded()) {
      for (int i = block + lane; i < end; i += kLanes) {
        T s[kStates];
        updated(AnyElement<R, T>(row, chunk.begin + i), s);
        for (int k = 0; k < kStates; ++k) {
          const uint32_t magnitude = magnitude_of(static_cast<float>(s[k]));
          largest[k] = magnitude > largest[k] ? magnitude : largest[k];
        }
      }
      for (int k = 0; k < kStates; ++k) {
        for (int lanes = kLanes / 2; lanes > 0; lanes /= 2) {
          const uint32_t other = __shfl_xor_sync(~0u, largest[k], lanes);
          largest[k] = other > largest[k] ? other : largest[k];
        }
      }
    }
    for (int i = block + lane; i < end; i += kLanes) {
      const AnyElement<R, T> element(row, chunk.begin + i);
      T s[kStates];
      const T p = updated(element, s);
      element.set_param(p);
      for (int k = 0; k < kStates; ++k)
        if (R::keeps(variant, k)) element.set_state(k, s[k], largest[k]);
    }
    if (!row.any_coded()) continue;
    // Every lane has decoded with the scale that was.
    __syncwarp();
    for (int k = 0; k < kStates; ++k)
      if (lane == 0 && row.coded(k))
        row.extras->scales[k][(chunk.begin + block) / fusedopt::kCodeBlock] = bit_cast<float>(largest[k]);
  }
}

}  // namespace FUSEDOPT_NAMESPACE
