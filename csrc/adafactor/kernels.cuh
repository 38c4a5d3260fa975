// The kernels for tensors with factored second moments. A warp takes a strip, a block the eight strips of a tile; see
// tiling.h for the order of the sums.
#pragma once

#include "block.cuh"

namespace FUSEDOPT_NAMESPACE {

// What is called for each element is long: numbers of a lane that are not in registers are no loss then.
template <class G>
constexpr int kUnroll = std::is_same<G, AnyStored>::value ? 1 : kPerLane;

// The sum of a row goes into its state; or, of a part, where other processes' go as well.
template <class T>
__device__ void take_row(const Factored& t, T weight, int64_t matrix, int64_t row, double sum) {
  const int64_t at = element_start(t, fusedopt::kRowVar, matrix, row, 0);
  const FactoredOperand& operand = t.operand[fusedopt::kRowVar];
  const T before = get<T, AnyStored>(operand, at);
  set<T, AnyStored>(operand, at, Adafactor::average(before, sum, static_cast<double>(t.cols), weight));
}

template <class T>
__device__ void set_row(const FactoredBlock<T>& block, int64_t matrix, int64_t row, double sum) {
  const Factored& t = block.entry->tensor;
  if (const FactoredWhole* whole = t.whole)
    whole->rows[whole->matrix_at[matrix] * whole->tensor.rows + whole->row_at[row]] = sum;
  else
    take_row(t, block.weight, matrix, row, sum);
}

// Returns what the column's elements are multiplied by.
template <class T>
__device__ T take_col(const Factored& t, T weight, int64_t matrix, int64_t col, double sum) {
  const int64_t at = element_start(t, fusedopt::kColVar, matrix, 0, col);
  const FactoredOperand& operand = t.operand[fusedopt::kColVar];
  const T before = get<T, AnyStored>(operand, at);
  set<T, AnyStored>(operand, at, Adafactor::average(before, sum, static_cast<double>(t.rows), weight));
  return Adafactor::col_factor(get<T, AnyStored>(operand, at));  // as stored
}

template <class T>
__device__ void set_col(const FactoredBlock<T>& block, int64_t matrix, int64_t col, double sum) {
  const Factored& t = block.entry->tensor;
  if (const FactoredWhole* whole = t.whole)
    whole->cols[whole->matrix_at[matrix] * whole->tensor.cols + whole->col_at[col]] = sum;
  else
    block.template at<T>(block.entry->factors)[matrix * t.cols + col] = take_col(t, block.weight, matrix, col, sum);
}

// What the rows of a matrix are divided by, for the block's first thread.
__device__ inline double mean_of_rows(const Factored& t, int64_t matrix, double eps1) {
  double sum = 0;
  for (int64_t row = threadIdx.x; row < t.rows; row += kThreads)
    sum += get<double, AnyStored>(t.operand[fusedopt::kRowVar], element_start(t, fusedopt::kRowVar, matrix, row, 0));
  return Adafactor::mean(add_accumulators(sum), static_cast<double>(t.rows), eps1);
}

template <class T, class P, class G>
__device__ void measure_vector(const FactoredBlock<T>& block, const Strip& strip) {
  const Factored& t = block.entry->tensor;
  const FactoredOperand &grad = t.operand[fusedopt::kFactoredGrad], &variance = t.operand[fusedopt::kVariance];
  const int lane = threadIdx.x % kLanes;
  T squares[kSumsPerLane] = {}, update_squares[kSumsPerLane] = {};
  for (int r = 0; r < strip.rows; ++r) {
    const int n = row_length(t, strip, strip.row + r);
    const FactoredParam<T, P> param(block, 0, strip.row + r, 0);
#pragma unroll 1
    for (int k = 0; k < kPerLane; k += kSumsPerLane) {
#pragma unroll kUnroll < G>
      for (int j = 0; j < kSumsPerLane; ++j) {
        const int i = (k + j) * kLanes + lane;
        if (i >= n) continue;
        const int64_t e = (strip.row + r) * kChunk + i, at = e * variance.col;
        const T g = get<T, G>(grad, e * grad.col) * block.multiplier;
        set<T, AnyStored>(variance, at, lerp(get<T, AnyStored>(variance, at), g * g, block.weight));
        const T p = param.load(i);
        const T u = Adafactor::update(g, get<T, AnyStored>(variance, at), block.limit);
        squares[j] = fma(p, p, squares[j]);
        update_squares[j] = fma(u, u, update_squares[j]);
      }
    }
  }
  const double all = add_strips(static_cast<double>(total(squares)));
  const double all_updates = add_strips(static_cast<double>(total(update_squares)));
  if (threadIdx.x > 0) return;
  block.template at<double>(block.entry->param)[block.index] = all;
  block.template at<double>(block.entry->update)[block.index] = all_updates;
}

// Where the column sums of one block of a matrix go: if it is the only one, to where the factors made of them will be.
template <class T>
__device__ T* cols_of_block(const FactoredBlock<T>& block, const Tiling& tiling, int64_t matrix, int64_t which) {
  const uint32_t sums = tiling.blocks > 1 ? block.entry->cols : block.entry->factors;
  return block.template at<T>(sums) + (matrix * tiling.blocks + which) * block.entry->tensor.cols;
}

// Row and column sums of the squared gradient. Rows that are complete within a tile enter the state at once.
template <class T, class P, class G>
__global__ void __launch_bounds__(kThreads, 2) factored_measure(const __grid_constant__ UpdateArguments a) {
  FactoredBlock<T> block;
  if (!block.find(a)) return;
  const Factored& t = block.entry->tensor;
  const Tiling tiling(t);
  const int warp = threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
  const Strip strip(t, tiling, block.index, warp);
  if (t.vector) return measure_vector<T, P, G>(block, strip);

  const FactoredOperand& grad = t.operand[fusedopt::kFactoredGrad];
  double* const row_sums = block.template at<double>(block.entry->rows);
  T col_sum[kPerLane] = {}, squares[kSumsPerLane] = {};
  for (int r = 0; r < strip.rows; ++r) {
    const int64_t row = strip.row + r;
    const int64_t at_g = element_start(t, fusedopt::kFactoredGrad, strip.matrix, row, strip.col);
    const FactoredParam<T, P> param(block, strip.matrix, row, strip.col);
    T row_sum[kSumsPerLane] = {};
#pragma unroll kUnroll < G>
    for (int k = 0; k < kPerLane; ++k) {
      const int i = k * kLanes + lane;
      if (i >= strip.cols) continue;
      const T g = get<T, G>(grad, at_g + i * grad.col) * block.multiplier;
      const T p = param.load(i);
      row_sum[k % kSumsPerLane] = fma(g, g, row_sum[k % kSumsPerLane]);
      col_sum[k] = fma(g, g, col_sum[k]);
      squares[k % kSumsPerLane] = fma(p, p, squares[k % kSumsPerLane]);
    }
    const double sum = static_cast<double>(total(row_sum));
    if (lane > 0) continue;
    if (tiling.chunks > 1)
      row_sums[(strip.matrix * t.rows + row) * tiling.chunks + strip.chunk] = sum;
    else
      set_row(block, strip.matrix, row, sum);
  }

  // The strips of a matrix are added one after another.
  __shared__ T passed[kTileStrips / 2][kChunk];
  T* col_sums = cols_of_block<T>(block, tiling, strip.matrix, strip.block);
  const int together = static_cast<int>(tiling.strips < kTileStrips ? tiling.strips : kTileStrips);
  for (int turn = 0; turn < together; ++turn) {
    if (warp % together == turn && strip.rows > 0) {
      T* passing = passed[together > 1 ? warp / together : 0];
#pragma unroll
      for (int k = 0; k < kPerLane; ++k) {
        const int i = k * kLanes + lane;
        if (i >= strip.cols) continue;
        if (!strip.first) col_sum[k] += passing[i];
        if (strip.last)
          col_sums[strip.col + i] = col_sum[k];
        else
          passing[i] = col_sum[k];
      }
    }
    __syncthreads();
  }

  const double all = add_strips(static_cast<double>(total(squares)));
  if (threadIdx.x == 0) block.template at<double>(block.entry->param)[block.index] = all;
}

template <class T>
__global__ void __launch_bounds__(kThreads) factored_finish(const __grid_constant__ UpdateArguments a) {
  FactoredBlock<T> block;
  if (!block.find(a)) return;
  const Factored& t = block.entry->tensor;
  const Tiling tiling(t);
  const double* const row_sums = block.template at<double>(block.entry->rows);
  const int64_t blocks = finishing_blocks(t), matrix = block.index / blocks, part = block.index % blocks;
  const auto finish_col = [&](int64_t col) {
    double sum = 0;
    for (int64_t b = 0; b < tiling.blocks; ++b)
      sum += static_cast<double>(cols_of_block<T>(block, tiling, matrix, b)[col]);
    set_col(block, matrix, col, sum);
  };
  if (part > 0) {
    const int64_t col = (part - 1) * kThreads + threadIdx.x;
    if (col < t.cols) finish_col(col);
    return;
  }
  if (blocks == 1)
    for (int64_t col = threadIdx.x; col < t.cols; col += kThreads) finish_col(col);
  if (tiling.chunks > 1) {
    for (int64_t row = threadIdx.x / kLanes; row < t.rows; row += kTileStrips) {
      const double sum = add_by_warp(row_sums + (matrix * t.rows + row) * tiling.chunks, tiling.chunks);
      if (threadIdx.x % kLanes == 0) set_row(block, matrix, row, sum);
    }
    __syncthreads();
  }
  if (t.whole) return;
  const double mean = mean_of_rows(t, matrix, block.eps1);
  if (threadIdx.x == 0) block.template at<double>(block.entry->means)[matrix] = mean;
}

// Sums of all parts' rows and columns, of which every process makes all factors.
template <class T>
__global__ void __launch_bounds__(kThreads) factored_take(const __grid_constant__ UpdateArguments a) {
  FactoredBlock<T> block;
  if (!block.find(a)) return;
  const FactoredWhole& whole = *block.entry->tensor.whole;
  const Factored& t = whole.tensor;
  const int64_t blocks = taking_blocks(t.cols), matrix = block.index / blocks, part = block.index % blocks;
  if (part > 0) {
    const int64_t col = (part - 1) * kThreads + threadIdx.x, at = matrix * t.cols + col;
    if (col < t.cols) static_cast<T*>(whole.factors)[at] = take_col(t, block.weight, matrix, col, whole.cols[at]);
    return;
  }
  for (int64_t row = threadIdx.x; row < t.rows; row += kThreads)
    take_row(t, block.weight, matrix, row, whole.rows[matrix * t.rows + row]);
  __syncthreads();
  const double mean = mean_of_rows(t, matrix, block.eps1);
  if (threadIdx.x == 0) whole.means[matrix] = mean;
}

// Of a part, what its columns are multiplied by, out of what was made of the whole.
template <class T>
__global__ void __launch_bounds__(kThreads) factored_look_up(const __grid_constant__ UpdateArguments a) {
  FactoredBlock<T> block;
  if (!block.find(a)) return;
  const Factored& t = block.entry->tensor;
  const FactoredWhole* whole = t.whole;
  if (!whole) return;
  const int64_t blocks = finishing_blocks(t), matrix = block.index / blocks, part = block.index % blocks;
  const T* from = static_cast<const T*>(whole->factors) + whole->matrix_at[matrix] * whole->tensor.cols;
  T* to = block.template at<T>(block.entry->factors) + matrix * t.cols;
  const int64_t first = blocks == 1 ? 0 : (part - 1) * kThreads, last = blocks == 1 ? t.cols : first + kThreads;
  if (first < 0) return;
  for (int64_t col = first + threadIdx.x; col < last && col < t.cols; col += kThreads)
    to[col] = from[whole->col_at[col]];
}

// What turns the gradients of a strip into its update.
template <class T>
struct StripFactors {
  T cols[kPerLane], rows;  // of the row that has the lane's number

