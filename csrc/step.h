// What csrc/host hands to an engine: one step of one rule, as plain data. Nothing here knows torch or Python.
#pragma once

#include <cstdint>

namespace fusedopt {

constexpr int kMaxStates = 4;
constexpr int kMaxCounters = 3;
constexpr int kMaxHypers = 16;
constexpr int kMaxScalars = 16;
constexpr int kMaxVariants = 8;
constexpr int kMaxDims = 16;
constexpr int kMaxSums = 5;

// Sums over a tensor have the same bits on every engine because each adds in the same order: element i of a chunk goes
// to accumulator i mod kAccumulators, these are added in a tree, upper half to lower half, and the chunks' sums are
// added in double in the same way. A chunk is what one warp of the CUDA engine takes; longer ones leave the last warps
// working alone, torch's 65,536 have a floor of some 43 us on any tensor that long.
constexpr int kChunk = 1024;
constexpr int kAccumulators = 256;

// What kind of number a state is, and what a hyper-parameter is to the groups: rules/rule.h.
enum class Kind : uint8_t;
enum class Scope : uint8_t;

// r16 is the square root of what is never negative, in f16. The last four are the codes of precision.h, with and
// without a sign, of 8 bits and of 4. All five occur as states alone.
enum class Dtype : uint8_t { f32, f64, bf16, f16, r16, i8, u8, i4, u4 };

constexpr bool is_coded(Dtype d) { return d >= Dtype::i8; }

// Elements of a coded state that share a scale, and the bytes of their codes.
constexpr int kCodeBlock = 256;
constexpr int code_bytes(Dtype d) { return d == Dtype::i4 || d == Dtype::u4 ? kCodeBlock / 2 : kCodeBlock; }

// Of codes: what their memory counts in.
constexpr int element_size(Dtype d) { return d == Dtype::f64 ? 8 : d == Dtype::f32 ? 4 : is_coded(d) ? 1 : 2; }

constexpr int bits_of(Dtype d) { return is_coded(d) ? code_bytes(d) * 8 / kCodeBlock : element_size(d) * 8; }

// The operands of a row in the order in which layouts list them.
enum Operand { kParam, kGrad, kState, kPartner = kState + kMaxStates, kAverage, kOperands };

// The walk through a row whose operands differ in strides, or leave memory between their elements untouched: sizes from
// the outermost dimension to the innermost, in the order of the param's memory; strides in elements. With an `index`,
// the gradient holds only some of the outermost dimension's slices: its slice i belongs to slice index[i] of the
// others.
struct Layout {
  int dims;
  const int64_t* index = nullptr;
  int64_t size[kMaxDims];
  int64_t stride[kOperands][kMaxDims];
};

// What the second operand of a param in 16 bits, its partner, is to it.
enum class Pair : uint8_t {
  none,
  copy,       // the param is exact, and the partner a copy of it in fewer bits
  master,     // the same, and the partner is what the user has: where it is no such copy any more, it is the exact one
  remainder,  // the low half of a float32, of which the param is the upper half, rounded
  compensation  // what rounding took from the param, in the param's own type
};

// What numbers the elements of a row have in the whole of which it is a part: element e is number
// first + e + e / run[0] * gap[0] + e / run[1] * gap[1], where a run of 0 has no end.
constexpr int kCuts = 2;
struct Numbering {
  int64_t first = 0;
  int64_t run[kCuts] = {};
  int64_t gap[kCuts] = {};
  // Not 0: 256 elements, from a multiple of 256 on, may be no neighbours there, or on both sides of a multiple of 2^32.
  int64_t scattered = 0;
};

// What a row has that is none of its rule's business.
struct Extras {
  void* partner = nullptr;
  void* average = nullptr;           // of the params of all steps, exponentially weighted
  float* scales[kMaxStates] = {};    // of coded states, one for each block
  Dtype partner_dtype = Dtype::f32;  // of a copy or a compensation
  Dtype average_dtype = Dtype::f32;
  Pair pair = Pair::none;
  bool new_average = false;  // it begins with this step's param
  bool stochastic = false;   // a param without a partner is rounded up or down by chance
  bool clears_grad = false;
  uint8_t states_by_chance = 0;  // bit k: state k is
  double average_weight = 0;     // of this step's param
  uint64_t key = 0;              // of this step's draws for this row
  Numbering numbering;           // by which they count

  // Whether all that they ask for is that some states are rounded by chance.
  bool nothing_but_draws() const { return !partner && !average && !clears_grad && !numbering.scattered; }
};

// One param tensor, its gradient and its states. Where `layout` is null, all of them are dense in the same order.
struct Row {
  void* param;
  const void* grad;
  void* state[kMaxStates];
  const Layout* layout;
  const Extras* extras;  // null: there are none
  int64_t numel;
  int64_t work_end;  // running total of `work` up to and with this row: where threads find their share
  double* scalars;   // for the CPU: [0] the gradient multiplier, then what the rule's prepare() returned
  double* counters;  // for the CPU: after the step, which a rule that remembers sums completes
  uint32_t entry;    // for CUDA: which of the step's entries it shares
  uint32_t slot;     // the param's place among all of the optimizer
  Dtype param_dtype, grad_dtype, state_dtype[kMaxStates];
  uint8_t variant;
};

// A number that a step needs: known to the host, or in device memory, where only a kernel can read it.
struct Number {
  double value = 0;
  const void* device = nullptr;  // null: value holds
  Dtype dtype = Dtype::f32;      // of what lies there

  bool operator==(const Number& other) const {
    return device == other.device && (device ? dtype == other.dtype : value == other.value);
  }
};

// A rule with its update compiled for one instruction set. Sweep: elements [begin, end) of a row.
using Sweep = void (*)(const Row& row, int64_t begin, int64_t end);
// The sums of a row's chunks, from the one that begins with element `begin` on.
using Measure = void (*)(const Row& row, int64_t begin, int64_t end, double* sums);
// Adds up `count` sets of sums, [set][sum], in the order above.
using AddUp = void (*)(const double* sums, int64_t count, double* total);
// Lets the rule change the scalars after the multiplier and, beside them, what it keeps of its sums: a tensor's
// counters or, of a joint rule, hyper-parameters.
using Conclude = void (*)(const double* total, double* kept, double* scalars);

struct Rule {
  const char* name;
  const char* const* hyper_names;
  const char* const* state_names;
  const char* const* counter_names;
  const Kind* state_kinds;       // null: all are of kind other
  const double* hyper_defaults;  // null: there are none
  int hypers, states, counters, scalars, variants, sums;
  bool indexed;         // it steps the rows that a sparse gradient holds
  bool remembers;       // sums in counters: on CUDA they have to be on the device
  bool joint;           // its sums are over all tensors of the optimizer
  const Scope* scopes;  // of a joint rule: of each of its hyper-parameters
  bool factored;  // its states are sums of rows and columns (variant 0), or of a vector's elements (1): adafactor/
  int (*variant)(const double* hypers);
  bool (*keeps)(int variant, int state);
  bool (*like_grad)(int state);
  double (*initial_state)(const double* hypers, int state);
  double (*initial_counter)(const double* hypers, int counter);
  void (*prepare)(const double* hypers, double* counters, bool first, double* scalars);
  // [variant][0: float, 1: double params]
  Sweep sweep[kMaxVariants][2];
  Measure measure[kMaxVariants][2];  // null for variants without sums
  AddUp add_up;                      // null for rules without sums, as are the next
  Conclude conclude[2];

  bool measures(int variant) const { return measure[variant][0]; }
};

}  // namespace fusedopt
