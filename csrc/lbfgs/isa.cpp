// How the CPU sweeps the vectors of L-BFGS.
#include "../cpu/isa/target.h"

#include "../cpu/sum.h"
#include "../cpu/tile.h"
#include "sweeps.h"

namespace FUSEDOPT_NAMESPACE {

using fusedopt::kAccumulators;
using fusedopt::kChunk;

template <class T>
struct Long {
  using Scattered = fusedopt::history::Scattered;
  using Segment = fusedopt::history::Segment;

  // Vectors that a direction adds in one pass over a chunk.
  static constexpr int kAtOnce = 4;
  // Elements whose cache lines are asked for together.
  static constexpr int64_t kLines = 256 / static_cast<int64_t>(sizeof(T));

  // Calls f(segment, where in it, where in the range, how many) for the tensors of elements [begin, begin + n).
  template <class F>
  static void each(const Scattered& all, int64_t begin, int64_t n, F&& f) {
    int64_t low = 0, high = all.count;  // the last that does not begin beyond `begin`, for empty ones begin with it
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      (all.segments[middle].begin <= begin ? low : high) = middle;
    }
    for (int64_t done = 0; done < n; ++low) {
      const Segment& segment = all.segments[low];
      const int64_t left = all.segments[low + 1].begin - begin - done, run = left < n - done ? left : n - done;
      if (run > 0) f(segment, begin + done - segment.begin, done, run);
      done += run;
    }
  }

  // Elements [begin, begin + n): where they are if they are side by side, else gathered in the buffer.
  static const T* view(const Scattered& all, int64_t begin, int64_t n, T* buffer) {
    const T* at = buffer;
    each(all, begin, n, [&](const Segment& segment, int64_t from, int64_t to, int64_t run) {
      const T* data = static_cast<const T*>(segment.data);
      if (data && segment.layout >= 0) {
        walk(data, all.layouts[segment.layout], fusedopt::kParam, from, run,
             [=](T x, int64_t i) { buffer[to + i] = x; });
      } else if (data && run == n) {
        at = data + from;
      } else if (data) {
        std::memcpy(buffer + to, data + from, run * sizeof(T));
      } else {
        std::memset(buffer + to, 0, run * sizeof(T));
      }
    });
    return at;
  }

  static void prefetch(const T* at) {
    for (int64_t i = 0; i < kLines; i += 64 / static_cast<int64_t>(sizeof(T))) __builtin_prefetch(at + i);
  }

  // x.g and, with `pair`, x.y of a chunk. `next` will be read next.
  template <bool pair>
  static void dots(const T* x, const T* g, const T* y, int64_t n, double* out, const T* next) {
    alignas(64) T with_g[kAccumulators], with_y[kAccumulators];
    if (n == kChunk) {
      constexpr int kRounds = kChunk / kAccumulators;
      for (int block = 0; block < kAccumulators; block += kLines) {
        if (next)
          for (int r = 0; r < kRounds; ++r) prefetch(next + block + r * kAccumulators);
#pragma GCC ivdep
        for (int i = block; i < block + kLines; ++i) {
          T a = 0, b = 0;
          for (int r = 0; r < kRounds; ++r) {
            const int at = i + r * kAccumulators;
            a = fma(x[at], g[at], a);
            if constexpr (pair) b = fma(x[at], y[at], b);
          }
          with_g[i] = a;
          if constexpr (pair) with_y[i] = b;
        }
      }
    } else {
      for (int i = 0; i < kAccumulators; ++i) with_g[i] = with_y[i] = 0;
      for (int64_t at = 0; at < n; at += kAccumulators) {
        const int64_t end = kAccumulators < n - at ? kAccumulators : n - at;
        for (int64_t i = 0; i < end; ++i) {
          with_g[i] = fma(x[at + i], g[at + i], with_g[i]);
          if constexpr (pair) with_y[i] = fma(x[at + i], y[at + i], with_y[i]);
        }
      }
    }
    out[0] = static_cast<double>(total(with_g));
    if constexpr (pair) out[1] = static_cast<double>(total(with_y));
  }

