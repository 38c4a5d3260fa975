// Tensors with factored second moments in the table of a step: what stands for each where other steps have rows, and
// which launches step them.
#pragma once

#include "../cuda/engine.h"
#include "../cuda/table.h"
#include "tiling.h"

namespace FUSEDOPT_NAMESPACE {

using fusedopt::Factored;

constexpr int kFactoredThreads = kTileStrips * fusedopt::cuda::kLanes;

// Kernels are numbered pass by pass, and in each by what they serve: the storages that have kernels of their own, then
// any others and params with extras, with arithmetic in float and in double.
// Between kMeasure and kTake, and between kTotal and kConclude, sums go to other processes, if these have parts.
enum FactoredPass { kMeasure, kFinish, kTake, kLookUp, kSquare, kTotal, kConclude, kFactoredUpdate, kFactoredPasses };
constexpr int kFactoredKinds = 6;
// Blocks of tiles, of finishes and of what takes sums, for each kind; of tensors.
constexpr int kFactoredStarts = 3 * kFactoredKinds + 1;

inline bool is_wide(const Factored& t) { return t.operand[fusedopt::kFactoredParam].dtype == fusedopt::Dtype::f64; }

inline int kind_of(const Factored& t) {
  using fusedopt::Dtype;
  const Dtype param = t.operand[fusedopt::kFactoredParam].dtype, grad = t.operand[fusedopt::kFactoredGrad].dtype;
  if (t.has_extras || param != grad) return 4 + is_wide(t);
  return param == Dtype::f32 ? 0 : param == Dtype::bf16 ? 1 : param == Dtype::f16 ? 2 : 3;
}

// How many blocks finish a matrix: one for its rows and their mean, and others for its columns unless these are few.
FUSEDOPT_HD int64_t finishing_blocks(const Factored& t) {
  return Tiling(t).blocks > 1 || t.cols > fusedopt::kChunk ? 1 + (t.cols + kFactoredThreads - 1) / kFactoredThreads : 1;
}

// How many blocks take the sums of a whole tensor: of each matrix one for its rows and their mean, others for columns.
FUSEDOPT_HD int64_t taking_blocks(int64_t cols) { return 1 + (cols + kFactoredThreads - 1) / kFactoredThreads; }
inline int64_t takes_of(const Factored& t) { return t.whole_matrices * taking_blocks(t.whole_cols); }

inline int64_t tiles_of(const Factored& t) { return t.numel > 0 ? Tiling(t).tiles : 0; }
inline int64_t finishes_of(const Factored& t) {
  return t.numel > 0 && !t.vector ? t.matrices * finishing_blocks(t) : 0;
}

// A tensor, and the words of the table where its sums are.
struct FactoredEntry {
  Factored tensor;
  uint32_t param, update, rows, cols;  // as in FactoredSums
  uint32_t factors;                    // of each column
  uint32_t means;                      // of each matrix's row_var, clamped
  uint32_t scale, padding;             // of the update

  // Takes words from `at` on.
  FactoredEntry(const Factored& t, uint32_t& at) : tensor(t), padding(0) {
    // These come as arguments, and would be another word at every step.
    tensor.scalars = nullptr;
    tensor.extras.key = 0;
    const Tiling tiling(t);
    const bool matrices = t.numel > 0 && !t.vector;
    const int64_t tiles = tiles_of(t);
    const auto take = [&](int64_t numbers) {
      const uint32_t first = at;
      at += static_cast<uint32_t>(numbers);
      return first;
    };
    const auto take_if = [&](bool needed, int64_t numbers) { return take(matrices && needed ? numbers : 0); };
    const auto words = [&](int64_t numbers) { return is_wide(t) ? numbers : (numbers + 1) / 2; };
    param = take(tiles);
    update = take(tiles);
    rows = take_if(tiling.chunks > 1, t.matrices * t.rows * tiling.chunks);
    cols = take_if(tiling.blocks > 1, words(t.matrices * tiling.blocks * t.cols));
    factors = take_if(true, words(t.matrices * t.cols));
    means = take_if(true, t.matrices);
    scale = take(1);
  }
};
constexpr int kFactoredWords = sizeof(FactoredEntry) / sizeof(uint64_t);
static_assert(sizeof(FactoredEntry) % sizeof(uint64_t) == 0);

}  // namespace FUSEDOPT_NAMESPACE
