// How a rule sweeps host memory. Included once per instruction set, in a namespace of its own.
#pragma once

#include "../codec.h"
#include "../rules/all.h"
#include "../step.h"

namespace FUSEDOPT_NAMESPACE {

using fusedopt::Layout;
using fusedopt::Operand;
using fusedopt::Row;

// Elements decoded at a time where storage and arithmetic differ: six float operands of a tile are 12 KiB, well inside L1.
constexpr int64_t kTile = 512;
// Elements between two prefetches, and how far ahead they reach.
constexpr int64_t kBlock = 64;
constexpr int64_t kPrefetch = 512;

// Visits elements [begin, begin + n) of a strided operand as f(address, position), row by row of its innermost dimension.
template <class Stored, class F>
inline void walk(Stored* base, const Layout& layout, int operand, int64_t begin, int64_t n, F&& f) {
  const int last = layout.dims - 1;
  const int64_t* stride = layout.stride[operand];
  int64_t index[fusedopt::kMaxDims], offset = 0;
  for (int d = last; d >= 0; --d) {
    index[d] = begin % layout.size[d];
    begin /= layout.size[d];
    offset += index[d] * stride[d];
  }
  for (int64_t done = 0; done < n;) {
    const int64_t run = layout.size[last] - index[last] < n - done ? layout.size[last] - index[last] : n - done;
    for (int64_t i = 0; i < run; ++i) f(base[offset + i * stride[last]], done + i);
    done += run;
    offset += (layout.size[last] - index[last]) * stride[last];
    index[last] = layout.size[last];
    for (int d = last; d > 0 && index[d] == layout.size[d]; --d) {
      offset += stride[d - 1] - layout.size[d] * stride[d];
      index[d] = 0;
      ++index[d - 1];
    }
  }
}

// Where one operand of a tile lives: in place if its storage is the arithmetic's own type and dense, else in a buffer.
template <class T>
class TileOperand {
 public:
  TileOperand(const Row& row, Operand operand, const void* data, fusedopt::Dtype dtype, T* buffer)
      : row_(row), operand_(operand), data_(const_cast<void*>(data)), dtype_(dtype), buffer_(buffer) {}

  bool in_place() const {
    return !row_.layout && dtype_ == (sizeof(T) == 8 ? fusedopt::Dtype::f64 : fusedopt::Dtype::f32);
  }

  T* load(int64_t begin, int64_t n) const {
    if (in_place()) return static_cast<T*>(data_) + begin;
    with_storage(dtype_, [&](auto type) {
      using Stored = decltype(type);
      const Stored* in = static_cast<const Stored*>(data_);
      T* out = buffer_;
      if (row_.layout) {
        walk(in, *row_.layout, operand_, begin, n, [&](const Stored& x, int64_t i) { out[i] = static_cast<T>(decode(x)); });
      } else {
        for (int64_t i = 0; i < n; ++i) out[i] = static_cast<T>(decode(in[begin + i]));
      }
    });
    return buffer_;
  }

  void store(int64_t begin, int64_t n) const {
    if (in_place()) return;
    with_storage(dtype_, [&](auto type) {
      using Stored = decltype(type);
      Stored* out = static_cast<Stored*>(data_);
      const T* in = buffer_;
      if (row_.layout) {
        walk(out, *row_.layout, operand_, begin, n, [&](Stored& x, int64_t i) { encode(in[i], x); });
      } else {
        for (int64_t i = 0; i < n; ++i) encode(in[i], out[begin + i]);
      }
    });
  }

 private:
  const Row& row_;
  Operand operand_;
  void* data_;
  fusedopt::Dtype dtype_;
  T* buffer_;
};

template <class R, int variant, class T>
struct Kernel {
  static constexpr int kStates = sizeof(R::state_names) / sizeof(R::state_names[0]);
  using Scalars = typename R::template Scalars<T>;

  // The one place where a rule meets memory; bodies, tails and decoded tiles all come here.
  static FUSEDOPT_HD void elements(T* p, const T* g, T* const* s, int64_t n, T multiplier, const Scalars& c) {
    T* state[kStates];
    for (int k = 0; k < kStates; ++k) state[k] = s[k];
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) {
      T value[kStates] = {};
      for (int k = 0; k < kStates; ++k)
        if (R::keeps(variant, k)) value[k] = state[k][i];
      T param = p[i];
      R::template update<variant>(param, g[i] * multiplier, value, c);
      p[i] = param;
      for (int k = 0; k < kStates; ++k)
        if (R::keeps(variant, k)) state[k][i] = value[k];
    }
  }

  static FUSEDOPT_HD void prefetch(const T* p, const T* g, T* const* s) {
    for (int64_t line = 0; line < kBlock; line += 64 / static_cast<int64_t>(sizeof(T))) {
      __builtin_prefetch(p + line, 1);
      __builtin_prefetch(g + line, 0);
      for (int k = 0; k < kStates; ++k)
        if (R::keeps(variant, k)) __builtin_prefetch(s[k] + line, 1);
    }
  }

