// What the bindings hand to an engine: one step of one rule, as plain data. Nothing here knows torch or Python.
#pragma once

#include <cstdint>

namespace fusedopt {

constexpr int kMaxStates = 4;
constexpr int kMaxCounters = 3;
constexpr int kMaxHypers = 16;
constexpr int kMaxScalars = 16;
constexpr int kMaxVariants = 8;
constexpr int kMaxDims = 16;

enum class Dtype : uint8_t { f32, f64, bf16, f16 };

constexpr int element_size(Dtype d) { return d == Dtype::f64 ? 8 : d == Dtype::f32 ? 4 : 2; }

// The operands of a row in the order in which layouts list them.
enum Operand { kParam, kGrad, kState, kOperands = kState + kMaxStates };

// The walk through a row whose operands differ in strides, or leave memory between their elements untouched: sizes from
// the outermost dimension to the innermost, in the order of the param's memory; strides in elements.
struct Layout {
  int dims;
  int64_t size[kMaxDims];
  int64_t stride[kOperands][kMaxDims];
};

// One param tensor, its gradient and its states. Where `layout` is null, all of them are dense in the same order.
struct Row {
  void* param;
  const void* grad;
  void* state[kMaxStates];
  const Layout* layout;
  int64_t numel;
  int64_t work_end;       // running total of `work` up to and with this row: where threads find their share
  const double* scalars;  // for the CPU: [0] the gradient multiplier, then what the rule's prepare() returned
  uint32_t entry;         // for CUDA: which of the step's entries it shares
  uint32_t slot;          // the param's place among all of the optimizer
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

struct Rule {
  const char* name;
  const char* const* hyper_names;
  const char* const* state_names;
  const char* const* counter_names;
  int hypers, states, counters, scalars, variants;
  bool state_like_grad;
  int (*variant)(const double* hypers);
  bool (*keeps)(int variant, int state);
  void (*prepare)(const double* hypers, double* counters, bool first, double* scalars);
  Sweep sweep[kMaxVariants][2];  // [variant][0: float, 1: double params]
};

}  // namespace fusedopt
