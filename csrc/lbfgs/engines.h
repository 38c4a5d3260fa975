// Sweeps over the vectors of L-BFGS, of doubles if `wide`, by either engine, as the bindings call them.
#pragma once

#include <vector>

#include "../cuda/engine.h"
#include "sweeps.h"

#pragma GCC visibility push(default)
// Results do not depend on `threads`.
namespace fusedopt::cpu {

std::vector<double> products(const history::Products& job, bool wide, int threads);
std::vector<double> direction(const history::Direction& job, bool wide, int threads);
void move(const history::Move& job, bool wide, int threads);
void gather(const history::Gather& job, bool wide, int threads);

}  // namespace fusedopt::cpu

// Pointers are to device memory, those of a Scattered as well, and a job's own arrays are on the host. `sums` has room
// for a row of results for every chunk, in the vectors' type; `out` gets the results.
namespace fusedopt::cuda {

// As ready(), for these sweeps.
bool ready_for_history(const Place& place);

void products(const history::Products& job, bool wide, void* sums, double* out, const Place& place);
void direction(const history::Direction& job, bool wide, void* sums, double* out, const Place& place);
void move(const history::Move& job, bool wide, const Place& place);
void gather(const history::Gather& job, bool wide, const Place& place);

}  // namespace fusedopt::cuda
#pragma GCC visibility pop
