// How the CPU sums and updates matrices.
#include "../cpu/isa/target.h"

#include "../codec.h"
#include "../cpu/sum.h"
#include "../shape.h"
#include "cpu_row.h"
#include "maths.h"
#include "tiling.h"

namespace FUSEDOPT_NAMESPACE {

using fusedopt::FactoredSums;
using fusedopt::kAccumulators;
using fusedopt::kChunk;

// n elements of row_var or col_var: where they are if that will do, else decoded into the buffer.
template <class T>
inline const T* read(const FactoredOperand& operand, int64_t at, int64_t stride, int64_t n, T* buffer) {
  if (operand.dtype == dtype_of(T()) && stride == 1) return static_cast<const T*>(operand.data) + at;
  with_storage(operand.dtype, [&](auto type) {
    const auto* from = static_cast<const decltype(type)*>(operand.data) + at;
    if (stride == 1) return decode_all(from, buffer, n);
    for (int64_t i = 0; i < n; ++i) buffer[i] = static_cast<T>(decode(from[i * stride]));
  });
  return buffer;
}

template <class T>
inline void write(const FactoredOperand& operand, int64_t at, int64_t stride, int64_t n, const T* values) {
  with_storage(operand.dtype, [&](auto type) {
    auto* to = static_cast<decltype(type)*>(operand.data) + at;
    if (stride == 1) return encode_all(values, to, n);
    for (int64_t i = 0; i < n; ++i) encode(values[i], to[i * stride]);
  });
}

// Adds doubles as step.h adds the sums of chunks.
inline double add_all(const double* values, int64_t count) {
  alignas(64) double sum[kAccumulators];
  const int width = width_for(count);
  std::memset(sum, 0, width * sizeof(double));
  for (int64_t i = 0; i < count; ++i) sum[i % kAccumulators] += values[i];
  return total(sum, width);
}

inline Adafactor::Scalars<double> scalars_of(const Factored& t) { return Shape<Adafactor>::scalars<double>(t.scalars); }

template <class T>
class FactoredKernel {
 public:
  static void measure(const Factored& t, const FactoredSums& sums, int64_t first, int64_t last) {
    const FactoredKernel kernel(t, sums);
    for (int64_t tile = first; tile < last; ++tile)
      t.vector ? kernel.measure_vector(sums, tile) : kernel.measure_tile(sums, tile);
  }

  static void finish(const Factored& t, const FactoredSums& sums, int64_t share, int64_t of) {
    const FactoredKernel kernel(t, sums);
    const Tiling& tiling = kernel.tiling_;
    if (t.vector) return;
    if (tiling.chunks > 1) {
      const int64_t rows = t.matrices * t.rows;
      for (int64_t row = rows * share / of; row < rows * (share + 1) / of; ++row) {
        const double sum = add_all(sums.rows + row * tiling.chunks, tiling.chunks);
        kernel.set_row(row / t.rows, row % t.rows, sum);
      }
    }
    if (tiling.blocks > 1) {
      const int64_t parts = t.matrices * tiling.chunks;
      for (int64_t part = parts * share / of; part < parts * (share + 1) / of; ++part)
        kernel.finish_cols(sums, part / tiling.chunks, part % tiling.chunks * kChunk);
    }
  }

  static void square(const Factored& t, const FactoredSums& sums, int64_t first, int64_t last) {
    if (t.vector) return;  // it is measured already
    const FactoredKernel kernel(t, sums);
    Factors factors;
    alignas(64) T buffer[kChunk], sum[kAccumulators];
    const TileOperand<T> grad = kernel.row_.grad(buffer);
    for (int64_t tile = first; tile < last; ++tile) {
      double squares = 0;
      kernel.each_strip(tile, [&](const Strip& strip) {
        kernel.find(factors, strip);
        const int width = width_for(strip.cols);
        std::memset(sum, 0, width * sizeof(T));
        for (int r = 0; r < strip.rows; ++r) {
          const T* g = grad.load(kernel.start(strip, r), strip.cols);
          const T row = kernel.row_factor(factors, strip, r), limit = kernel.limit_, multiplier = kernel.multiplier_;
          kernel.each_part(strip.cols, [&](int64_t at, int64_t n) {
#pragma GCC ivdep
            for (int64_t i = 0; i < n; ++i) {
              const T u = Adafactor::update(g[at + i] * multiplier, row, factors.col[at + i], limit);
              sum[i] = fma(u, u, sum[i]);
            }
          });
        }
        squares += static_cast<double>(total(sum, width));
      });
      sums.update[tile] = squares;
    }
  }

