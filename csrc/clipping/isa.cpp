// How the CPU adds up the terms of a norm and scales gradients.
#include "../cpu/isa/target.h"

#include "../cpu/sum.h"
#include "../cpu/tile.h"
#include "norm.h"

namespace FUSEDOPT_NAMESPACE {

struct GradNorm {
  using NormEntry = fusedopt::NormEntry;
  using NormOrder = fusedopt::NormOrder;
  using Term = fusedopt::Term;
  static constexpr int kAccumulators = fusedopt::kAccumulators;
  static constexpr int64_t kChunk = fusedopt::kChunk;

  // Calls add(accumulator, x[i]) for the elements of a chunk in the order of step.h, then returns what `all` makes of
  // the accumulators, of which those from `width` on are not set.
  template <class S, class Add, class All>
  static FUSEDOPT_HD double accumulate(const S* x, int64_t n, Add&& add, All&& all) {
    alignas(64) double sum[kAccumulators];
    const int width = width_for(n);
    if (n == kChunk) {
      // An accumulator stays in a register over its four elements, instead of going through L1 with each. No hardware
      // foresees rows that jump like this, so the next chunk is asked for meanwhile, a quarter at a time.
      constexpr int kQuarter = kAccumulators / 4;
      const char* next = reinterpret_cast<const char*>(x + kChunk);
      for (int quarter = 0; quarter < kAccumulators; quarter += kQuarter) {
        for (const char* end = next + kChunk / 4 * sizeof(S); next < end; next += 64) __builtin_prefetch(next);
#pragma GCC ivdep
        for (int i = quarter; i < quarter + kQuarter; ++i) {
          double mine = 0;
          for (int64_t r = 0; r < kChunk; r += kAccumulators) mine = add(mine, static_cast<double>(decode(x[r + i])));
          sum[i] = mine;
        }
      }
    } else {
      const int begun = kAccumulators < n ? kAccumulators : static_cast<int>(n);
#pragma GCC ivdep
      for (int i = 0; i < begun; ++i) sum[i] = add(0.0, static_cast<double>(decode(x[i])));
      for (int i = begun; i < width; ++i) sum[i] = 0;
      for (int64_t at = kAccumulators; at < n; at += kAccumulators) {
        const int64_t end = kAccumulators < n - at ? kAccumulators : n - at;
#pragma GCC ivdep
        for (int64_t i = 0; i < end; ++i) sum[i] = add(sum[i], static_cast<double>(decode(x[at + i])));
      }
    }
    return all(sum, width);
  }

  static double total_of(double (&sum)[kAccumulators], int width) { return total(sum, width); }
  static double largest_of(double (&sum)[kAccumulators], int width) {
    double largest = 0;
    for (int i = 0; i < width; ++i) largest = maximum(largest, sum[i]);
    return largest;
  }

  // A product of two floats is exact in double, so an fma would change nothing. Halves are widened in a loop of their
  // own: a vector of them is four of doubles, and decoding float16 in quarters takes nearly twice as long.
  template <class S>
  static double squares(const S* x, int64_t n) {
    if constexpr (sizeof(S) == 2) {
      alignas(64) float wide[kChunk];
#pragma GCC ivdep
      for (int64_t i = 0; i < n; ++i) wide[i] = decode(x[i]);
      return squares(wide, n);
    } else {
      return accumulate(x, n, [](double sum, double e) { return sum + e * e; }, total_of);
    }
  }
  static double sum_of_chunk(const double* x, int64_t n) {
    return accumulate(x, n, [](double sum, double e) { return sum + e; }, total_of);
  }
  static double largest_of_chunk(const double* x, int64_t n) {
    return accumulate(x, n, [](double sum, double e) { return maximum(sum, e); }, largest_of);
  }

  // Elements [begin, begin + n) as doubles.
  static void load(const NormEntry& entry, int64_t begin, int64_t n, double* out) {
    with_storage(entry.dtype, [&](auto type) {
      const auto* data = static_cast<const decltype(type)*>(entry.data);
      if (entry.layout)
        return walk(data, *entry.layout, fusedopt::kParam, begin, n,
                    [out](const auto& x, int64_t i) { out[i] = static_cast<double>(decode(x)); });
#pragma GCC ivdep
      for (int64_t i = 0; i < n; ++i) out[i] = static_cast<double>(decode(data[begin + i]));
    });
  }

  // Their sizes, in place; returns how many there are.
  static int64_t sizes_of(const NormEntry& entry, double* x, int64_t n) {
    if (!entry.complex) {
#pragma GCC ivdep
      for (int64_t i = 0; i < n; ++i) x[i] = absolute(x[i]);
      return n;
    }
    for (int64_t i = 0; i < n / 2; ++i) x[i] = sqrt(x[2 * i] * x[2 * i] + x[2 * i + 1] * x[2 * i + 1]);
    return n / 2;
  }

  static double chunk(const NormEntry& entry, const NormOrder& order, int64_t begin, int64_t n) {
    alignas(64) double x[kChunk];
    load(entry, begin, n, x);
    if (order.term == Term::square) return squares(x, n);
    n = sizes_of(entry, x, n);
    if (order.term == Term::largest) return largest_of_chunk(x, n);
    if (order.term == Term::power)
      for (int64_t i = 0; i < n; ++i) x[i] = power(x[i], order.p);
    return sum_of_chunk(x, n);
  }

  static void measure(const NormEntry& entry, const NormOrder& order, int64_t first, int64_t last, double* sums) {
    const auto each = [&](auto&& of) {
      for (int64_t c = first; c < last; ++c) {
        const int64_t begin = c * kChunk, left = entry.numel - begin;
        *sums++ = of(begin, left < kChunk ? left : kChunk);
      }
    };
    if (order.term != Term::square || entry.layout)
      return each([&](int64_t begin, int64_t n) { return chunk(entry, order, begin, n); });
    with_storage(entry.dtype, [&](auto type) {
      const auto* data = static_cast<const decltype(type)*>(entry.data);
      each([=](int64_t begin, int64_t n) { return squares(data + begin, n); });
    });
  }

  static double fold(double* sums, int64_t count, bool largest) {
    if (count == 0) return 0;
    for (; count > 1; count = fusedopt::folded(count))
      for (int64_t begin = 0; begin < count; begin += kChunk) {
        const int64_t n = kChunk < count - begin ? kChunk : count - begin;
        sums[begin / kChunk] = largest ? largest_of_chunk(sums + begin, n) : sum_of_chunk(sums + begin, n);
      }
    return sums[0];
  }

  static void scale(const NormEntry& entry, int64_t begin, int64_t end, double coefficient) {
    with_storage(entry.dtype, [&](auto type) {
      using S = decltype(type);
      using T = decltype(decode(type));
      S* data = static_cast<S*>(entry.data);
      const auto element = [by = static_cast<T>(coefficient)](S& x, int64_t) { encode(decode(x) * by, x); };
      if (entry.layout) return walk(data, *entry.layout, fusedopt::kParam, begin, end - begin, element);
#pragma GCC ivdep
      for (int64_t i = begin; i < end; ++i) element(data[i], i);
    });
  }
};

const fusedopt::NormKernels& norm_kernels() {
  static const fusedopt::NormKernels kernels = {GradNorm::measure, GradNorm::fold, GradNorm::scale};
  return kernels;
}

}  // namespace FUSEDOPT_NAMESPACE
