// The norm of all gradients together, as plain data: what both engines are asked to add up.
//
// Terms are added in double whatever the gradients' dtype, since squares of float32 overflow it from 1.8e19 on: the sum
// of float32, bfloat16 or float16 is finite exactly if all of them are, so one read serves norm and infinity check. The
// order is step.h's within a chunk of a tensor. The sums of all chunks, tensor after tensor, are then cut into chunks
// themselves and added in the same way, until one is left; a GPU would wait for a single block to add up those of a
// billion elements.
#pragma once

#include "../step.h"

namespace fusedopt {

// |g|^2, |g| or |g|^p is added up, or the largest |g| is kept.
enum class Term : uint8_t { square, absolute, power, largest };

struct NormOrder {
  Term term;
  double p;
};

// One gradient.
struct NormEntry {
  void* data;
  const Layout* layout;  // null: dense; else the walk through it, as the first operand
  int64_t numel;         // of real numbers, of which a complex one is two
  int64_t chunks_end;    // running total of chunks up to and with this entry
  Dtype dtype;
  bool complex;  // |g| is that of a pair of real numbers

  int64_t chunks() const { return (numel + kChunk - 1) / kChunk; }
};

// What the sums of a level leave for the next.
constexpr int64_t folded(int64_t sums) { return (sums + kChunk - 1) / kChunk; }

// What follows from a total for gradients that are to be divided by `scale` first.
struct ClipRequest {
  NormOrder order;
  double max_norm;
  bool wide;  // torch would compute the norm in double
};

// The kernels of one CPU instruction set.
struct NormKernels {
  // The sums of chunks [first, last) of a gradient.
  void (*measure)(const NormEntry& entry, const NormOrder& order, int64_t first, int64_t last, double* sums);
  // The total of `count` sums, which it uses up.
  double (*fold)(double* sums, int64_t count, bool largest);
  // Multiplies elements [begin, end).
  void (*scale)(const NormEntry& entry, int64_t begin, int64_t end, double coefficient);
};

}  // namespace fusedopt
