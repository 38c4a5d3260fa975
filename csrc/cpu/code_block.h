// A block of codes at a time, on a host: for tiles once per instruction set, and for the bindings, who encode and
// decode whole states.
#pragma once

#include "../precision.h"

namespace FUSEDOPT_NAMESPACE {

template <class C, class T>
inline void decode_block(const uint32_t* words, const float scale, T* to) {
  each_place<C>([=](auto place) {
    T* out = to + place * C::kWords;
#pragma GCC ivdep
    for (int w = 0; w < C::kWords; ++w) out[w] = static_cast<T>(decode<C, place>(words[w], scale));
  });
}

template <class C, class T>
inline float scale_of_block(const T* in) {
  uint32_t largest = 0;
#pragma GCC unroll 4
  for (int i = 0; i < fusedopt::kCodeBlock; ++i) {
    const uint32_t magnitude = magnitude_of(static_cast<float>(in[i]));
    largest = magnitude > largest ? magnitude : largest;
  }
  return scale_of<C>(largest);
}

// draw(i) is what element i is rounded by.
template <class C, class T, class Draw>
inline void encode_block(const T* in, const float scale, uint32_t* words, const Draw draw) {
  const Coder<C> coder(scale);
#pragma GCC ivdep
  for (int w = 0; w < C::kWords; ++w) {
    uint32_t word = 0;
    each_place<C>([&](auto place) {
      const int e = w + place * C::kWords;
      word |= coder.template encode<place>(static_cast<float>(in[e]), draw(e));
    });
    words[w] = word;
  }
}

}  // namespace FUSEDOPT_NAMESPACE
