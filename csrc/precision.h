// Codecs of more than one piece: numbers rounded by chance, params in two halves, and states whose blocks share a
// scale. As in codec.h, all of it is arithmetic that every backend repeats to the bit.
#pragma once

#include <utility>

#include "codec.h"

namespace FUSEDOPT_NAMESPACE {

// 32-bit draws for up to 256 elements of a stream, from a multiple of 256 on, or for any one. A draw is a function of
// key and index, so a result depends neither on the order in which elements are visited nor on who visits them. The
// mixing is Wellons's "lowbias32" (2018) with a second word in the middle.
struct Draws {
  uint32_t low, high;  // of the index, with the key

  Draws() = default;
  FUSEDOPT_HD Draws(uint64_t key, int64_t first)
      : low(static_cast<uint32_t>(first) + static_cast<uint32_t>(key)),
        high(static_cast<uint32_t>(key >> 32) + static_cast<uint32_t>(first >> 32) * 0x9e3779b9u) {}

  FUSEDOPT_HD uint32_t operator()(int64_t i) const {
    uint32_t x = low + static_cast<uint32_t>(i);
    x ^= x >> 16;
    x *= 0x21f0aaadu;
    x ^= high;
    x ^= x >> 15;
    x *= 0x735a2d97u;
    x ^= x >> 15;
    return x;
  }
};
FUSEDOPT_HD uint32_t draw(uint64_t key, int64_t index) { return Draws(key, index)(0); }

// The number of a row's element in the whole, which is the index of its draws: however a tensor is divided among
// processes, its elements draw the same.
FUSEDOPT_HD int64_t number_of(const fusedopt::Numbering& numbering, int64_t e) {
  int64_t number = numbering.first + e;
  for (int c = 0; c < fusedopt::kCuts; ++c)
    if (numbering.run[c] > 0) number += e / numbering.run[c] * numbering.gap[c];
  return number;
}

// A stream's key out of a wider stream's and a number (Steele, Lea and Flood 2014, "Fast Splittable Pseudorandom Number
// Generators").
FUSEDOPT_HD uint64_t stream(uint64_t key, uint64_t number) {
  uint64_t z = key + (number + 1) * 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

// To one of the two neighbours in the narrower type, to each with the probability that makes the mean exact.
FUSEDOPT_HD void encode_by_chance(float x, uint32_t r, bf16& out) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  out.bits = static_cast<uint16_t>(x != x ? 0x7fc0u : (bits + (r >> 16)) >> 16);
}

FUSEDOPT_HD void encode_by_chance(float x, uint32_t r, f16& out) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint32_t sign = bits & 0x80000000u;
  const uint32_t magnitude = bits ^ sign;
  // A half below 2^-14 counts in units of 2^-24. With 2^-14 more its float has 13 bits below them, as those of others
  // have below a half's last: what is lost of it, at most half of the last, is rounded to the nearest.
  // Magnitudes are compared as integers with a sign, which takes a vector unit one operation.
  const bool small = static_cast<int32_t>(magnitude) < 0x38800000, nan = static_cast<int32_t>(magnitude) > 0x7f800000;
  const uint32_t least = bit_cast<uint32_t>(0x1p-14f), own = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0x1p-14f);
  const uint32_t finite = (select(small, own, magnitude) - select(small, least, 0x38000000u) + (r >> 19)) >> 13;
  const uint32_t most = select(nan, 0x7e00u, 0x7c00u);
  out.bits = static_cast<uint16_t>((sign >> 16) | (finite < most ? finite : most));
}

// The mean of the root is exact, and that of its square to within float16's precision squared.
FUSEDOPT_HD void encode_by_chance(float x, uint32_t r, r16& out) {
  encode_by_chance(sqrt(x), r, out.root);
  out.root.bits = nonzero(x, out.root);
}

FUSEDOPT_HD void encode_by_chance(double x, uint32_t r, bf16& out) { encode_by_chance(static_cast<float>(x), r, out); }
FUSEDOPT_HD void encode_by_chance(double x, uint32_t r, f16& out) { encode_by_chance(static_cast<float>(x), r, out); }
FUSEDOPT_HD void encode_by_chance(double x, uint32_t r, r16& out) { encode_by_chance(static_cast<float>(x), r, out); }
// Wider types are as wide as the arithmetic.
template <class T>
FUSEDOPT_HD void encode_by_chance(T x, uint32_t, float& out) {
  encode(x, out);
}
template <class T>
FUSEDOPT_HD void encode_by_chance(T x, uint32_t, double& out) {
  encode(x, out);
}

