// Arrays of float16 as floats and back, eight at a time where processors have instructions for it: in integers one
// number takes some twenty operations. The bits are codec.h's. Included once per instruction set.
#pragma once

#include "../codec.h"

namespace FUSEDOPT_NAMESPACE {

#ifdef FUSEDOPT_F16C
constexpr bool kConvertsHalves = true;

using Floats8 = float __attribute__((vector_size(32)));
using Words8 = int32_t __attribute__((vector_size(32)));
using Halves8 = int16_t __attribute__((vector_size(16)));

inline int64_t decode_eights(const f16* from, float* to, int64_t n) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    Halves8 halves;
    std::memcpy(&halves, from + i, sizeof(halves));
    const Floats8 x = __builtin_ia32_vcvtph2ps256(halves);
    const Words8 bits = reinterpret_cast<Words8>(x), is_nan = x != x;
    const Words8 made = (bits & ~is_nan) | (((bits & INT32_MIN) | 0x7fc00000) & is_nan);
    std::memcpy(to + i, &made, sizeof(made));
  }
  return i;
}

inline int64_t encode_eights(const float* from, f16* to, int64_t n) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    Floats8 x;
    std::memcpy(&x, from + i, sizeof(x));
    const Halves8 bits = __builtin_ia32_vcvtps2ph256(x, 0), is_nan = __builtin_convertvector(x != x, Halves8);
    const Halves8 made = (bits & ~is_nan) | (((bits & INT16_MIN) | int16_t{0x7e00}) & is_nan);
    std::memcpy(to + i, &made, sizeof(made));
  }
  return i;
}
#else
constexpr bool kConvertsHalves = false;

inline int64_t decode_eights(const f16*, float*, int64_t) { return 0; }
inline int64_t encode_eights(const float*, f16*, int64_t) { return 0; }
#endif

// n numbers; the two arrays share no memory.
template <class Stored, class T>
inline void decode_all(const Stored* from, T* to, int64_t n) {
  int64_t i = 0;
  if constexpr (std::is_same_v<Stored, f16> && std::is_same_v<T, float>) i = decode_eights(from, to, n);
#pragma GCC ivdep
  for (; i < n; ++i) to[i] = static_cast<T>(decode(from[i]));
}
template <class T, class Stored>
inline void encode_all(const T* from, Stored* to, int64_t n) {
  int64_t i = 0;
  if constexpr (std::is_same_v<Stored, f16> && std::is_same_v<T, float>) i = encode_eights(from, to, n);
#pragma GCC ivdep
  for (; i < n; ++i) encode(from[i], to[i]);
}

// Of roots: the squares, and back by way of a few on the stack.
template <class T>
inline void decode_all(const r16* from, T* to, int64_t n) {
  decode_all(&from->root, to, n);
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) to[i] = static_cast<T>(static_cast<float>(to[i]) * static_cast<float>(to[i]));
}
template <class T>
inline void encode_all(const T* from, r16* to, int64_t n) {
  constexpr int64_t kSome = 64;
  alignas(64) float root[kSome];
  for (int64_t at = 0; at < n; at += kSome) {
    const int64_t end = kSome < n - at ? kSome : n - at;
#pragma GCC ivdep
    for (int64_t i = 0; i < end; ++i) root[i] = sqrt(static_cast<float>(from[at + i]));
    encode_all(root, &to[at].root, end);
#pragma GCC ivdep
    for (int64_t i = 0; i < end; ++i) to[at + i].root.bits = nonzero(static_cast<float>(from[at + i]), to[at + i].root);
  }
}

}  // namespace FUSEDOPT_NAMESPACE