  static void update(const Factored& t, const FactoredSums& sums, int64_t first, int64_t last) {
    const FactoredKernel kernel(t, sums);
    const T keep = static_cast<T>(kernel.scalars_.keep), scale = static_cast<T>(t.scale);
    const T limit = kernel.limit_, multiplier = kernel.multiplier_;
    Factors factors;
    alignas(64) T g_buffer[kChunk], p_buffer[kChunk], v_buffer[kChunk];
    const TileParam<T> param = kernel.row_.param(p_buffer);
    const TileOperand<T> grad = kernel.row_.grad(g_buffer), variance = kernel.row_.variance(v_buffer);
    for (int64_t tile = first; tile < last; ++tile) {
      kernel.each_strip(tile, [&](const Strip& strip) {
        if (!t.vector) kernel.find(factors, strip);
        for (int r = 0; r < strip.rows; ++r) {
          const int64_t n = row_length(t, strip, strip.row + r), start = kernel.start(strip, r);
          const T* g = grad.load(start, n);
          T* p = param.load(start, n);
          if (t.vector) {
            const T* v = variance.load(start, n);
#pragma GCC ivdep
            for (int64_t i = 0; i < n; ++i)
              p[i] = Adafactor::step(p[i], Adafactor::update(g[i] * multiplier, v[i], limit), keep, scale);
          } else {
            const T row = kernel.row_factor(factors, strip, r);
#pragma GCC ivdep
            for (int64_t i = 0; i < n; ++i)
              p[i] =
                  Adafactor::step(p[i], Adafactor::update(g[i] * multiplier, row, factors.col[i], limit), keep, scale);
          }
          param.store(p, start, n);
        }
      });
    }
  }

  static void take(const Factored& whole, const double* rows, const double* cols, double* means) {
    const FactoredKernel kernel(whole, {});
    for (int64_t matrix = 0; matrix < whole.matrices; ++matrix) {
      for (int64_t row = 0; row < whole.rows; ++row) kernel.set_row(matrix, row, rows[matrix * whole.rows + row]);
      for (int64_t col = 0; col < whole.cols; col += kChunk)
        kernel.set_cols(matrix, col, whole.cols - col < kChunk ? whole.cols - col : kChunk,
                        cols + matrix * whole.cols + col);
      means[matrix] = kernel.mean(matrix);
    }
  }

 private:
  // What turns a gradient into its update, for the columns of one chunk of one matrix.
  struct Factors {
    int64_t matrix = -1, chunk = -1;
    double mean = 0;
    alignas(64) T col[kChunk];
  };

  FactoredKernel(const Factored& t, const FactoredSums& sums)
      : t_(t),
        part_rows_(sums.part_rows),
        part_cols_(sums.part_cols),
        means_(sums.means),
        tiling_(t),
        scalars_(scalars_of(t)),
        eps1_(Adafactor::eps1(scalars_, t.eps)),
        limit_(static_cast<T>(1 / eps1_)),
        weight_(static_cast<T>(scalars_.weight)),
        multiplier_(static_cast<T>(t.scalars[0])),
        row_(t) {}

  template <class F>
  void each_strip(int64_t tile, F&& f) const {
    for (int64_t i = 0; i < kTileStrips; ++i) {
      const Strip strip(t_, tiling_, tile, i);
      if (strip.rows > 0) f(strip);
    }
  }

  // Calls f(at, n) for parts of at most as many elements as there are accumulators, which a constant length helps to
  // vectorise.
  template <class F>
  static void each_part(int64_t n, F&& f) {
    int64_t at = 0;
    for (; at + kAccumulators <= n; at += kAccumulators) f(at, kAccumulators);
    if (at < n) f(at, n - at);
  }

  // The number of the first element of a strip's row.
  int64_t start(const Strip& strip, int r) const {
    return (strip.matrix * t_.rows + strip.row + r) * t_.cols + strip.col;
  }

