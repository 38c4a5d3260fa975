// The contract of an update rule, and the few functions its maths may use.
//
// A rule is a stateless struct. It knows its names and its maths; it knows nothing of memory, storage types, threads or
// devices. The engines in cpu/ and cuda/ read these members (sgd.h is the shortest complete example):
//
//   name                    the rule's name in the registry
//   struct Hypers           doubles only, in the order of hyper_names
//   hyper_names[]           torch's param-group keys; "betas.0" is the first entry of the tuple "betas"
//   state_names[]           torch's keys of the tensors shaped like the param
//   state_like_grad         new state has the gradient's strides, not the param's (where torch clones the gradient)
//   counters, counter_names[]   torch's keys of the per-param scalars ("step"), which may be none
//   variants                how many compile-time variants there are: one for each set of state tensors
//   variant(hypers)         which of them a group's hyper-parameters select
//   keeps(variant, state)   whether that variant has that state tensor
//   Scalars<T>              everything that is constant over a tensor; fields of type T only
//   prepare(hypers, counters, first) -> Scalars<double>
//                           once per step, in double; advances the counters; `first` says that the state was just made
//                           (zeros)
//   update<variant>(p, g, s, c)
//                           one element: param, gradient, state, scalars; T is float, or double for double params
//
// Every rounding is written out: fma where one is meant, contraction off in all compilers. With IEEE sqrt and division
// the bits of a result then depend neither on the position in the tensor, nor on the instruction set, nor on the
// backend.
#pragma once

#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#define FUSEDOPT_HD __host__ __device__ __forceinline__
#else
#define FUSEDOPT_HD inline __attribute__((always_inline))
#endif

// Each CPU instruction set compiles these headers in a namespace of its own: were they shared, the linker would keep
// one copy of every inline function, perhaps the AVX-512 one, for all.
#ifndef FUSEDOPT_NAMESPACE
#define FUSEDOPT_NAMESPACE fusedopt
#endif

namespace FUSEDOPT_NAMESPACE {

FUSEDOPT_HD float fma(float a, float b, float c) { return ::fmaf(a, b, c); }
FUSEDOPT_HD double fma(double a, double b, double c) { return ::fma(a, b, c); }
FUSEDOPT_HD float sqrt(float x) { return ::sqrtf(x); }
FUSEDOPT_HD double sqrt(double x) { return ::sqrt(x); }

// a + w (b - a), from the nearer end so that w = 1 gives exactly b; the two halves are torch.lerp's.
template <class T>
FUSEDOPT_HD T lerp(T a, T b, T w) {
  const T difference = b - a;
  return w < T(0.5) ? fma(w, difference, a) : fma(w - T(1), difference, b);
}

// torch.maximum: a NaN on either side wins.
template <class T>
FUSEDOPT_HD T maximum(T a, T b) {
  return b > a || b != b ? b : a;
}

// 0 for what rounding made negative; NaN stays NaN.
template <class T>
FUSEDOPT_HD T clamp_negative(T x) {
  return x < T(0) ? T(0) : x;
}

// base^n by repeated squaring in double-double: plain squaring would lose log2(n) doublings of an ulp, and libm's pow
// differs between host and device. Only a fractional or negative n, from a step counter edited by hand, comes to libm.
FUSEDOPT_HD double pown(double base, double n) {
  if (!(n >= 0 && n < 9007199254740992.0) || n != static_cast<double>(static_cast<int64_t>(n))) return ::pow(base, n);
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
