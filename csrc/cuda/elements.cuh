// What a lane has of one operand, as it lies in memory.
#pragma once

#include <cuda_runtime.h>

#include "../codec.h"

namespace FUSEDOPT_NAMESPACE {

// n elements from consecutive addresses or, one by one, from any.
template <class S, int n>
class Elements {
  static constexpr int kSize = sizeof(S);
  static constexpr int kVectors = n * kSize / static_cast<int>(sizeof(uint4));
  uint32_t word_[n * kSize / sizeof(uint32_t)];

 public:
  // 16 bytes at a time. They are read and written once a step, so the caches may drop them first; only what stays, the
  // param, stays for the next forward pass.
  template <bool stays>
  __device__ void load(const S* from) {
    uint4 raw[kVectors];
#pragma unroll
    for (int k = 0; k < kVectors; ++k)
      raw[k] =
          stays ? __ldcg(reinterpret_cast<const uint4*>(from) + k) : __ldcs(reinterpret_cast<const uint4*>(from) + k);
    memcpy(word_, raw, sizeof(raw));
  }
  template <bool stays>
  __device__ void store(S* to) const {
    uint4 raw[kVectors];
    memcpy(raw, word_, sizeof(raw));
#pragma unroll
    for (int k = 0; k < kVectors; ++k) {
      if (stays)
        __stcg(reinterpret_cast<uint4*>(to) + k, raw[k]);
      else
        __stcs(reinterpret_cast<uint4*>(to) + k, raw[k]);
    }
  }

  __device__ S operator[](int i) const {
    S x;
    if constexpr (kSize == sizeof(uint16_t))
      x.bits = static_cast<uint16_t>(word_[i / 2] >> i % 2 * 16);
    else
      memcpy(&x, word_ + i * (kSize / 4), kSize);
    return x;
  }
  __device__ void set(int i, S x) {
    if constexpr (kSize == sizeof(uint16_t))
      word_[i / 2] = i % 2 ? (word_[i / 2] & 0xffffu) | uint32_t{x.bits} << 16 : (word_[i / 2] & 0xffff0000u) | x.bits;
    else
      memcpy(word_ + i * (kSize / 4), &x, kSize);
  }
  __device__ void set(const S (&all)[n]) { memcpy(word_, all, sizeof(word_)); }

  // The element decoded. Of a word's upper half the compiler would first make a lower one.
  __device__ auto number(int i) const {
    if constexpr (kSize == sizeof(uint16_t) && dtype_of(S()) == fusedopt::Dtype::bf16)
      return bit_cast<float>(i % 2 ? word_[i / 2] & 0xffff0000u : word_[i / 2] << 16);
    else
      return decode((*this)[i]);
  }
};

// An address of which the compiler does not know how it was made. It would make those of all operands from one offset
// instead, anew in each round, which takes three times the instructions.
template <class At>
__device__ At opaque(At at) {
#ifdef __CUDA_ARCH__
  if constexpr (sizeof(At) == sizeof(uint64_t))
    asm("" : "+l"(at));
  else
    asm("" : "+r"(at));
#endif
  return at;
}

}  // namespace FUSEDOPT_NAMESPACE
