// The CPU engine's sweeps over gradients. Results do not depend on `threads`.
#pragma once

#include "../norm.h"

#pragma GCC visibility push(default)
namespace fusedopt::cpu {

// The sum of all terms, or the largest of all.
double measure(const NormEntry* first, const NormEntry* last, const NormOrder& order, int threads);

// Multiplies gradients, of which no two share memory.
void scale(const NormEntry* first, const NormEntry* last, double coefficient, int threads);

struct Clipped {
  double norm, coefficient, divisor;
};
Clipped clip(double total, double scale, const ClipRequest& request);

}  // namespace fusedopt::cpu
#pragma GCC visibility pop
