// The CUDA engine's sweeps over gradients: of the entries only `data` is device memory. Everything that a kernel needs
// travels in its parameters, so a launch is all there is to a captured one.
#pragma once

#include "../norm.h"
#include "engine.h"

#pragma GCC visibility push(default)
namespace fusedopt::cuda {

// As ready(), for these sweeps.
bool ready_for_norm(const Place& place);

// The doubles of device memory that a measurement of so many chunks needs, at least one.
int64_t norm_scratch(int64_t chunks);
// The sum of all terms, or the largest of all, goes to scratch[0]. There is at least one entry.
void measure(const NormEntry* first, const NormEntry* last, const NormOrder& order, double* scratch,
             const Place& place);

// What follows from a total in device memory, see clip.h.
struct ClipOutput {
  void* norm;       // a double if the request is wide, else a float
  double* numbers;  // coefficient, divisor
};
void clip(const double* total, const Number& scale, const ClipRequest& request, const ClipOutput& out,
          const Place& place);

// Multiplies gradients, of which no two share memory. A coefficient of 1 in device memory leaves them unread.
void scale(const NormEntry* first, const NormEntry* last, const Number& coefficient, const Place& place);

}  // namespace fusedopt::cuda
#pragma GCC visibility pop
