// The contract of an update rule, and the few functions its maths may use.
//
// A rule is a stateless struct. It knows its names and its maths; it knows nothing of memory, storage types, threads or
// devices. The engines in cpu/ and cuda/ read these members (sgd.h is the shortest complete example):
//
//   name                    the rule's name in the registry
//   struct Hypers           doubles only, in the order of hyper_names
//   hyper_names[]           torch's param-group keys; "betas.0" is the first entry of the tuple "betas"
//   state_names[]           torch's keys of the tensors shaped like the param, at least one
//   Scalars<T>              everything that is constant over a tensor; fields of type T only
//   prepare(hypers, counters, first) -> Scalars<double>
//                           once per step, in double; advances the counters; `first` says that the state was just made
//   update<variant>(p, g, s, c)
//                           one element: param, gradient, state, scalars; T is float, or double for double params
//
// and what a rule inherits from RuleDefaults unless it declares its own:
//
//   counters, counter_names[]   torch's keys of the per-param scalars, which may be none
//   variants                how many compile-time variants there are: one for each set of state tensors
//   variant(hypers)         which of them a group's hyper-parameters select
//   keeps(variant, state)   whether that variant has that state tensor
//   initial_state(hypers, state), initial_counter(hypers, counter)
//                           what new states are filled with, and where counters start
//   state_kinds[]           what kind of number each state is, which decides in what it can be stored (Kind, below);
//                           unless it says so all are `other`
//   like_grad(state)        the new state has the gradient's strides, not the param's (where torch clones the gradient)
//   indexed                 it steps the rows that a sparse gradient holds, and takes no other gradients
//   guarded                 on a GPU, operands of its roots and quotients may be looked at once for many elements
//                           (cuda/guarded.cuh): every root goes into a quotient, and no constant stands for an operand
//                           where a scalar chooses
//   crowded                 its update holds more numbers at a time than Adam's: GPUs give it more registers
//   hyper_defaults[]        for a class made of the rule: NaN where the caller has to give the value
//
// A rule that needs norms of whole tensors before it can update them has also
//
//   sums                    how many sums over the tensor there are
//   measure<variant>(p, g, s, c, terms)
//                           one element's terms of these sums; the changes it makes to its arguments are dropped
//   conclude(sums, c)       changes the scalars of the tensor, once
//   remembers               what it makes of sums outlives the step: then it is conclude(sums, counters, c), and may
//                           change the tensor's counters after prepare() has
//   joint                   sums are over all tensors of the optimizer: then it is conclude(sums, hypers, c), and may
//                           change what `scopes` says is kept of the hyper-parameters of each group
//   scopes[]                of such a rule, what each of hyper_names is to its groups (Scope, below)
//   measures(variant)       whether a variant needs them; unless it says so all do
//   sums_of(variant)        of how many, the first ones, it gives the terms; the others are 0. Unless it says so of all
//
// Every rounding is written out: fma where one is meant, contraction off in all compilers. With IEEE sqrt and division
// the bits of a result then depend neither on the position in the tensor, nor on the instruction set, nor on the
// backend.
#pragma once

#include <cmath>
#include <cstdint>

namespace fusedopt {

// Codes of 8 and of 4 bits are for what forgets: in them what only adds up would stand still. What is never negative
// has codes without a sign, and in float16 is stored as its square root: squares of ordinary gradients are below its
// range.
enum class Kind : uint8_t {
  other,
  average,    // of either sign, and it forgets
  magnitude,  // never negative, and it forgets
  total,      // never negative, and it does not forget
  factor,     // one of many rows or columns: it takes so little that fewer bits would save nothing
};

// What a hyper-parameter is to the groups of an optimizer whose sums are of all of them.
enum class Scope : uint8_t {
  own,             // each group's
  shared,          // the same in all
  shared_or_zero,  // the same in all that are not to move
  kept,            // the same in all, and what a step concludes from its sums
};

}  // namespace fusedopt