// A float32 in two halves: the upper is its bfloat16, ties away from zero so that what is left fits the lower.
FUSEDOPT_HD bf16 upper_half(float x) {
  return {static_cast<uint16_t>(x != x ? 0x7fc0u : (bit_cast<uint32_t>(x) + 0x8000u) >> 16)};
}
FUSEDOPT_HD int16_t lower_half(float x) {
  const uint32_t rest = bit_cast<uint32_t>(x) - (uint32_t{upper_half(x).bits} << 16);
  return static_cast<int16_t>(x != x ? 0 : static_cast<int32_t>(rest));
}
// Users edit params between steps: a lower half that leads out of the numbers around the upper is some other's.
FUSEDOPT_HD float join(float upper, int16_t lower) {
  const uint32_t bits = bit_cast<uint32_t>(upper), magnitude = bits & 0x7fffffffu;
  const bool below_zero = magnitude == 0 && lower < 0, above_infinity = magnitude == 0x7f800000u && lower > 0;
  return bit_cast<float>(bits + select(below_zero || above_infinity, 0, static_cast<uint32_t>(int32_t{lower})));
}

// What `stored` lacks of x; nothing where the one or the other is not finite.
FUSEDOPT_HD float lacking(float x, float stored) {
  const float rest = x - stored;
  return rest - rest == 0.0f ? rest : 0.0f;
}
// And back: what is lacking is half a unit of what is stored at most, and else it is that of a number before an edit.
// Having been rounded it may be just that half; a little less tells without a tie.
template <class T, class Stored>
FUSEDOPT_HD T complete(T stored, Stored rest) {
  const T lacks = static_cast<T>(decode(rest));
  Stored nearest;
  encode(fma(lacks, T(0.99951171875), stored), nearest);
  return static_cast<T>(decode(nearest)) == stored ? stored + lacks : stored;
}

// The exact number whose copy the user has, who may have edited it since: then the copy is the exact one.
template <class T, class Stored>
FUSEDOPT_HD T unless_edited(T exact, Stored stored) {
  Stored copy;
  encode(exact, copy);
  return decode(copy) == decode(stored) ? exact : static_cast<T>(decode(stored));
}

// A code counts magnitudes on a scale that is even near 0 and logarithmic beyond: x units of its block have the code of
// the upper bits of the float 1 + x, three of them significand in 8 bits and one in 4, less those of 1 (mu-law, as
// ITU-T G.711 codes speech; blocks as in Dettmers et al. 2022, "8-bit Optimizers via Block-wise Quantization"). Codes
// of 8 bits reach to 61,439 units with a sign and to 4e9 without one, for what is never negative; those of 4 bits to 11
// and 191. Nothing is special about 0 or the smallest code.
//
// A state in codes has a row of words for each block of elements in the order of its param's memory, the last block
// filled up with zeros. Place k of word w has the code of element w + k * (words of a block), so that neighbours are
// coded in neighbouring words, all in the same few operations and without a narrowing of any.
template <int bits, bool with_sign>
struct Code {
  static constexpr int kBits = bits;
  static constexpr bool kSigned = with_sign;  // then it is the upper of the bits
  static constexpr uint32_t kMost = (1u << (bits - with_sign)) - 1;
  static constexpr int kShift = bits == 8 ? 20 : 22;  // from a float's bits to a code's
  static constexpr int kPlaces = 32 / bits;
  static constexpr int kWords = fusedopt::kCodeBlock / kPlaces;
};
constexpr uint32_t kOne = 0x3f800000u, kSign = 0x80000000u;

template <class F>
FUSEDOPT_HD void with_code(fusedopt::Dtype dtype, F&& f) {
  switch (dtype) {
    case fusedopt::Dtype::i8:
      return f(Code<8, true>());
    case fusedopt::Dtype::u8:
      return f(Code<8, false>());
    case fusedopt::Dtype::i4:
      return f(Code<4, true>());
    case fusedopt::Dtype::u4:
      return f(Code<4, false>());
    default:
      return;
  }
}

// Units and one more, for which a magnitude's code stands.
template <class C>
FUSEDOPT_HD float units_and_one(uint32_t code) {
  return bit_cast<float>(kOne + (code << C::kShift));
}

// The quotient by a constant in three operations, where a division takes ten and a branch: what the first product lacks
// is exact, and with it the last is rounded as the quotient is (Markstein 1990). That holds for all magnitudes and for
// the divisors in scale_of, which a test goes through, as far as quotients are normal.
FUSEDOPT_HD float divided(float x, float divisor, float inverse) {
  const float quotient = x * inverse;
  return fma(fma(-quotient, divisor, x), inverse, quotient);
}

