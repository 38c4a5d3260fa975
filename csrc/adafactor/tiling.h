// How the matrices of a tensor are cut, the same for all engines since it fixes the order of every sum.
//
// A strip is up to 8 rows of one matrix, up to 1,024 columns wide: what one warp of the CUDA engine takes. Eight of
// them make a tile, a block's work: 64 rows of one matrix or several smaller ones. Columns are summed down a strip,
// strip after strip down a tile, both in the type of the arithmetic, and tile after tile in double. Sums along rows and
// over tensors are those of step.h.
#pragma once

#include "../rules/rule.h"
#include "factored.h"

namespace FUSEDOPT_NAMESPACE {

constexpr int kStripRows = 8;
constexpr int kTileStrips = 8;

struct Tiling {
  int64_t strips;  // of a matrix; beyond its last some may be empty, so that tiles and matrices end together
  int64_t blocks;  // tiles down a matrix
  int64_t chunks;  // and across
  int64_t tiles;   // of the tensor

  FUSEDOPT_HD explicit Tiling(const fusedopt::Factored& t) {
    const int64_t whole = (t.rows + kStripRows - 1) / kStripRows;
    strips = whole <= 1 ? 1 : whole <= 2 ? 2 : whole <= 4 ? 4 : (whole + kTileStrips - 1) / kTileStrips * kTileStrips;
    blocks = strips <= kTileStrips ? 1 : strips / kTileStrips;
    chunks = (t.cols + fusedopt::kChunk - 1) / fusedopt::kChunk;
    tiles = (t.matrices * strips + blocks * kTileStrips - 1) / (blocks * kTileStrips) * blocks * chunks;
  }
};

// Strip `index` of a tile. Tiles are numbered down a matrix, then across, then from matrix to matrix.
struct Strip {
  int64_t matrix, block, chunk;
  int64_t row, col;  // where it begins
  int rows, cols;    // no rows: it is empty
  bool first, last;  // of its matrix within the tile

  FUSEDOPT_HD Strip(const fusedopt::Factored& t, const Tiling& tiling, int64_t tile, int index) {
    block = tile % tiling.blocks;
    const int64_t across = tile / tiling.blocks;
    chunk = across % tiling.chunks;
    const int64_t strip = (across / tiling.chunks * tiling.blocks + block) * kTileStrips + index;
    matrix = strip / tiling.strips;
    row = strip % tiling.strips * kStripRows;
    col = chunk * fusedopt::kChunk;
    const int64_t down = matrix < t.matrices ? t.rows - row : 0, right = t.cols - col;
    rows = static_cast<int>(down < 0 ? 0 : down < kStripRows ? down : kStripRows);
    cols = static_cast<int>(right < fusedopt::kChunk ? right : fusedopt::kChunk);
    first = index == 0 || row == 0;
    last = index == kTileStrips - 1 || down <= kStripRows;
  }
};

// The elements of a strip in one row: all, but in the last row of a vector.
FUSEDOPT_HD int row_length(const fusedopt::Factored& t, const Strip& strip, int64_t row) {
  if (!t.vector) return strip.cols;
  const int64_t left = t.numel - row * fusedopt::kChunk;
  return static_cast<int>(left < fusedopt::kChunk ? left : fusedopt::kChunk);
}

// Where a matrix begins in an operand.
FUSEDOPT_HD int64_t matrix_start(const fusedopt::Factored& t, int role, int64_t matrix) {
  int64_t start = 0;
  for (int d = t.leads - 1; d > 0; --d) {
    start += matrix % t.lead_size[d] * t.operand[role].lead[d];
    matrix /= t.lead_size[d];
  }
  return t.leads > 0 ? start + matrix * t.operand[role].lead[0] : 0;
}

FUSEDOPT_HD_ONCE int64_t element_start(const fusedopt::Factored& t, int role, int64_t matrix, int64_t row,
                                       int64_t col) {
  return matrix_start(t, role, matrix) + row * t.operand[role].row + col * t.operand[role].col;
}

}  // namespace FUSEDOPT_NAMESPACE
