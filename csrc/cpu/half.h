// Arrays of float16 as floats and back, a vector at a time where processors have instructions for it: in integers one
// number takes some twenty operations. The bits are codec.h's. Included once per instruction set.
#pragma once

#ifdef FUSEDOPT_F16C
#include <immintrin.h>
#endif

#include "../codec.h"

namespace FUSEDOPT_NAMESPACE {

#ifdef FUSEDOPT_F16C
constexpr bool kConvertsHalves = true;
#ifdef FUSEDOPT_ISA_AVX512
// Of the forms without a mask g++ 12 says that they begin with what was never set.
constexpr __mmask16 kAllOf16 = 0xffff;
#endif

// As many as a vector has, from the i-th on; returns where it stopped.
inline int64_t decode_vectors(const f16* from, float* to, int64_t n) {
  int64_t i = 0;
#ifdef FUSEDOPT_ISA_AVX512
  for (; i + 16 <= n; i += 16)
    _mm512_storeu_ps(to + i,
                     _mm512_maskz_cvtph_ps(kAllOf16, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i))));
#endif
  for (; i + 8 <= n; i += 8)
    _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i))));
  return i;
}

inline int64_t encode_vectors(const float* from, f16* to, int64_t n) {
  int64_t i = 0;
#ifdef FUSEDOPT_ISA_AVX512
  for (; i + 16 <= n; i += 16)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i),
                        _mm512_maskz_cvtps_ph(kAllOf16, _mm512_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT));
#endif
  for (; i + 8 <= n; i += 8)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i),
                     _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT));
  return i;
}
#else
constexpr bool kConvertsHalves = false;

inline int64_t decode_vectors(const f16*, float*, int64_t) { return 0; }
inline int64_t encode_vectors(const float*, f16*, int64_t) { return 0; }
#endif

// n numbers; the two arrays share no memory.
template <class Stored, class T>
inline void decode_all(const Stored* from, T* to, int64_t n) {
  int64_t done = 0;
  if constexpr (std::is_same_v<Stored, f16> && std::is_same_v<T, float>) done = decode_vectors(from, to, n);
  from += done, to += done, n -= done;
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) to[i] = static_cast<T>(decode(from[i]));
}
template <class T, class Stored>
inline void encode_all(const T* from, Stored* to, int64_t n) {
  int64_t done = 0;
  if constexpr (std::is_same_v<Stored, f16> && std::is_same_v<T, float>) done = encode_vectors(from, to, n);
  from += done, to += done, n -= done;
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) encode(from[i], to[i]);
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
