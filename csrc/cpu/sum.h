// Sums in the order that step.h fixes. Included once for each instruction set, in a namespace of its own.
#pragma once

#include "../step.h"

namespace FUSEDOPT_NAMESPACE {

template <class T>
inline T halved(T* sum, int width) {
  for (int half = width / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) sum[i] += sum[half + i];
  return sum[0];
}

// The sum of all accumulators, which it uses up. Where only the first n can be other than 0, a power of two not below n
// as `width` saves the rest.
template <class T>
inline T total(T (&sum)[fusedopt::kAccumulators], int width = fusedopt::kAccumulators) {
  constexpr int kLast = 8;  // whose halves are known to the compiler
  if (width < kLast) return halved(sum, width);
  for (int half = width / 2; half >= kLast; half /= 2)
#pragma GCC ivdep
    for (int i = 0; i < half; i += kLast)
      for (int j = i; j < i + kLast; ++j) sum[j] += sum[half + j];
  return halved(sum, kLast);
}

inline int width_for(int64_t n) {
  int width = 1;
  while (width < n && width < fusedopt::kAccumulators) width *= 2;
  return width;
}

}  // namespace FUSEDOPT_NAMESPACE
