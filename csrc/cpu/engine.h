// The CPU engine: picks an instruction set, finds rules, and sweeps the rows of a step with all threads.
//
// The engines are a shared object, which serves bindings for any torch. What these call is visible from outside, here
// and in the headers beside it, and names no std::string, of which there are two: torch 2.6 was compiled with the old.
#pragma once

#include <functional>
#include <string_view>
#include <vector>

#include "../adafactor/factored.h"
#include "../clipping/norm.h"
#include "../lbfgs/sweeps.h"
#include "../step.h"

#pragma GCC visibility push(default)
namespace fusedopt::cpu {

struct Isa {
  const char* name;
  bool supported;  // by this processor
  const history::Kernels& (*history)();
  const FactoredKernels& (*factored)();
  const NormKernels& (*norm)();
};

// Every instruction set that was built, narrowest first.
const std::vector<Isa>& built_isas();

// The one in use, and why: the widest supported unless FUSEDOPT_CPU_ISA or use_isa() names another.
const Isa& chosen_isa();
const char* choice_reason();

// Throws std::invalid_argument for a name that was not built or that the processor lacks.
void use_isa(std::string_view name);

// Whether this processor has instructions for products of bfloat16; only x86 is asked, others are taken to have them.
bool multiplies_bfloat16();

// The package's rules, of the chosen instruction set.
std::vector<const Rule*> built_rules();

// A rule of the chosen instruction set, one from a shared object included, or nullptr.
const Rule* find_rule(std::string_view name);

// The sums of a row's chunks, [chunk][sum], between the sweep that makes them and what is concluded from them. Of a
// joint rule they are added up already, as if there were one chunk, or none.
struct ChunkSums {
  double* sums;
  int64_t chunks;
};
// May change those of all rows; of a joint rule it concludes.
using Between = std::function<void(const std::vector<ChunkSums>&)>;

// Sweeps rows [first, last), all of `rule`; their work_end must be running totals. Results do not depend on `threads`.
void sweep(const Rule& rule, const Row* first, const Row* last, int threads, const Between& between = {});

// Elements [begin, numel) of a row whose others need not be here: its operands' addresses are those that its first
// element would have. `begin` is a multiple of kChunk, and work_end counts what is here.
struct Part : Row {
  int64_t begin;
};

// What a sweep consists of. sums_of(part) is where the sums of a part's first chunk go.
void measure(const Rule& rule, const Part* first, const Part* last, int threads,
             const std::function<double*(const Part&)>& sums_of);
void conclude(const Rule& rule, const Row& row, const ChunkSums& sums);
void update(const Rule& rule, const Part* first, const Part* last, int threads);

// What a row costs beside its elements, in elements: finding it, and ending the vector loop early.
constexpr int64_t kRowOverhead = 64;

// Calls visit(begin, end) for parts of [0, count), by as many threads as `work`, in elements, is worth.
void in_shares(int64_t count, int64_t work, int threads, const std::function<void(int64_t, int64_t)>& visit);

// p, m and v of length n written once, p, g, m and v read once, by as many threads: AdamW's memory traffic and nothing
// else.
void adam_traffic(float* p, const float* g, float* m, float* v, int64_t n, int threads);

}  // namespace fusedopt::cpu
#pragma GCC visibility pop