  __device__ StripFactors(const FactoredBlock<T>& block, const Strip& strip) : rows(0) {
    const Factored& t = block.entry->tensor;
    const int lane = threadIdx.x % kLanes;
    const T* factors = block.template at<const T>(block.entry->factors) + strip.matrix * t.cols + strip.col;
#pragma unroll
    for (int k = 0; k < kPerLane; ++k)
      cols[k] = strip.rows > 0 && k * kLanes + lane < strip.cols ? factors[k * kLanes + lane] : T(0);
    if (lane >= strip.rows) return;
    rows = t.whole ? row_of_whole(*t.whole, strip.matrix, strip.row + lane)
                   : row(t, strip.matrix, strip.row + lane, block.template at<const double>(block.entry->means));
  }

 private:
  __device__ static T row(const Factored& t, int64_t matrix, int64_t row, const double* means) {
    return Adafactor::row_factor(
        get<T, AnyStored>(t.operand[fusedopt::kRowVar], element_start(t, fusedopt::kRowVar, matrix, row, 0)),
        means[matrix]);
  }
  // Not inlined, so that what is no part does not pay for it in registers.
  __device__ __noinline__ static T row_of_whole(const FactoredWhole& whole, int64_t matrix, int64_t at) {
    return row(whole.tensor, whole.matrix_at[matrix], whole.row_at[at], whole.means);
  }
};

// Squares of the update.
template <class T, class P, class G>
__global__ void __launch_bounds__(kThreads, 2) factored_square(const __grid_constant__ UpdateArguments a) {
  FactoredBlock<T> block;
  if (!block.find(a)) return;
  const Factored& t = block.entry->tensor;
  if (t.vector) return;  // it is measured already
  const Strip strip(t, Tiling(t), block.index, threadIdx.x / kLanes);
  const FactoredOperand& grad = t.operand[fusedopt::kFactoredGrad];
  const StripFactors<T> factors(block, strip);
  T squares[kSumsPerLane] = {};
  for (int r = 0; r < strip.rows; ++r) {
    const int64_t at = element_start(t, fusedopt::kFactoredGrad, strip.matrix, strip.row + r, strip.col);
    const T row = __shfl_sync(~0u, factors.rows, r);
#pragma unroll kUnroll < G>
    for (int k = 0; k < kPerLane; ++k) {
      const int i = k * kLanes + threadIdx.x % kLanes;
      if (i >= strip.cols) continue;
      const T u =
          Adafactor::update(get<T, G>(grad, at + i * grad.col) * block.multiplier, row, factors.cols[k], block.limit);
      squares[k % kSumsPerLane] = fma(u, u, squares[k % kSumsPerLane]);
    }
  }
  const double all = add_strips(static_cast<double>(total(squares)));
  if (threadIdx.x == 0) block.template at<double>(block.entry->update)[block.index] = all;
}

// Of all tiles of the block's tensor: the squares of the param, and of the update.
__device__ inline void add_tiles(const FactoredBlock<double>& block, double (&squares)[2]) {
  const FactoredEntry& entry = *block.entry;
  const int64_t tiles = entry.tensor.numel > 0 ? Tiling(entry.tensor).tiles : 0;
  squares[0] = squares[1] = 0;
  for (int64_t i = threadIdx.x; i < tiles; i += kThreads) {
    squares[0] += block.at<double>(entry.param)[i];
    squares[1] += block.at<double>(entry.update)[i];
  }
  for (double& sum : squares) sum = add_accumulators(sum);
}

// A block for each tensor: of a part, what goes to other processes.
__global__ void __launch_bounds__(kThreads) factored_total(const __grid_constant__ UpdateArguments a) {
  FactoredBlock<double> block;
  if (!block.find(a)) return;
  const FactoredWhole* whole = block.entry->tensor.whole;
  if (!whole) return;
  double squares[2];
  add_tiles(block, squares);
  if (threadIdx.x > 0) return;
  whole->squares[0] = squares[0];
  whole->squares[1] = squares[1];
}

// A block for each tensor: the scale of its update.
__global__ void __launch_bounds__(kThreads) factored_conclude(const __grid_constant__ UpdateArguments a) {
  FactoredBlock<double> block;
  if (!block.find(a)) return;
  const FactoredEntry& entry = *block.entry;
  double squares[2];
  add_tiles(block, squares);
  if (threadIdx.x > 0) return;
  const FactoredWhole* whole = entry.tensor.whole;
  const double *const all = whole ? whole->squares : squares,
                      numel = static_cast<double>(whole ? whole->tensor.numel : entry.tensor.numel);
  *block.at<double>(entry.scale) = Adafactor::scale(block.scalars, all[0], all[1], numel);
}

template <class T, class P, class G>
__global__ void __launch_bounds__(kThreads, sizeof(T) != sizeof(float)          ? 2
                                            : std::is_same<G, AnyStored>::value ? 4
                                                                                : 3)
    factored_update(const __grid_constant__ UpdateArguments a) {
  FactoredBlock<T> block;
  if (!block.find(a)) return;
  const Factored& t = block.entry->tensor;
  const Strip strip(t, Tiling(t), block.index, threadIdx.x / kLanes);
  const FactoredOperand &grad = t.operand[fusedopt::kFactoredGrad], &variance = t.operand[fusedopt::kVariance];
  const T keep = static_cast<T>(block.scalars.keep),
          scale = static_cast<T>(*block.template at<double>(block.entry->scale));
  const auto step = [&](const FactoredParam<T, P>& param, int i, int64_t at_g, auto&& updated) {
    const T g = get<T, G>(grad, at_g) * block.multiplier;
    param.store(i, Adafactor::step(param.load(i), updated(g), keep, scale));
  };
  if (t.vector) {
    for (int r = 0; r < strip.rows; ++r) {
      const FactoredParam<T, P> param(block, 0, strip.row + r, 0);
      for (int i = threadIdx.x % kLanes; i < row_length(t, strip, strip.row + r); i += kLanes) {
        const int64_t e = (strip.row + r) * kChunk + i;
        step(param, i, e * grad.col,
             [&](T g) { return Adafactor::update(g, get<T, AnyStored>(variance, e * variance.col), block.limit); });
      }
    }
    return;
  }
  const StripFactors<T> factors(block, strip);
  for (int r = 0; r < strip.rows; ++r) {
    const FactoredParam<T, P> param(block, strip.matrix, strip.row + r, strip.col);
    const int64_t at_g = element_start(t, fusedopt::kFactoredGrad, strip.matrix, strip.row + r, strip.col);
    const T row = __shfl_sync(~0u, factors.rows, r);
#pragma unroll kUnroll < G>
    for (int k = 0; k < kPerLane; ++k) {
      const int i = k * kLanes + threadIdx.x % kLanes;
      if (i >= strip.cols) continue;
      step(param, i, at_g + i * grad.col, [&](T g) { return Adafactor::update(g, row, factors.cols[k], block.limit); });
    }
  }
}

}  // namespace FUSEDOPT_NAMESPACE