  void measure_tile(const FactoredSums& sums, int64_t tile) const {
    alignas(64) T g_buffer[kChunk], p_buffer[kChunk], tile_cols[kChunk], strip_cols[kChunk];
    alignas(64) T row_sum[kAccumulators], param_sum[kAccumulators];
    const TileOperand<T> grad = row_.grad(g_buffer);
    const TileParam<T> param = row_.param(p_buffer);
    double squares = 0;
    each_strip(tile, [&](const Strip& strip) {
      const int64_t cols = strip.cols;
      const int width = width_for(cols);
      T* col_sum = strip.first ? tile_cols : strip_cols;
      std::memset(col_sum, 0, cols * sizeof(T));
      std::memset(param_sum, 0, width * sizeof(T));
      for (int r = 0; r < strip.rows; ++r) {
        const T* g = grad.load(start(strip, r), cols);
        const T* p = param.load(start(strip, r), cols);
        std::memset(row_sum, 0, width * sizeof(T));
        each_part(cols, [&, multiplier = multiplier_](int64_t at, int64_t n) {
#pragma GCC ivdep
          for (int64_t i = 0; i < n; ++i) {
            const T x = g[at + i] * multiplier;
            row_sum[i] = fma(x, x, row_sum[i]);
            col_sum[at + i] = fma(x, x, col_sum[at + i]);
            param_sum[i] = fma(p[at + i], p[at + i], param_sum[i]);
          }
        });
        const double sum = static_cast<double>(total(row_sum, width));
        if (tiling_.chunks > 1)
          sums.rows[(strip.matrix * t_.rows + strip.row + r) * tiling_.chunks + strip.chunk] = sum;
        else
          set_row(strip.matrix, strip.row + r, sum);
      }
      squares += static_cast<double>(total(param_sum, width));
      if (!strip.first) {
#pragma GCC ivdep
        for (int64_t i = 0; i < cols; ++i) tile_cols[i] += strip_cols[i];
      }
      if (!strip.last) return;
      if (tiling_.blocks > 1)
        std::memcpy(static_cast<T*>(sums.cols) + (strip.matrix * tiling_.blocks + strip.block) * t_.cols + strip.col,
                    tile_cols, cols * sizeof(T));
      else
        set_cols(strip.matrix, strip.col, cols, tile_cols);
    });
    sums.param[tile] = squares;
  }

  void measure_vector(const FactoredSums& sums, int64_t tile) const {
    alignas(64) T g_buffer[kChunk], p_buffer[kChunk], v_buffer[kChunk];
    alignas(64) T param_sum[kAccumulators], update_sum[kAccumulators];
    const TileOperand<T> grad = row_.grad(g_buffer), variance = row_.variance(v_buffer);
    const TileParam<T> param = row_.param(p_buffer);
    double squares = 0, update_squares = 0;
    each_strip(tile, [&](const Strip& strip) {
      const int width = width_for(strip.cols);
      std::memset(param_sum, 0, width * sizeof(T));
      std::memset(update_sum, 0, width * sizeof(T));
      for (int r = 0; r < strip.rows; ++r) {
        const int64_t length = row_length(t_, strip, strip.row + r), at_row = start(strip, r);
        const T* g = grad.load(at_row, length);
        const T* p = param.load(at_row, length);
        T* v = variance.load(at_row, length);
#pragma GCC ivdep
        for (int64_t i = 0; i < length; ++i) {
          const T x = g[i] * multiplier_;
          v[i] = lerp(v[i], x * x, weight_);
        }
        variance.store(at_row, length);
        v = variance.load(at_row, length);  // as stored, which is what the update will find
        each_part(length, [&](int64_t at, int64_t n) {
#pragma GCC ivdep
          for (int64_t i = 0; i < n; ++i) {
            const T u = Adafactor::update(g[at + i] * multiplier_, v[at + i], limit_);
            param_sum[i] = fma(p[at + i], p[at + i], param_sum[i]);
            update_sum[i] = fma(u, u, update_sum[i]);
          }
        });
      }
      squares += static_cast<double>(total(param_sum, width));
      update_squares += static_cast<double>(total(update_sum, width));
    });
    sums.param[tile] = squares;
    sums.update[tile] = update_squares;
  }

  void set_row(int64_t matrix, int64_t row, double sum) const {
    if (part_rows_) {
      part_rows_[matrix * t_.rows + row] = sum;
      return;
    }
    const FactoredOperand& operand = t_.operand[fusedopt::kRowVar];
    const int64_t at = element_start(t_, fusedopt::kRowVar, matrix, row, 0);
    T buffer = 0;
    const T before = *read(operand, at, 1, 1, &buffer);
    const T after = Adafactor::average(before, sum, static_cast<double>(t_.cols), weight_);
    write(operand, at, 1, 1, &after);
  }