  // max|x| and, if asked for, sum|x|. A NaN is the largest of all.
  static T largest(const T* x, int64_t n, double* sum) {
    alignas(64) T largest[kAccumulators] = {}, all[kAccumulators] = {};
    for (int64_t at = 0; at < n; at += kAccumulators) {
      const int64_t end = kAccumulators < n - at ? kAccumulators : n - at;
#pragma GCC ivdep
      for (int64_t i = 0; i < end; ++i) {
        const T size = absolute(x[at + i]);
        largest[i] = maximum(largest[i], size);
        all[i] += size;
      }
    }
    if (sum) *sum = static_cast<double>(total(all));
    T result = 0;
    for (int i = 0; i < kAccumulators; ++i) result = maximum(result, largest[i]);
    return result;
  }

  template <bool pair>
  static void products_of(const fusedopt::history::Products& job, int64_t first, int64_t last, double* sums) {
    alignas(64) T gathered[kChunk], y[kChunk], s[kChunk];
    const T t = static_cast<T>(job.t);
    const auto vector = [&](int k) { return static_cast<const T*>(job.vectors[k]); };
    for (int64_t chunk = first; chunk < last; ++chunk) {
      const int64_t begin = chunk * kChunk, n = kChunk < job.numel - begin ? kChunk : job.numel - begin;
      const T* g = view(job.grad, begin, n, gathered);
      double* out = sums + chunk * job.results();
      out[0] = static_cast<double>(largest(g, n, &out[1]));
      out += 2;
      const T* next = job.count ? vector(0) + begin : nullptr;
      if constexpr (pair) {
        const T* previous = static_cast<const T*>(job.previous) + begin;
        const T* direction = static_cast<const T*>(job.direction) + begin;
#pragma GCC ivdep
        for (int64_t i = 0; i < n; ++i) {
          y[i] = g[i] - previous[i];
          s[i] = t * direction[i];
        }
        dots<true>(y, g, y, n, out, nullptr);
        dots<true>(s, g, y, n, out + 2, next);
        out += 4;
      }
      for (int k = 0; k < job.count; ++k, out += 2) {
        out[1] = 0;
        dots<pair>(vector(k) + begin, g, y, n, out, k + 1 < job.count ? vector(k + 1) + begin : nullptr);
      }
    }
  }

  static void products(const fusedopt::history::Products& job, int64_t first, int64_t last, double* sums) {
    job.previous ? products_of<true>(job, first, last, sums) : products_of<false>(job, first, last, sums);
  }

  // sum += the chunk's part of `count` terms, one after another.
  template <int count>
  static void add_terms(const fusedopt::history::Term* terms, int64_t begin, int64_t n, T* sum,
                        const fusedopt::history::Term* next, int next_count) {
    const T* x[count];
    T factor[count];
    for (int k = 0; k < count; ++k) {
      x[k] = static_cast<const T*>(terms[k].vector) + begin;
      factor[k] = static_cast<T>(terms[k].factor);
    }
    for (int64_t at = 0; at < n; at += kLines) {
      const int64_t end = at + kLines < n ? at + kLines : n;
      for (int k = 0; k < next_count; ++k) prefetch(static_cast<const T*>(next[k].vector) + begin + at);
#pragma GCC ivdep
      for (int64_t i = at; i < end; ++i) {
        T value = sum[i];
        for (int k = 0; k < count; ++k) value = fma(factor[k], x[k][i], value);
        sum[i] = value;
      }
    }
  }

  static void add_all(const fusedopt::history::Term* terms, int count, int64_t begin, int64_t n, T* sum) {
    while (count > 0) {
      const int now = count >= kAtOnce ? kAtOnce : 1, left = count - now;
      const int ahead = left >= kAtOnce ? kAtOnce : left > 0 ? 1 : 0;
      if (now == kAtOnce)
        add_terms<kAtOnce>(terms, begin, n, sum, terms + now, ahead);
      else
        add_terms<1>(terms, begin, n, sum, terms + now, ahead);
      terms += now;
      count = left;
    }
  }

