// Roots and quotients with IEEE's bits and one branch for many: each is made without a look at its operands, a guard
// notes what they were, and who made the guard asks it once whether all were ordinary. If not, what was made is dropped
// and made again with the compiler's own operators.
//
// The compiler's own begin as ours do, with the processor's approximation and the same operations after it, where their
// operands are ordinary; but they ask so of each, and a 0 is not. What is right does not rest on that alone. With y
// within an ulp of 1 / b, as the PTX manual has it of rcp.approx.ftz, quotient_from() is the rounded quotient, but for
// b = 2^k (2 - 2^-23) under a power of two, where y has to be the nearest float. With y within 2^-22.9 of 1 / sqrt(x),
// as it has it of rsqrt.approx.ftz, root_from() is the rounded root for all x and y but two pairs.
// tests/test_quotients.py tries all such y, for all x of two binades, and for all quotients so near to a midpoint that
// the error of what is rounded might decide. Ordinary operands are so far from the ends of the range that no operation
// meets one, which makes all binades alike. On a GPU tests/test_cuda_quotients.py holds both against torch's own.
#pragma once

#include "../codec.h"

namespace FUSEDOPT_NAMESPACE {

#ifdef __CUDACC__
__device__ __forceinline__ float approximate_inverse(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float approximate_inverse_root(float x) {
  float y;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
#endif

// From y, about 1 / sqrt(x).
FUSEDOPT_HD float root_from(float x, float y) {
  const float root = x * y, half = y * 0.5f;
  return fma(fma(-root, root, x), half, root);
}

// From y, about 1 / b, for b > 0. What is left of a has the other sign, and so has the inverse: a quotient of 0 then
// has a's. (With both of the usual sign it has not, nor where g++ negates what an fma returns: it takes the other fma.)
FUSEDOPT_HD float quotient_from(float a, float b, float y) {
  const float inverse = fma(y, fma(-b, y, 1.0f), y);
  const float quotient = a * inverse;
  return fma(fma(b, quotient, -a), -inverse, quotient);
}

// What the operands of some roots and quotients were, by their bits, which grow as the numbers do.
class Guard {
  // Below 2^-101 what is left of a square or a dividend may have bits below a float's last.
  static constexpr uint32_t kLeast = 0x0d000000;
  // From 2^-63 to 2^24: quotients are normal, then.
  static constexpr uint32_t kLeastDivisor = 0x20000000, kMostDivisor = 0x4b800000;

 public:
  // An ordinary x is 0 or from 2^-101 on. Of one that is infinite or negative the root is not finite, which is seen
  // when it comes to a quotient.
  __device__ __forceinline__ float root(float x) {
    const uint32_t bits = bit_cast<uint32_t>(x);
    // A 0 is the largest of all.
    squares_ = rooted_ ? min(bits - 1, squares_) : bits - 1;
    rooted_ = true;
    return root_from(x, approximate_inverse_root(bit_cast<float>(max(bits, kLeast))));
  }

  // An ordinary a is 0 or its magnitude from 2^-101 to 2^27.
  __device__ __forceinline__ float quotient(float a, float b) {
    divisors_ = max(bit_cast<uint32_t>(b) - kLeastDivisor, divisors_);
    const uint32_t bits = bit_cast<uint32_t>(a);
    note_dividend(bits + bits - 2 * kLeast);
    return quotient_from(a, b, approximate_inverse(b));
  }

  __device__ __forceinline__ bool all_ordinary() const {
    Guard whole = *this;
    if (odd_) whole.note_dividend(dividend_);
    return (squares_ >= kLeast - 1) & (divisors_ <= kMostDivisor - kLeastDivisor) &
           (whole.dividends_ <= 0u - 2 * kLeast) & (whole.least_dividend_ >= static_cast<int32_t>(0u - 2 * kLeast));
  }

  // Not of its operands: that `lerp` is from the nearer end.
  bool far = false;

 private:
  // Twice the bits, which leaves the sign out, less those of 2^-101. Counted from there around the circle of all words
  // come ordinary numbers, as signed words positive ones; larger ones, infinity and NaN; 0; what is too small. Two at a
  // time.
  __device__ __forceinline__ void note_dividend(uint32_t dividend) {
    if (odd_) {
      dividends_ = max(max(dividends_, dividend_), dividend);
      least_dividend_ = min(min(least_dividend_, static_cast<int32_t>(dividend_)), static_cast<int32_t>(dividend));
    }
    dividend_ = dividend;
    odd_ = !odd_;
  }

  uint32_t squares_ = ~0u, divisors_ = 0, dividends_ = 0, dividend_ = 0;
  int32_t least_dividend_ = 0;
  // Known to the compiler.
  bool rooted_ = false, odd_ = false;
};

// A float whose roots and quotients a guard makes; what rules that are `guarded` compute in. A constant has no guard,
// and the compiler knows which are constants: a pointer that may be null it would look at.
struct Guarded {
  float value;
  bool has_guard;
  Guard* guard;

  __device__ Guarded() : value(0), has_guard(false), guard(nullptr) {}
  __device__ Guarded(double x) : value(static_cast<float>(x)), has_guard(false), guard(nullptr) {}
  __device__ Guarded(float x, Guard* guard) : value(x), has_guard(true), guard(guard) {}
  __device__ Guarded(float x, Guarded like) : value(x), has_guard(like.has_guard), guard(like.guard) {}
  Guarded(const Guarded&) = default;
  // What is assigned where a branch says so would have its guard looked up in memory.
  __device__ Guarded& operator=(const Guarded& other) {
    value = other.value;
    if (!has_guard) has_guard = other.has_guard, guard = other.guard;
    return *this;
  }
};

__device__ __forceinline__ Guarded one_of(Guarded a, Guarded b) { return a.has_guard ? a : b; }

__device__ __forceinline__ Guarded operator-(Guarded a) { return {-a.value, a}; }
__device__ __forceinline__ Guarded operator+(Guarded a, Guarded b) { return {a.value + b.value, one_of(a, b)}; }
__device__ __forceinline__ Guarded operator-(Guarded a, Guarded b) { return {a.value - b.value, one_of(a, b)}; }
__device__ __forceinline__ Guarded operator*(Guarded a, Guarded b) { return {a.value * b.value, one_of(a, b)}; }
__device__ __forceinline__ Guarded operator/(Guarded a, Guarded b) {
  return {one_of(a, b).guard->quotient(a.value, b.value), one_of(a, b)};
}
__device__ __forceinline__ bool operator<(Guarded a, Guarded b) { return a.value < b.value; }
__device__ __forceinline__ bool operator>(Guarded a, Guarded b) { return a.value > b.value; }
__device__ __forceinline__ bool operator==(Guarded a, Guarded b) { return a.value == b.value; }
__device__ __forceinline__ bool operator!=(Guarded a, Guarded b) { return a.value != b.value; }

__device__ __forceinline__ Guarded sqrt(Guarded x) { return {x.guard->root(x.value), x}; }
__device__ __forceinline__ Guarded fma(Guarded a, Guarded b, Guarded c) {
  return {fma(a.value, b.value, c.value), one_of(a, one_of(b, c))};
}
// Of two structs the compiler would choose in memory.
__device__ __forceinline__ Guarded maximum(Guarded a, Guarded b) { return {maximum(a.value, b.value), one_of(a, b)}; }
__device__ __forceinline__ Guarded absolute(Guarded x) { return {absolute(x.value), x}; }
// From the nearer end, which all elements share, if that is a.
__device__ __forceinline__ Guarded lerp(Guarded a, Guarded b, Guarded w) {
  Guard& guard = *one_of(a, b).guard;
  guard.far = guard.far | !(w.value < 0.5f);
  return {fma(w.value, b.value - a.value, a.value), one_of(a, b)};
}

__device__ __forceinline__ float plain(float x) { return x; }
__device__ __forceinline__ double plain(double x) { return x; }
__device__ __forceinline__ float plain(Guarded x) { return x.value; }

}  // namespace FUSEDOPT_NAMESPACE
