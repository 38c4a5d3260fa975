// Storage codecs: one element from and to its type in memory, as integer arithmetic that every compiler vectorises and
// every backend repeats to the bit. Types add up here; rules see only float or double.
//
// A GPU converts in one instruction what takes it up to twenty of these, with the same result for every number. Only
// the bits of a NaN differ, which on a GPU are of its arithmetic's making in any case.
#pragma once

#include <cstdint>
#include <cstring>

#include "rules/rule.h"
#include "step.h"

namespace FUSEDOPT_NAMESPACE {

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};
// The square root, in float16, of a number that is never negative. Squares of gradients from 2^-24 to 2^16 have a
// place, with float16's relative precision down to the square of 2^-14.
struct r16 {
  f16 root;
};

// A word that is moved without regard to what its bytes mean to others.
template <class Word>
struct __attribute__((may_alias)) Bytes {
  Word word;
};

template <class To, class From>
FUSEDOPT_HD To bit_cast(From x) {
  static_assert(sizeof(To) == sizeof(From));
  To result;
  std::memcpy(&result, &x, sizeof(To));
  return result;
}

// condition ? a : b without a branch, of which a few in a row can keep a loop from being vectorised.
FUSEDOPT_HD uint32_t select(bool condition, uint32_t a, uint32_t b) {
  return b ^ ((a ^ b) & (0u - static_cast<uint32_t>(condition)));
}

FUSEDOPT_HD float decode(float x) { return x; }
FUSEDOPT_HD double decode(double x) { return x; }
FUSEDOPT_HD float decode(bf16 x) { return bit_cast<float>(uint32_t{x.bits} << 16); }

// A half's bits where a float has them, with 112 more in the exponent; below 2^-14 what a denormal lacks is 1 there,
// which a subtraction takes from it. No operand is a float's denormal: many processors take a hundred cycles for one.
FUSEDOPT_HD float decode(f16 x) {
#ifdef __CUDA_ARCH__
  float number;
  asm("cvt.f32.f16 %0, %1;" : "=f"(number) : "h"(x.bits));
  return number;
#else
  const uint32_t sign = (uint32_t{x.bits} & 0x8000u) << 16;
  const uint32_t magnitude = (uint32_t{x.bits} & 0x7fffu) << 13;
  const uint32_t normal = magnitude + 0x38000000u;
  const uint32_t denormal = bit_cast<uint32_t>(bit_cast<float>(magnitude + 0x38800000u) - bit_cast<float>(0x38800000u));
  const uint32_t finite = select(magnitude < 0x00800000u, denormal, normal);
  const uint32_t special = (magnitude + 0x70000000u) | select(magnitude > 0x0f800000u, 0x00400000u, 0u);
  return bit_cast<float>(sign | select(magnitude >= 0x0f800000u, special, finite));
#endif
}

FUSEDOPT_HD float decode(r16 x) {
  const float root = decode(x.root);
  return root * root;
}

FUSEDOPT_HD void encode(float x, float& out) { out = x; }
FUSEDOPT_HD void encode(double x, double& out) { out = x; }
FUSEDOPT_HD void encode(float x, double& out) { out = x; }

// Round to nearest, ties to even. Every NaN becomes the one quiet NaN that torch writes; in float16 it keeps what has
// room of its bits, as the processors' own instructions do.
FUSEDOPT_HD void encode(float x, bf16& out) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out.bits) : "f"(x));
#else
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint32_t rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  out.bits = static_cast<uint16_t>(select(x != x, 0x7fc00000u, rounded) >> 16);
#endif
}

FUSEDOPT_HD void encode(float x, f16& out) {
#ifdef __CUDA_ARCH__
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(x));
#else
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint32_t sign = bits & 0x80000000u;
  const uint32_t magnitude = bits ^ sign;
  // Below 2^-14 a half's last bit is worth 2^-24, and so is the last bit of a float near 0.5: the adder rounds.
  const uint32_t denormal = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  const uint32_t normal = (magnitude - 0x38000000u + 0x0fffu + ((magnitude >> 13) & 1u)) >> 13;
  const uint32_t finite = select(magnitude < 0x38800000u, denormal, normal);
  const uint32_t half = select(magnitude >= 0x477ff000u, 0x7c00u, finite);
  const uint32_t nan = 0x7e00u | (magnitude >> 13 & 0x03ffu);
  out.bits = static_cast<uint16_t>((sign >> 16) | select(magnitude > 0x7f800000u, nan, half));
#endif
}

// What is not 0 does not become 0: it is divided by.
FUSEDOPT_HD uint16_t nonzero(float x, f16 root) {
  const uint32_t bits = root.bits, least = select(x > 0.0f, 1u, 0u);
  return static_cast<uint16_t>(select(bits == 0, least, bits));
}

FUSEDOPT_HD void encode(float x, r16& out) {
  encode(sqrt(x), out.root);
  out.root.bits = nonzero(x, out.root);
}

// A double reaches narrower storage through float.
FUSEDOPT_HD void encode(double x, float& out) { out = static_cast<float>(x); }
template <class Stored>
FUSEDOPT_HD void encode(double x, Stored& out) {
  encode(static_cast<float>(x), out);
}

constexpr fusedopt::Dtype dtype_of(float) { return fusedopt::Dtype::f32; }
constexpr fusedopt::Dtype dtype_of(double) { return fusedopt::Dtype::f64; }
constexpr fusedopt::Dtype dtype_of(bf16) { return fusedopt::Dtype::bf16; }
constexpr fusedopt::Dtype dtype_of(f16) { return fusedopt::Dtype::f16; }
constexpr fusedopt::Dtype dtype_of(r16) { return fusedopt::Dtype::r16; }

// Calls f with a value of the C++ type that a Dtype names.
#ifdef __CUDACC__
#pragma nv_exec_check_disable
#endif
template <class F>
FUSEDOPT_HD void with_storage(fusedopt::Dtype dtype, F&& f) {
  switch (dtype) {
    case fusedopt::Dtype::f32:
      return f(float());
    case fusedopt::Dtype::f64:
      return f(double());
    case fusedopt::Dtype::bf16:
      return f(bf16());
    case fusedopt::Dtype::f16:
      return f(f16());
    case fusedopt::Dtype::r16:
      return f(r16());
    default:
      return;  // codes have no meaning without a scale: precision.h
  }
}

// The storages of param, gradient and all states that training runs on. Each has a loop of its own in every engine; any
// other mix takes a path that looks its storages up as it goes.
template <class P, class G, class S>
struct Mix {
  using Param = P;
  using Grad = G;
  using State = S;
};

template <class... Mixes>
struct MixList {};

using FloatMixes = MixList<Mix<float, float, float>, Mix<bf16, bf16, bf16>, Mix<bf16, bf16, float>, Mix<f16, f16, f16>>;
using DoubleMixes = MixList<Mix<double, double, double>>;

}  // namespace FUSEDOPT_NAMESPACE