#ifdef __CUDACC__
#define FUSEDOPT_HD __host__ __device__ __forceinline__
#define FUSEDOPT_HD_ONCE __host__ __device__ __noinline__ inline  // hundreds of instructions, of which a copy is enough
#else
#define FUSEDOPT_HD inline __attribute__((always_inline))
#define FUSEDOPT_HD_ONCE FUSEDOPT_HD
#endif
// Each CPU instruction set compiles these headers in a namespace of its own, or the linker would keep one copy for all.
#ifndef FUSEDOPT_NAMESPACE
#define FUSEDOPT_NAMESPACE fusedopt
#endif

namespace FUSEDOPT_NAMESPACE {

using fusedopt::Kind;
using fusedopt::Scope;

constexpr int kAllSums = 1 << 20;

struct RuleDefaults {
  static constexpr int counters = 1;
  static constexpr const char* counter_names[] = {"step"};
  enum { variants = 1 };
  template <class Hypers>
  FUSEDOPT_HD static int variant(const Hypers&) {
    return 0;
  }
  FUSEDOPT_HD static constexpr bool keeps(int, int) { return true; }
  template <class Hypers>
  FUSEDOPT_HD static double initial_state(const Hypers&, int) {
    return 0;
  }
  template <class Hypers>
  FUSEDOPT_HD static double initial_counter(const Hypers&, int) {
    return 0;
  }
  static constexpr const Kind* state_kinds = nullptr;
  static constexpr bool like_grad(int) { return false; }
  static constexpr const double* hyper_defaults = nullptr;
  static constexpr int sums = 0;
  FUSEDOPT_HD static constexpr bool measures(int) { return true; }
  FUSEDOPT_HD static constexpr int sums_of(int) { return kAllSums; }
  static constexpr bool remembers = false;
  static constexpr bool joint = false;
  static constexpr const Scope* scopes = nullptr;
  static constexpr bool indexed = false;
  static constexpr bool guarded = false;
  static constexpr bool crowded = false;
};

FUSEDOPT_HD float fma(float a, float b, float c) { return ::fmaf(a, b, c); }
FUSEDOPT_HD double fma(double a, double b, double c) { return ::fma(a, b, c); }
FUSEDOPT_HD float sqrt(float x) { return ::sqrtf(x); }
FUSEDOPT_HD double sqrt(double x) { return ::sqrt(x); }
FUSEDOPT_HD float copy_sign(float x, float sign) { return ::copysignf(x, sign); }
FUSEDOPT_HD double copy_sign(double x, double sign) { return ::copysign(x, sign); }

// What of a param decoupled weight decay takes away. Without decay that is nothing, for an infinite learning rate too.
FUSEDOPT_HD double decay_of(double lr, double weight_decay) { return weight_decay != 0 ? lr * weight_decay : 0; }

// a + w (b - a), from the nearer end so that w = 1 gives exactly b; the two halves are torch.lerp's.
template <class T>
FUSEDOPT_HD T lerp(T a, T b, T w) {
#ifdef __CUDA_ARCH__
  // A GPU branches on what all elements share.
  return w < T(0.5) ? fma(w, b - a, a) : fma(w - T(1), b - a, b);
#else
  // A vector unit would compute both.
  const bool near_a = w < T(0.5);
  return fma(near_a ? w : w - T(1), b - a, near_a ? a : b);
#endif
}

// torch.maximum: a NaN on either side wins.
template <class T>
FUSEDOPT_HD T maximum(T a, T b) {
  const T larger = b > a ? b : a;
  return b != b ? b : larger;
}

// 0 for what rounding made negative; NaN stays NaN.
template <class T>
FUSEDOPT_HD T clamp_negative(T x) {
  return x < T(0) ? T(0) : x;
}

template <class T>
FUSEDOPT_HD T absolute(T x) {
  return x < T(0) ? -x : x + T(0);
}

// 0 for 0 and, as torch.sign, for NaN.
template <class T>
FUSEDOPT_HD T sign(T x) {
  return x > T(0) ? T(1) : x < T(0) ? T(-1) : T(0);
}

// Of a cautious optimizer (Liang et al. 2024, "Cautious Optimizers: Improving Training with One Line of Code"): 1 for
// an element that a step along `direction` moves against its gradient, which therefore moves, and 0 for one that stays.
template <class T>
FUSEDOPT_HD T caution(T direction, T g) {
  return direction * sign(g) > T(0) ? T(1) : T(0);
}

// What the steps of those that move grow by, as timm has it: the inverse of their share, at most a thousand times.
FUSEDOPT_HD double growth_by_caution(double moving, double all) {
  const double share = moving / all;
  return 1 / (share < 1e-3 ? 1e-3 : share);
}

// torch.clamp: NaN stays NaN, and `high` wins over `low`.
template <class T>
FUSEDOPT_HD T clamp(T x, T low, T high) {
  const T raised = x < low ? low : x;
  return raised > high ? high : raised;
}

// c0 + c1 z + c2 z^2 + ..., by Horner's rule.
template <class T>
FUSEDOPT_HD T polynomial(T, T c) {
  return c;
}
template <class T, class... Rest>
FUSEDOPT_HD T polynomial(T z, T c, Rest... rest) {
  return fma(z, polynomial(z, rest...), c);
}

// (atan(x) / x - 1) / x^2 for z = x^2 in [0, 1]: the polynomials with the smallest relative error in atan(x), below a
// tenth of an ulp, each coefficient rounded before the next was found; then one of float's moved by an ulp, for pi/4.
FUSEDOPT_HD float atan_tail(float z) {
  return polynomial(z, -0.333333f, 0.1999853f, -0.14264014f, 0.10950862f, -0.08399208f, 0.057878867f, -0.03109352f,
                    0.010866253f, -0.0017821367f);
}
FUSEDOPT_HD double atan_tail(double z) {
  return polynomial(z, -0.3333333333333307, 0.19999999999951756, -0.14285714282588544, 0.11111111007354892,
                    -0.0909090700800789, 0.07692279891132776, -0.06666404439872359, 0.058805298988527,
                    -0.05253527160299883, 0.04722349591477725, -0.04219246706611967, 0.036643222693183874,
                    -0.029905846075158133, 0.021987198372943446, -0.013902690038405807, 0.007197962694384326,
                    -0.0028856478045754513, 0.0008315725551685304, -0.00015221384225038006, 1.3230261596538648e-05);
}

// The angle of the point (x, y) for x >= 0, where -0 counts as 0: in [-pi/2, pi/2], with an error below 1.7 ulps, and
// the same bits on every backend. As std::atan2 has it, it is 0 with y's sign for 0 / 0, pi/4 for inf / inf and NaN for
// NaN.
template <class T>
FUSEDOPT_HD T atan2(T y, T x) {
  const T height = absolute(y);
  const bool steep = height > x;
  const T shorter = steep ? x : height, longer = steep ? height : x;
  const T ratio = shorter / longer;
  const T tangent = shorter == longer ? (longer > T(0) ? T(1) : T(0)) : ratio;
  const T z = tangent * tangent;
  const T angle = fma(tangent * z, atan_tail(z), tangent);
  // pi/2 in two parts, of which the second is what the first lacks.
  const T half_pi = static_cast<T>(1.5707963267948966);
  const T rest = static_cast<T>(1.5707963267948966 - half_pi + 6.123233995736766e-17);
  return copy_sign(steep ? half_pi - (angle - rest) : angle, y);
}

// An unevaluated sum of two doubles, the second less than half an ulp of the first.
struct DoubleDouble {
  double high, low;
};
FUSEDOPT_HD DoubleDouble sum_of(double large, double small) {
  const double high = large + small;
  return {high, small - (high - large)};
}
FUSEDOPT_HD DoubleDouble product_of(DoubleDouble a, DoubleDouble b) {
  const double high = a.high * b.high;
  return sum_of(high, fma(a.high, b.high, -high) + (a.high * b.low + a.low * b.high));
}

// The natural logarithm of a positive normal number: 2 atanh((m - 1) / (m + 1)) + e log 2 for x = m 2^e.
FUSEDOPT_HD DoubleDouble logarithm(double x) {
  int exponent;
  double m = ::frexp(x, &exponent);
  if (m < 0.70710678118654752) m *= 2, --exponent;
  const DoubleDouble above = sum_of(1, m);
  const double below = m - 1;  // exact
  const double quotient = below / above.high;
  const DoubleDouble s = sum_of(quotient, (fma(-quotient, above.high, below) - quotient * above.low) / above.high);
  const DoubleDouble square = product_of(s, s);
  // The terms from s^7 on reach the result below a double's last place, so a double carries them.
  double tail = 0;
  for (int n = 35; n >= 7; n -= 2) tail = fma(tail, square.high, 1.0 / n);
  const DoubleDouble fifth = {0.2, -1.1102230246251566e-17}, third = {1.0 / 3, 1.8503717077085941e-17};
  DoubleDouble series = product_of(square, {tail, 0});
  series = sum_of(fifth.high, series.high + (series.low + fifth.low));
  series = product_of(square, series);
  series = sum_of(third.high, series.high + (series.low + third.low));
  series = product_of(square, series);
  series = product_of(s, sum_of(1, series.high + series.low));
  const DoubleDouble log2 =
      product_of({static_cast<double>(exponent), 0}, {0.69314718055994529, 2.3190468138462996e-17});
  if (exponent == 0) return {2 * series.high, 2 * series.low};
  const DoubleDouble sum = sum_of(log2.high, 2 * series.high);
  return sum_of(sum.high, sum.low + (log2.low + 2 * series.low));
}

// x^y for x >= 0, with an error below two ulps and the same bits on every backend, which libm's pow does not have. Only
// where x, y or the result is 0, infinite or nearly so does libm answer.
FUSEDOPT_HD_ONCE double power(double x, double y) {
  if (x == 1 || y == 0) return 1;
  if (!(x > 2.2250738585072014e-308 && x < 1.7976931348623157e308) || !(y > -1e6 && y < 1e6)) return ::pow(x, y);
  const DoubleDouble z = product_of(logarithm(x), {y, 0});
  if (z.high > 709 || z.high < -708) return ::pow(x, y);
  const double n = ::floor(z.high * 1.4426950408889634 + 0.5);
  const double r = fma(-n, 0.69314718055994529, z.high), r_low = fma(-n, 2.3190468138462996e-17, z.low);
  double e = 1;
  for (int k = 18; k >= 1; --k) e = fma(e, r / k, 1);
  return ::ldexp(fma(e, r_low, e), static_cast<int>(n));
}

// base^n by repeated squaring in double-double: plain squaring would lose log2(n) doublings of an ulp, and libm's pow
// differs between host and device. A fractional or negative n can only come from a step counter edited by hand.
FUSEDOPT_HD_ONCE double pown(double base, double n) {
  if (!(n >= 0 && n < 9007199254740992.0) || n != static_cast<double>(static_cast<int64_t>(n))) return power(base, n);
  double result = 1, result_low = 0, square = base, square_low = 0;
  for (int64_t bits = static_cast<int64_t>(n); bits > 0; bits >>= 1) {
    if (bits & 1) {
      const double high = result * square;
      result_low = fma(result, square, -high) + (result * square_low + result_low * square);
      result = high;
    }
    const double high = square * square;
    square_low = fma(square, square, -high) + 2 * square * square_low;
    square = high;
  }
  return result + result_low;
}

}  // namespace FUSEDOPT_NAMESPACE
