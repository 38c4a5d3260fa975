// Sweeps over gradients, by either engine, as the bindings call them.
#pragma once

#include "../cuda/engine.h"
#include "norm.h"

#pragma GCC visibility push(default)
namespace fusedopt::cpu {

// The sum of all terms, or the largest of all. Results do not depend on `threads`.
double measure(const NormEntry* first, const NormEntry* last, const NormOrder& order, int threads);

// Multiplies gradients, of which no two share memory.
void scale(const NormEntry* first, const NormEntry* last, double coefficient, int threads);

struct Clipped {
  double norm, coefficient, divisor;
};
Clipped clip(double total, double scale, const ClipRequest& request);

}  // namespace fusedopt::cpu

// Of the entries only `data` is device memory. Everything that a kernel needs travels in its parameters, so a launch is
// all there is to a captured one.
namespace fusedopt::cuda {

// As ready(), for these sweeps.
bool ready_for_norm(const Place& place);

// The doubles of device memory that a measurement of so many chunks needs, at least one.
int64_t norm_scratch(int64_t chunks);
// The same sum goes to scratch[0]. There is at least one entry.
void measure(const NormEntry* first, const NormEntry* last, const NormOrder& order, double* scratch,
             const Place& place);

// What follows from a total in device memory, see clip.h.
struct ClipOutput {
  void* norm;       // a double if the request is wide, else a float
  double* numbers;  // coefficient, divisor
};
void clip(const double* total, const Number& scale, const ClipRequest& request, const ClipOutput& out,
          const Place& place);

// A coefficient of 1 in device memory leaves gradients unread.
void scale(const NormEntry* first, const NormEntry* last, const Number& coefficient, const Place& place);

}  // namespace fusedopt::cuda
#pragma GCC visibility pop
