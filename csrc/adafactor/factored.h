// What csrc/host hands to an engine for a step of Adafactor, whose second moments are factored: one tensor with the
// sums of its rows and columns, as plain data. Nothing here knows torch or Python.
#pragma once

#include "../step.h"

namespace fusedopt {

// Leading dimensions that remain after those have been merged which all operands allow to.
constexpr int kMaxLead = 6;

// Strides in elements: of the leading dimensions, down a column, along a row.
struct FactoredOperand {
  void* data;
  int64_t lead[kMaxLead], row, col;
  Dtype dtype;
};

enum FactoredRole {
  kFactoredParam,
  kFactoredGrad,
  kRowVar,
  kColVar,
  kFactoredPartner,
  kFactoredAverage,
  kFactoredOperands,
  kVariance = kRowVar
};

struct FactoredWhole;

// A param of `matrices` matrices, which its leading dimensions count; or a vector, which is cut into rows of kChunk
// elements, the last of them perhaps shorter, and keeps the whole variance.
struct Factored {
  FactoredOperand operand[kFactoredOperands];
  int64_t lead_size[kMaxLead];
  int64_t matrices, rows, cols, numel;
  int32_t leads;
  bool vector;

  const double* scalars;  // as a row's
  uint32_t entry, slot;   // the same
  double eps;             // of the dtype of what the arithmetic keeps of the param
  double scale;           // of the update, which the CPU's sums make

  bool has_extras;
  Extras extras;  // where partner and average lie, the operands say

  // On a device, where other processes have parts of it, too; else null.
  const FactoredWhole* whole;
  int64_t whole_matrices, whole_cols;
};

// The whole of a tensor, as the kernels of a process that has a part of it see it; all of it is device memory.
struct FactoredWhole {
  Factored tensor;  // its sizes and states
  // Which of its matrices, rows and columns the part has.
  const int64_t *matrix_at, *row_at, *col_at;
  double *rows, *cols;  // sums, [matrix][row] and [matrix][column]: the part's, and then those of all
  double* squares;      // of the param and of the update, the same
  double* means;        // of each matrix's row_var, clamped
  void* factors;        // of each column
};

// Memory for the sums of one tensor.
struct FactoredSums {
  double* param;   // of each tile: of the squares of the param,
  double* update;  // and of the update
  double* rows;    // of each row's chunks, where there are several
  void* cols;      // of each column's blocks, where there are several
  // Of a tensor of which other processes have parts; else null. Sums of rows and columns go here and not into the
  // states, [matrix][row] and [matrix][column]; and what row_var is divided by in each matrix, of the whole tensor.
  double *part_rows, *part_cols;
  const double* means;
};

// A process's part of a tensor, with what comes of all parts between the sweeps.
struct FactoredPart : Factored {
  double *sums_of_rows, *sums_of_cols;  // which begin with zeros
  const double* means;
  double squares[2];  // of the param, and of the update
  int64_t whole;      // elements of the whole tensor
};

// The kernels of one instruction set; [0] for what computes in float, [1] in double. Tiles are [first, last).
struct FactoredKernels {
  // Row and column sums of the squared gradient. What is complete within a tile enters the state at once.
  void (*measure[2])(const Factored& tensor, const FactoredSums& sums, int64_t first, int64_t last);
  // One of several shares of what is not.
  void (*finish[2])(const Factored& tensor, const FactoredSums& sums, int64_t share, int64_t of);
  // Squares of the update.
  void (*square[2])(const Factored& tensor, const FactoredSums& sums, int64_t first, int64_t last);
  // The scale of the update.
  void (*conclude)(Factored& tensor, const FactoredSums& sums);
  void (*update[2])(const Factored& tensor, const FactoredSums& sums, int64_t first, int64_t last);
  // Adds doubles in the order of step.h.
  double (*add_all)(const double* values, int64_t count);
  // Takes the sums of a whole tensor's rows and columns into its states, and tells what its rows are divided by.
  void (*take[2])(const Factored& whole, const double* rows, const double* cols, double* means);
};

}  // namespace fusedopt