// The unit of a block, from the bits of its largest magnitude. The way to the largest code's number and back makes it
// one that comes out of its own number again, so that numbers decoded and coded once more give the same unit and codes.
// It follows the largest to the last bit: if it were rounded, an average that decays by less than that would stand
// still. One number that is not finite makes it NaN, and with it the whole block; so does float's largest where the way
// back ends beyond it.
template <class C>
FUSEDOPT_HD float scale_of(uint32_t largest) {
  constexpr float kLeastNormal = 1.17549435e-38f;  // it has an inverse
  const float units = units_and_one<C>(C::kMost) - 1.0f, inverse = 1.0f / units;
  const float scale = divided(divided(bit_cast<float>(largest), units, inverse) * units, units, inverse);
  const float normal = scale < kLeastNormal ? kLeastNormal : scale;
  return bit_cast<float>(scale == scale ? bit_cast<uint32_t>(normal) : 0x7fc00000u);
}

// The bits of a magnitude are in its order, with what is no number above all.
FUSEDOPT_HD uint32_t magnitude_of(float x) { return bit_cast<uint32_t>(x) & ~kSign; }

template <int left>
FUSEDOPT_HD uint32_t shifted(uint32_t x) {
  if constexpr (left < 0)
    return x >> -left;
  else
    return x << left;
}

// Calls f(std::integral_constant<int, place>()) for all places of a word, which decide what it is shifted by.
template <class F, int... place>
FUSEDOPT_HD void each_of_places(F&& f, std::integer_sequence<int, place...>) {
  (f(std::integral_constant<int, place>()), ...);
}
template <class C, class F>
FUSEDOPT_HD void each_place(F&& f) {
  each_of_places(f, std::make_integer_sequence<int, C::kPlaces>());
}

template <class C, int place>
FUSEDOPT_HD float decode(uint32_t word, float scale) {
  constexpr int kNext = (place + 1) * C::kBits;
  const uint32_t magnitude = shifted<C::kShift - place * C::kBits>(word) & C::kMost << C::kShift;
  const uint32_t sign = C::kSigned ? word << (32 - kNext) & kSign : 0;
  const float one_more = bit_cast<float>(kOne + magnitude);
  // The difference is exact, and so the same as one rounding of both, but for the codes that reach beyond 2^24.
  constexpr bool kExact = C::kSigned || C::kBits == 4;
  const float number = kExact ? fma(one_more, scale, -scale) : (one_more - 1.0f) * scale;
  return bit_cast<float>(bit_cast<uint32_t>(number) | sign);
}

// `top` for what is no number.
FUSEDOPT_HD float at_most(float x, float top) {
#ifdef __CUDA_ARCH__
  return ::fminf(x, top);  // one instruction, which the comparison is not
#else
  return x < top ? x : top;
#endif
}

// r: a draw, or its mean to round to the nearest.
constexpr uint32_t kNearest = 0x80000000u;

// Makes the codes of one block. Those of a block without a scale do not tell what its NaNs are made of.
template <class C>
struct Coder {
  float inverse;
  float top;  // the largest code's 1 + x, or 1 where the block has no scale
  uint32_t sign;

  // A millionth more, so that the largest reaches its code before draws are added.
  FUSEDOPT_HD explicit Coder(float scale)
      : inverse(1.0f / scale * 1.00000095367431640625f),
        top(scale == scale ? units_and_one<C>(C::kMost) : 1.0f),
        sign(scale == scale ? kSign : 0) {}

  // What a number's code is in its place of a word.
  template <int place>
  FUSEDOPT_HD uint32_t encode(float x, uint32_t r) const {
    constexpr int kBegin = place * C::kBits, kNext = kBegin + C::kBits;
    const float y = fma(bit_cast<float>(magnitude_of(x)), inverse, 1.0f);
    uint32_t code = bit_cast<uint32_t>(at_most(y, top)) - kOne + (r >> (32 - C::kShift));
    if constexpr (!C::kSigned) {
      // What is not 0 does not become 0, unless it is a denormal: a divisor must not vanish.
      const uint32_t its = magnitude_of(x), least = its < 1u << C::kShift ? its : 1u << C::kShift;
      code = code > least ? code : least;
    }
    const uint32_t magnitude = shifted<kBegin - C::kShift>(code) & C::kMost << kBegin;
    return C::kSigned ? magnitude | (bit_cast<uint32_t>(x) & sign) >> (32 - kNext) : magnitude;
  }
};

}  // namespace FUSEDOPT_NAMESPACE
