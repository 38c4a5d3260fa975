// What a lane has of one operand, as it lies in memory.
#pragma once

#include <cuda_runtime.h>

#include <type_traits>

#include "../codec.h"

namespace FUSEDOPT_NAMESPACE {

// Bytes of a device's widest access, 32 from 10.0 on where the compiler can say so. What runs on a CPU takes the ways
// of all devices.
#if defined(__CUDA_ARCH__) && (__CUDA_ARCH__ < 1000 || CUDART_VERSION < 12090)
constexpr int kWidest = 16;
#else
constexpr int kWidest = 32;
#endif

struct alignas(32) Words32 {
  uint32_t at[8];
};

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
// CUDA's own functions know 16 bytes at most, and two neighbouring accesses are not made one.
template <bool stays>
__device__ Words32 load_words(const Words32* from) {
  Words32 w;
#define FUSEDOPT_LOAD(policy)                                                                              \
  asm volatile("ld.global." policy ".v8.b32 {%0, %1, %2, %3, %4, %5, %6, %7}, [%8];"                       \
               : "=r"(w.at[0]), "=r"(w.at[1]), "=r"(w.at[2]), "=r"(w.at[3]), "=r"(w.at[4]), "=r"(w.at[5]), \
                 "=r"(w.at[6]), "=r"(w.at[7])                                                              \
               : "l"(from))
  if (stays)
    FUSEDOPT_LOAD("cg");
  else
    FUSEDOPT_LOAD("cs");
#undef FUSEDOPT_LOAD
  return w;
}
template <bool stays>
__device__ void store_words(Words32* to, const Words32& w) {
#define FUSEDOPT_STORE(policy)                                                                                  \
  asm volatile("st.global." policy ".v8.b32 [%0], {%1, %2, %3, %4, %5, %6, %7, %8};" ::"l"(to), "r"(w.at[0]),   \
               "r"(w.at[1]), "r"(w.at[2]), "r"(w.at[3]), "r"(w.at[4]), "r"(w.at[5]), "r"(w.at[6]), "r"(w.at[7]) \
               : "memory")
  if (stays)
    FUSEDOPT_STORE("cg");
  else
    FUSEDOPT_STORE("cs");
#undef FUSEDOPT_STORE
}
#endif

// They are read and written once a step, so the caches may drop them first; only what stays, the param, stays for the
// next forward pass.
template <bool stays, class Words>
__device__ Words load_words(const Words* from) {
  return stays ? __ldcg(from) : __ldcs(from);
}
template <bool stays, class Words>
__device__ void store_words(Words* to, const Words& words) {
  if (stays)
    __stcg(to, words);
  else
    __stcs(to, words);
}

// n elements from consecutive addresses or, one by one, from any.
template <class S, int n>
class Elements {
  static constexpr int kSize = sizeof(S), kBytes = n * kSize;
  uint32_t word_[kBytes / sizeof(uint32_t)];

 public:
  // As many bytes at a time as there are, up to `widest`.
  template <bool stays, int widest>
  __device__ void load(const S* from) {
    using Words = std::conditional_t<kBytes % widest == 0 && widest == sizeof(Words32), Words32, uint4>;
    Words raw[kBytes / sizeof(Words)];
#pragma unroll
    for (size_t k = 0; k < kBytes / sizeof(Words); ++k)
      raw[k] = load_words<stays>(reinterpret_cast<const Words*>(from) + k);
    memcpy(word_, raw, sizeof(raw));
  }
  template <bool stays, int widest>
  __device__ void store(S* to) const {
    using Words = std::conditional_t<kBytes % widest == 0 && widest == sizeof(Words32), Words32, uint4>;
    Words raw[kBytes / sizeof(Words)];
    memcpy(raw, word_, sizeof(raw));
#pragma unroll
    for (size_t k = 0; k < kBytes / sizeof(Words); ++k) store_words<stays>(reinterpret_cast<Words*>(to) + k, raw[k]);
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
  // Two neighbours, of which the first has an even number.
  __device__ void set(int i, const S (&two)[2]) { memcpy(word_ + i * kSize / 4, two, sizeof(two)); }

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