  static void direction(const fusedopt::history::Direction& job, int64_t first, int64_t last, double* sums) {
    alignas(64) T gathered[kChunk], sum[kChunk];
    const T t = static_cast<T>(job.t), scale = static_cast<T>(job.scale);
    for (int64_t chunk = first; chunk < last; ++chunk) {
      const int64_t begin = chunk * kChunk, n = kChunk < job.numel - begin ? kChunk : job.numel - begin;
      const T* g = view(job.grad, begin, n, gathered);
      T* previous = static_cast<T*>(job.previous) + begin;
      T* direction = static_cast<T*>(job.direction) + begin;
      if (job.y) {
        T* y = static_cast<T*>(job.y) + begin;
        T* s = static_cast<T*>(job.s) + begin;
#pragma GCC ivdep
        for (int64_t i = 0; i < n; ++i) {
          y[i] = g[i] - previous[i];
          s[i] = t * direction[i];
        }
      }
      // Where the gradient is the previous one itself, this changes nothing.
#pragma GCC ivdep
      for (int64_t i = 0; i < n; ++i) {
        previous[i] = g[i];
        sum[i] = -g[i];
      }
      add_all(job.dirs, job.dir_count, begin, n, sum);
      for (int64_t i = 0; i < n; ++i) sum[i] *= scale;
      add_all(job.steps, job.step_count, begin, n, sum);
      for (int64_t i = 0; i < n; ++i) direction[i] = sum[i];
      double* out = sums + chunk * job.kResults;
      out[0] = static_cast<double>(largest(sum, n, nullptr));
      dots<false>(sum, g, nullptr, n, out + 1, nullptr);
    }
  }

  static void move(const fusedopt::history::Move& job, int64_t first, int64_t last) {
    const T t = static_cast<T>(job.t);
    for (int64_t chunk = first; chunk < last; ++chunk) {
      const int64_t begin = chunk * kChunk, n = kChunk < job.numel - begin ? kChunk : job.numel - begin;
      const T* direction = static_cast<const T*>(job.direction) + begin;
      T* origin = job.origin ? static_cast<T*>(job.origin) + begin : nullptr;
      each(job.param, begin, n, [&](const Segment& segment, int64_t from, int64_t at, int64_t run) {
        T* p = static_cast<T*>(segment.data);
        const auto element = [=, o = origin ? origin + at : nullptr, d = direction + at](T& x, int64_t i) {
          if (o && job.fetch) o[i] = x;
          x = fma(t, d[i], o ? o[i] : x);
        };
        if (segment.layout >= 0)
          return walk(p, job.param.layouts[segment.layout], fusedopt::kParam, from, run, element);
        p += from;
#pragma GCC ivdep
        for (int64_t i = 0; i < run; ++i) element(p[i], i);
      });
    }
  }

  static void gather(const fusedopt::history::Gather& job, int64_t first, int64_t last) {
    for (int64_t chunk = first; chunk < last; ++chunk) {
      const int64_t begin = chunk * kChunk, n = kChunk < job.numel - begin ? kChunk : job.numel - begin;
      T* out = static_cast<T*>(job.out) + begin;
      const T* g = view(job.grad, begin, n, out);
      if (g != out) std::memcpy(out, g, n * sizeof(T));
    }
  }
};

// `out` has room for kAccumulators rows of results; the first of them is what is asked for.
inline void conclude_long(const double* sums, int64_t chunks, int results, double* out) {
  for (int64_t i = 0; i < static_cast<int64_t>(kAccumulators) * results; ++i) out[i] = 0;
  for (int64_t chunk = 0; chunk < chunks; ++chunk, sums += results) {
    double* row = out + chunk % kAccumulators * results;
    row[0] = maximum(row[0], sums[0]);
#pragma GCC ivdep
    for (int k = 1; k < results; ++k) row[k] += sums[k];
  }
  for (int half = kAccumulators / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) {
      double* low = out + i * results;
      const double* high = low + static_cast<int64_t>(half) * results;
      low[0] = maximum(low[0], high[0]);
#pragma GCC ivdep
      for (int k = 1; k < results; ++k) low[k] += high[k];
    }
  }
}

const fusedopt::history::Kernels& history_kernels() {
  static const fusedopt::history::Kernels kernels = {{Long<float>::products, Long<double>::products},
                                                     {Long<float>::direction, Long<double>::direction},
                                                     {Long<float>::move, Long<double>::move},
                                                     {Long<float>::gather, Long<double>::gather},
                                                     conclude_long};
  return kernels;
}

}  // namespace FUSEDOPT_NAMESPACE
