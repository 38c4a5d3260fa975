// Codecs of more than one piece: numbers rounded by chance, params in two halves, and states whose blocks share a
// scale. As in codec.h, all of it is arithmetic that every backend repeats to the bit.
#pragma once

#include "codec.h"

namespace FUSEDOPT_NAMESPACE {

// 32-bit draws for up to 256 elements of a stream, from a multiple of 256 on, or for any one. A draw is a function of
// key and index, so a result depends neither on the order in which elements are visited nor on who visits them. The
// mixing is Wellons's "lowbias32" (2018) with a second word in the middle.
struct Draws {
  uint32_t low, high;  // of the index, with the key

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
  const uint32_t normal = (magnitude - 0x38000000u + (r >> 19)) >> 13;
  // A half below 2^-14 counts in units of 2^-24. The comparison of a fraction of 24 bits is exact.
  const float units = magnitude < 0x38800000u ? bit_cast<float>(magnitude) * 16777216.0f : 0.0f;
  const int32_t whole = static_cast<int32_t>(units);
  const float above = units - static_cast<float>(whole);
  const uint32_t denormal =
      static_cast<uint32_t>(whole) + (static_cast<float>(r >> 8) * 5.9604644775390625e-8f < above);
  uint32_t half = magnitude < 0x38800000u ? denormal : normal;
  half = magnitude >= 0x47800000u || half > 0x7c00u ? 0x7c00u : half;
  out.bits = static_cast<uint16_t>((sign >> 16) | (magnitude > 0x7f800000u ? 0x7e00u : half));
}

FUSEDOPT_HD void encode_by_chance(double x, uint32_t r, bf16& out) { encode_by_chance(static_cast<float>(x), r, out); }
FUSEDOPT_HD void encode_by_chance(double x, uint32_t r, f16& out) { encode_by_chance(static_cast<float>(x), r, out); }
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
FUSEDOPT_HD float join(float upper, int16_t lower) {
  return bit_cast<float>(bit_cast<uint32_t>(upper) + static_cast<uint32_t>(static_cast<int32_t>(lower)));
}

// What `stored` lacks of x; nothing where the one or the other is not finite.
FUSEDOPT_HD float lacking(float x, float stored) {
  const float rest = x - stored;
  return rest - rest == 0.0f ? rest : 0.0f;
}

// A code of 8 bits is a small float: the upper bits of the ratio to the block's largest, three of them significand. It
// has a sign and four bits of exponent, or five for what is never negative, so that small numbers keep their relative
// size down to 2^-16 or 2^-32 of the largest (formats as in Micikevicius et al. 2022, "FP8 Formats for Deep Learning";
// blocks as in Dettmers et al. 2022, "8-bit Optimizers via Block-wise Quantization"). The largest comes back as itself,
// so coding once more changes nothing.
constexpr int kCodeShift = 20;  // from a float's bits to a code's
constexpr uint32_t kOne = 0x3f800000u;

FUSEDOPT_HD float ratio_of(int32_t magnitude, int32_t most) {
  const uint32_t bits = kOne - (static_cast<uint32_t>(most - magnitude) << kCodeShift);
  return magnitude != 0 ? bit_cast<float>(bits) : 0.0f;
}

// r: a draw, or its mean to round to the nearest.
constexpr uint32_t kNearest = 0x80000000u;
FUSEDOPT_HD int32_t magnitude_code(float ratio, uint32_t r, int32_t most) {
  const uint32_t above = bit_cast<uint32_t>(ratio) + (r >> (32 - kCodeShift)) - kOne;
  const int32_t code = most + (static_cast<int32_t>(above) >> kCodeShift);
  const float least = ratio_of(1, most);
  const int32_t low = static_cast<float>(r >> 8) * 5.9604644775390625e-8f * least < ratio ? 1 : 0;
  const int32_t either = ratio < least ? low : code < most ? code : most;
  return ratio > 0.0f ? either : 0;
}

FUSEDOPT_HD float decode(int8_t code, float scale) {
  const int32_t c = code, magnitude = c < 0 ? -c : c;
  const float ratio = ratio_of(magnitude, 127);
  return (c < 0 ? -ratio : ratio) * scale;
}
FUSEDOPT_HD float decode(uint8_t code, float scale) { return ratio_of(code, 255) * scale; }

FUSEDOPT_HD float inverse_of(float scale) { return scale > 0.0f ? 1.0f / scale : 0.0f; }

FUSEDOPT_HD void encode(float x, float inverse, uint32_t r, int8_t& out) {
  const int32_t code = magnitude_code(absolute(x) * inverse, r, 127);
  out = static_cast<int8_t>(x < 0.0f ? -code : code);
}
// What is above 0 stays so: a divisor must not vanish.
FUSEDOPT_HD void encode(float x, float inverse, uint32_t r, uint8_t& out) {
  const int32_t code = magnitude_code(x * inverse, r, 255);
  const int32_t least = x > 0.0f ? 1 : 0;
  out = static_cast<uint8_t>(code + (code == 0 ? least : 0));
}

// The bits of a magnitude are in its order, with what is no number above all.
FUSEDOPT_HD uint32_t magnitude_of(float x) { return bit_cast<uint32_t>(x) & 0x7fffffffu; }

template <class F>
FUSEDOPT_HD void with_code(fusedopt::Dtype dtype, F&& f) {
  dtype == fusedopt::Dtype::i8 ? f(int8_t()) : f(uint8_t());
}

}  // namespace FUSEDOPT_NAMESPACE