  template <class Sum>
  void set_cols(int64_t matrix, int64_t col, int64_t n, const Sum* sum) const {
    if (part_cols_) {
      for (int64_t i = 0; i < n; ++i) part_cols_[matrix * t_.cols + col + i] = static_cast<double>(sum[i]);
      return;
    }
    const FactoredOperand& operand = t_.operand[fusedopt::kColVar];
    const int64_t at = element_start(t_, fusedopt::kColVar, matrix, 0, col);
    const double rows = static_cast<double>(t_.rows);
    alignas(64) T buffer[kChunk], after[kChunk];
    const T* before = read(operand, at, operand.col, n, buffer);
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i)
      after[i] = Adafactor::average(before[i], static_cast<double>(sum[i]), rows, weight_);
    write(operand, at, operand.col, n, after);
  }

  void finish_cols(const FactoredSums& sums, int64_t matrix, int64_t col) const {
    alignas(64) double sum[kChunk] = {};
    const int64_t n = t_.cols - col < kChunk ? t_.cols - col : kChunk;
    for (int64_t block = 0; block < tiling_.blocks; ++block) {
      const T* part = static_cast<const T*>(sums.cols) + (matrix * tiling_.blocks + block) * t_.cols + col;
#pragma GCC ivdep
      for (int64_t i = 0; i < n; ++i) sum[i] += static_cast<double>(part[i]);
    }
    set_cols(matrix, col, n, sum);
  }

  void find(Factors& factors, const Strip& strip) const {
    const bool same_matrix = factors.matrix == strip.matrix;
    if (same_matrix && factors.chunk == strip.chunk) return;
    if (!same_matrix) factors.mean = means_ ? means_[strip.matrix] : mean(strip.matrix);
    factors.matrix = strip.matrix;
    factors.chunk = strip.chunk;
    const FactoredOperand& operand = t_.operand[fusedopt::kColVar];
    alignas(64) T buffer[kChunk];
    const T* col_var = read(operand, element_start(t_, fusedopt::kColVar, strip.matrix, 0, strip.col), operand.col,
                            strip.cols, buffer);
#pragma GCC ivdep
    for (int64_t i = 0; i < strip.cols; ++i) factors.col[i] = Adafactor::col_factor(col_var[i]);
  }

  double mean(int64_t matrix) const {
    const FactoredOperand& operand = t_.operand[fusedopt::kRowVar];
    alignas(64) T buffer[kAccumulators];
    alignas(64) double sum[kAccumulators];
    const int width = width_for(t_.rows);
    std::memset(sum, 0, width * sizeof(double));
    for (int64_t row = 0; row < t_.rows; row += kAccumulators) {
      const int64_t n = t_.rows - row < kAccumulators ? t_.rows - row : kAccumulators;
      const T* row_var = read(operand, element_start(t_, fusedopt::kRowVar, matrix, row, 0), operand.row, n, buffer);
#pragma GCC ivdep
      for (int64_t i = 0; i < n; ++i) sum[i] += static_cast<double>(row_var[i]);
    }
    return Adafactor::mean(total(sum, width), static_cast<double>(t_.rows), eps1_);
  }

  T row_factor(const Factors& factors, const Strip& strip, int r) const {
    T buffer = 0;
    const T* row_var = read(t_.operand[fusedopt::kRowVar],
                            element_start(t_, fusedopt::kRowVar, strip.matrix, strip.row + r, 0), 1, 1, &buffer);
    return Adafactor::row_factor(*row_var, factors.mean);
  }

  const Factored& t_;
  double *const part_rows_, *const part_cols_;
  const double* const means_;
  const Tiling tiling_;
  const Adafactor::Scalars<double> scalars_;
  const double eps1_;
  const T limit_, weight_, multiplier_;
  const FactoredRow row_;
};

inline void conclude_factored(Factored& t, const FactoredSums& sums) {
  const int64_t tiles = Tiling(t).tiles;
  t.scale = Adafactor::scale(scalars_of(t), add_all(sums.param, tiles), add_all(sums.update, tiles),
                             static_cast<double>(t.numel));
}

const fusedopt::FactoredKernels& factored_kernels() {
  using F = FactoredKernel<float>;
  using D = FactoredKernel<double>;
  static const fusedopt::FactoredKernels kernels = {{F::measure, D::measure}, {F::finish, D::finish},
                                                    {F::square, D::square},   conclude_factored,
                                                    {F::update, D::update},   add_all,
                                                    {F::take, D::take}};
  return kernels;
}

}  // namespace FUSEDOPT_NAMESPACE
