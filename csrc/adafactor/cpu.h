// Steps of tensors whose second moments are factored, on the CPU, as the bindings call them.
#pragma once

#include <vector>

#include "factored.h"

#pragma GCC visibility push(default)
namespace fusedopt::cpu {

// Which of a tensor's matrices, rows and columns a part has.
struct PartPlaces {
  std::vector<int64_t> matrices, rows, cols;
};

// Steps tensors whose second moments are factored. Results do not depend on `threads`.
void step_factored(Factored* first, Factored* last, int threads);
// The same in several calls, for processes that have parts of a tensor: sums of rows and columns, and of the squares of
// the param; once they are those of all parts, what they make of the states, `whole` having the states and the sums of
// the whole tensor; then the squares of the update, and with those of all parts the update.
void measure_parts(FactoredPart* first, FactoredPart* last, int threads);
void take_sums(const FactoredPart& whole, double* means);
// Gives a part copies of the factors that it needs, in memory for as many numbers of their types as it has of both.
void copy_factors(const Factored& whole, FactoredPart& part, const PartPlaces& at, char* memory);
void square_parts(FactoredPart* first, FactoredPart* last, int threads);
void update_parts(FactoredPart* first, FactoredPart* last, int threads);
// Adafactor's names and states, whose steps are step_factored's.
const Rule& factored_rule();

}  // namespace fusedopt::cpu
#pragma GCC visibility pop