  static void in_place(T* p, const T* g, T* const* s, int64_t n, T multiplier, const Scalars& c) {
    T* state[kStates] = {};
    int64_t i = 0;
    for (; i + kBlock <= n; i += kBlock) {
      for (int k = 0; k < kStates; ++k)
        if (R::keeps(variant, k)) state[k] = s[k] + i;
      if (i + kPrefetch < n) {
        T* ahead[kStates] = {};
        for (int k = 0; k < kStates; ++k)
          if (R::keeps(variant, k)) ahead[k] = state[k] + kPrefetch;
        prefetch(p + i + kPrefetch, g + i + kPrefetch, ahead);
      }
      elements(p + i, g + i, state, kBlock, multiplier, c);
    }
    for (int k = 0; k < kStates; ++k)
      if (R::keeps(variant, k)) state[k] = s[k] + i;
    elements(p + i, g + i, state, n - i, multiplier, c);
  }

  static void sweep(const Row& row, int64_t begin, int64_t end) {
    Scalars c;
    T* field = reinterpret_cast<T*>(&c);
    for (size_t i = 0; i < sizeof(Scalars) / sizeof(T); ++i) field[i] = static_cast<T>(row.scalars[1 + i]);
    const T multiplier = static_cast<T>(row.scalars[0]);

    alignas(64) T buffer[2 + kStates][kTile];
    const TileOperand<T> param(row, fusedopt::kParam, row.param, row.param_dtype, buffer[0]);
    const TileOperand<T> grad(row, fusedopt::kGrad, row.grad, row.grad_dtype, buffer[1]);
    const auto state = [&](int k) {
      return TileOperand<T>(row, static_cast<Operand>(fusedopt::kState + k), row.state[k], row.state_dtype[k],
                            buffer[2 + k]);
    };
    bool in_place_all = param.in_place() && grad.in_place();
    for (int k = 0; k < kStates; ++k)
      if (R::keeps(variant, k)) in_place_all = in_place_all && state(k).in_place();

    T* s[kStates] = {};
    if (in_place_all) {
      for (int k = 0; k < kStates; ++k)
        if (R::keeps(variant, k)) s[k] = static_cast<T*>(row.state[k]) + begin;
      in_place(static_cast<T*>(row.param) + begin, static_cast<const T*>(row.grad) + begin, s, end - begin, multiplier, c);
      return;
    }
    for (int64_t at = begin; at < end; at += kTile) {
      const int64_t n = kTile < end - at ? kTile : end - at;
      for (int k = 0; k < kStates; ++k)
        if (R::keeps(variant, k)) s[k] = state(k).load(at, n);
      in_place(param.load(at, n), grad.load(at, n), s, n, multiplier, c);
      param.store(at, n);
      for (int k = 0; k < kStates; ++k)
        if (R::keeps(variant, k)) state(k).store(at, n);
    }
  }
};

template <class R>
struct Entry {
  using Hypers = typename R::Hypers;
  using Scalars = typename R::template Scalars<double>;
  static constexpr int kHypers = sizeof(R::hyper_names) / sizeof(R::hyper_names[0]);
  static constexpr int kStates = sizeof(R::state_names) / sizeof(R::state_names[0]);
  static constexpr int kScalars = sizeof(Scalars) / sizeof(double);
  static_assert(sizeof(Hypers) == kHypers * sizeof(double), "Hypers holds one double for each of hyper_names");
  static_assert(kHypers <= fusedopt::kMaxHypers && kStates <= fusedopt::kMaxStates && kScalars < fusedopt::kMaxScalars);
  static_assert(R::counters <= fusedopt::kMaxCounters && R::variants <= fusedopt::kMaxVariants);

  static Hypers read(const double* hypers) {
    Hypers h;
    std::memcpy(&h, hypers, sizeof(h));
    return h;
  }
  static int variant(const double* hypers) { return R::variant(read(hypers)); }
  static bool keeps(int variant, int state) { return R::keeps(variant, state); }
  static void prepare(const double* hypers, double* counters, bool first, double* scalars) {
    const Scalars c = R::prepare(read(hypers), counters, first);
    std::memcpy(scalars, &c, sizeof(c));
  }

  template <int variant>
  static void add_sweeps(fusedopt::Rule& rule) {
    if constexpr (variant < R::variants) {
      rule.sweep[variant][0] = Kernel<R, variant, float>::sweep;
      rule.sweep[variant][1] = Kernel<R, variant, double>::sweep;
      add_sweeps<variant + 1>(rule);
    }
  }

  static fusedopt::Rule rule() {
    fusedopt::Rule rule = {R::name,     R::hyper_names, R::state_names, R::counter_names,
                           kHypers,     kStates,        R::counters,    kScalars,
                           R::variants, R::state_like_grad, variant,    keeps,
                           prepare,     {}};
    add_sweeps<0>(rule);
    return rule;
  }
};

template <class... Rules>
const fusedopt::Rule* rule_table(RuleList<Rules...>, int& count) {
  static const fusedopt::Rule table[] = {Entry<Rules>::rule()...};
  count = sizeof...(Rules);
  return table;
}

}  // namespace FUSEDOPT_NAMESPACE
