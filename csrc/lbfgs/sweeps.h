// Sweeps over the long vectors of L-BFGS, as plain data: what both engines are asked to do. The history, the direction
// and the previous gradient lie flat in memory, one element after another for all params together; the gradient and
// the params stay in their tensors.
#pragma once

#include "../step.h"

namespace fusedopt::history {

// A tensor's part of a vector, in the order of its indices.
struct Segment {
  void* data;      // null: zeros
  int64_t begin;   // the place of its first element in the vector
  int64_t layout;  // which of the vector's layouts, which hold it as their first operand; -1: contiguous
};

// A vector made of tensors.
struct Scattered {
  const Segment* segments;  // and after them one that begins where the vector ends
  const Layout* layouts;
  int64_t count;
};

constexpr int64_t chunks_of(int64_t numel) { return (numel + kChunk - 1) / kChunk; }

// Results of a sweep are a maximum and then sums. A chunk has one of each.

// max|g|, sum|g|, and for every vector v its products v.g and v.y, where y = g - previous. The first two vectors are
// y itself and s = t * direction, then come those given. Without `previous` there are only those, and v.y is 0.
struct Products {
  int64_t numel;
  Scattered grad;
  const void* previous;
  const void* direction;
  double t;
  const void* const* vectors;
  int count;

  int all() const { return count + (previous ? 2 : 0); }
  int results() const { return 2 + 2 * all(); }
};

// What a direction adds up: factor times vector.
struct Term {
  const void* vector;
  double factor;
};

// direction = scale * (-g + dirs) + steps, and previous = g; before that y = g - previous and s = t * direction, unless
// they are null. Terms may hold y and s. Results: max|direction|, direction.g.
struct Direction {
  int64_t numel;
  Scattered grad;
  void* previous;
  void* direction;
  void *y, *s;
  double t;
  const Term* dirs;
  const Term* steps;
  int dir_count, step_count;
  double scale;

  static constexpr int kResults = 2;
};

// param = origin + t * direction; origin is the params themselves if null, else `fetch` copies them there first.
struct Move {
  int64_t numel;
  Scattered param;
  const void* direction;
  double t;
  void* origin;
  bool fetch;
};

// out = g
struct Gather {
  int64_t numel;
  Scattered grad;
  void* out;
};

// The kernels of one CPU instruction set, [0] for float and [1] for double. Each sweeps chunks [first, last); `sums`
// has a row of results for every chunk of the vector.
struct Kernels {
  void (*products[2])(const Products& job, int64_t first, int64_t last, double* sums);
  void (*direction[2])(const Direction& job, int64_t first, int64_t last, double* sums);
  void (*move[2])(const Move& job, int64_t first, int64_t last);
  void (*gather[2])(const Gather& job, int64_t first, int64_t last);
  // The results of all chunks, in double.
  void (*conclude)(const double* sums, int64_t chunks, int results, double* out);
};

}  // namespace fusedopt::history
