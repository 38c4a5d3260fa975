// The CPU engine's sweeps over the vectors of L-BFGS, of doubles if `wide`. Results do not depend on `threads`.
#pragma once

#include <vector>

#include "../history.h"

#pragma GCC visibility push(default)
namespace fusedopt::cpu {

std::vector<double> products(const history::Products& job, bool wide, int threads);
std::vector<double> direction(const history::Direction& job, bool wide, int threads);
void move(const history::Move& job, bool wide, int threads);
void gather(const history::Gather& job, bool wide, int threads);

}  // namespace fusedopt::cpu
#pragma GCC visibility pop
