// The table in device memory that the kernels of a step read, as both sides see it. It is made of 8-byte words, so that
// the host can keep a mirror of it and send, inside the parameters of the next launch, only the words that changed: in
// training's steady state that is a counter, or nothing at all, and neither pinned memory nor a copy nor an event is
// needed.
//
//   groups    a param group's hyper-parameters
//   entries   what rows with the same group and the same counters share; the advance kernel makes their scalars of it
//   rows      a param tensor each, at the index that its slot has in the optimizer
//   starts    for each update launch, the running total of chunks before each row
//   layouts   the dimensions of rows whose operands are not all dense in one order
//   extras    of rows that have them
//   scalars   written by the advance kernel, read by the updates
//   sums      of each chunk, where the rule has any
#pragma once

#include <cstddef>
#include <cstdint>

#include "../step.h"

namespace fusedopt::cuda {

constexpr int kLanes = 32;
constexpr int kWarps = 8;  // in a block; they share nothing, so eight tiny tensors pack into one block

constexpr int kAdvanceThreads = 1024;

// How a number is given: its bits in the word itself, or an address in device memory and the type found there.
constexpr unsigned kImmediate = 0;
constexpr unsigned kind_of(Dtype dtype) { return 1 + static_cast<unsigned>(dtype); }
constexpr int kKindBits = 4;
static_assert(kMaxHypers * kKindBits <= 64);

// A group: the kinds of its hyper-parameters, its sign (-1 to maximize), the hyper-parameters.
constexpr int group_words(int hypers) { return 2 + hypers; }

// An entry: its group in the low half, its flags in the high one, then the counters.
constexpr int entry_words(int counters) { return 1 + counters; }
constexpr uint32_t kFirst = 1;  // the states were just made
constexpr uint32_t kWide = 2;   // the rows compute in double
constexpr int kCounterKinds = 2;

// An entry's scalars: the gradient's multiplier, then what prepare() returned; doubles if wide, else floats.
constexpr int scalar_words(int scalars) { return 1 + scalars; }

// What serves rules of any number of states reads a row, and its extras, as one of the most.
template <int states>
struct alignas(16) TableRow {
  void* param;
  const void* grad;
  int64_t numel;
  uint32_t entry;
  uint32_t layout;  // the word where it starts; 0: dense
  Dtype dtypes[8];  // of param, grad and states; read only where a kernel serves every mix
  void* state[states];
  uint64_t extras;  // the word where they start; 0: none
};
constexpr int row_words(int states) { return (6 + states + 1) / 2 * 2; }
// Of a row, which word says where its extras start.
constexpr int extras_word(int states) { return 5 + states; }
static_assert(offsetof(TableRow<1>, extras) == 8 * extras_word(1));
static_assert(sizeof(TableRow<1>) == 8 * row_words(1) && sizeof(TableRow<kMaxStates>) == 8 * row_words(kMaxStates));

// A layout: the number of dimensions, the address of the index or 0, then for each dimension, outermost first, its size
// and the strides of param, grad, states, partner and average.
constexpr int layout_operands(int states) { return kState + states + 2; }
constexpr int layout_words(int dims, int states) { return 2 + dims * (1 + layout_operands(states)); }

template <int states>
struct TableExtras {
  Pair pair;
  Dtype partner_dtype, average_dtype;
  uint8_t flags;
  uint16_t coded, by_chance;  // bit k: state k is in codes, is rounded up or down by chance
  void* partner;
  void* average;
  double average_weight;  // of this step's param
  Numbering numbering;    // by which draws count, of rows that are parts
  float* scales[states];
};
constexpr uint8_t kNewAverage = 1, kStochastic = 2, kClearsGrad = 4, kPart = 8;
constexpr int extras_words(int states) { return 4 + sizeof(Numbering) / 8 + states; }
static_assert(sizeof(TableExtras<kMaxStates>) == 8 * extras_words(kMaxStates));

struct TableView {
  uint64_t* words;
  uint32_t groups, entries, rows, scalars;  // where these start
};

// Words to write before anything reads the table.
template <int capacity>
struct Patch {
  uint64_t word[capacity];
  uint32_t at[capacity];
  uint32_t count;
};
// With the arguments beside it, what a launch carries: 4 KiB as a rule, and at most 32,764 bytes.
constexpr int kSmallPatch = 320;
constexpr int kLargePatch = 2688;

// A number at an address whose type is known at run time; null: there is none.
struct DeviceNumber {
  const void* at;
  Dtype dtype;
};

struct AdvanceArguments {
  TableView table;
  uint32_t entries;
  double multiplier;        // of every gradient, where grad_scale is not given on the device
  DeviceNumber grad_scale;  // to divide by
  DeviceNumber found_inf;   // anything but zero: nothing happens
  uint32_t* skipped;        // where to say so
};

struct UpdateArguments {
  TableView table;
  uint32_t starts;  // the word where this launch's starts begin
  uint32_t sums;    // and its chunks' sums
  uint32_t totals;  // and, of a joint rule, where its sums of each row are to go
  uint32_t rows, chunks;
  const uint32_t* skipped;  // null: known to be 0
  uint64_t key;             // of this step's draws
  uint32_t first_slot;      // the slot of the table's first row among the params that draw
};

// What kernels that serve any rule are told of theirs.
struct CommonRule {
  uint16_t number;  // its place among those that the kernel is compiled for
  uint8_t hypers, states, counters, scalars, sums;
  uint8_t variant;
  uint8_t kept;  // bit k: the variant has state k
  bool joint;
};

// Of rows of which other processes have parts, which `parts` says of each: their sums go to `totals`, or come from
// there.
struct TotalsArguments {
  uint64_t* words;
  uint32_t starts, sums;  // of a launch
  uint32_t count;         // of the rule's sums
  const uint8_t* parts;
  double* totals;  // [row][sum]
};

// The same of a joint rule, whose sums of rows are where conclude() has noted them, [launch][row][sum].
struct JointTotalsArguments {
  double* noted;
  uint32_t launches, rows, count;
  const uint8_t* parts;
  double* totals;
};

// Of a joint rule, once a step: what follows from the totals, [launch][row][sum], of all launches.
struct JointArguments {
  TableView table;
  uint32_t totals, launches, rows, groups, entries;
  const uint32_t* skipped;  // null: known to be 0
};

}  // namespace fusedopt::cuda
