// How a rule sweeps host memory. Included once for each rule and instruction set, in a namespace of the latter's own.
#pragma once

#include <algorithm>

#include "../shape.h"
#include "../step.h"
#include "isa.h"
#include "loops.h"
#include "sum.h"
#include "tile.h"

namespace FUSEDOPT_NAMESPACE {

// How many slices ahead of the update memory is asked for, and how many elements of each: the rest is a stream.
constexpr int64_t kSlicesAhead = 4;
constexpr int64_t kPrefetchedOfSlice = 256, kPrefetchedAtOnce = 64;

template <class R, int variant, class T>
struct Kernel {
  static constexpr int kStates = Shape<R>::kStates, kSums = Shape<R>::sums_of(variant);
  using Scalars = typename R::template Scalars<T>;

  // The one place where a rule meets memory; all storages, decoded tiles and the ends of rows come here. The scalars
  // are a copy that no store can reach: what might change in the middle of a loop keeps it from being vectorised.
  template <int64_t n, class P, class G, class S, class Store>
  static FUSEDOPT_HD void elements(P* p, const G* g, S* const* s, T multiplier, const Scalars c, const Store store) {
    constexpr int kParts = Parts<P>::kCount;
    S* state[kStates];
    for (int k = 0; k < kStates; ++k) state[k] = s[k];
    // A loop that is unrolled before it is vectorised mostly stays scalar.
#pragma GCC ivdep
#pragma GCC unroll 1
    for (int64_t i = 0; i < n; ++i) {
      typename Parts<P>::Stored params[kParts];
      typename Parts<S>::Stored states[kStates][kParts];
      // Left to itself the compiler may call it for each element, once it is in many loops.
      const auto update = [&](auto at) __attribute__((always_inline)) {
        T value[kStates] = {};
        for (int k = 0; k < kStates; ++k)
          if (R::keeps(variant, k)) value[k] = static_cast<T>(decode(part<at>(state[k][i])));
        T param = static_cast<T>(decode(part<at>(p[i])));
        R::template update<variant>(param, static_cast<T>(decode(part<at>(g[i]))) * multiplier, value, c);
        encode(param, params[at]);
        for (int k = 0; k < kStates; ++k)
          if (R::keeps(variant, k)) store(k, i * kParts + at, value[k], states[k][at]);
      };
      update(std::integral_constant<int, 0>());
      if constexpr (kParts == 2) update(std::integral_constant<int, 1>());
      put(params, p[i]);
      for (int k = 0; k < kStates; ++k)
        if (R::keeps(variant, k)) put(states[k], state[k][i]);
    }
  }

  // The elements of a block.
  template <class P, class G, class S, class Store>
  static void block(P* p, const G* g, S* const* s, T multiplier, const Scalars& c, const Store& store) {
    if constexpr (std::is_same_v<P, bf16> && std::is_same_v<G, bf16> && std::is_same_v<S, bf16>) {
      Two* state[kStates];
      for (int k = 0; k < kStates; ++k) state[k] = reinterpret_cast<Two*>(s[k]);
      elements<kBlock<P, S> / 2>(reinterpret_cast<Two*>(p), reinterpret_cast<const Two*>(g), state, multiplier, c,
                                 store);
    } else if constexpr (kConvertsHalves && std::is_same_v<P, f16>) {
      alignas(64) float params[kBlock<P, S>], grads[kBlock<P, S>], states[kStates][kBlock<P, S>];
      float* state[kStates];
      decode_all(p, params, kBlock<P, S>);
      decode_all(g, grads, kBlock<P, S>);
      for (int k = 0; k < kStates; ++k) state[k] = states[k];
      each_kept([&](int k) { decode_all(s[k], states[k], kBlock<P, S>); });
      elements<kBlock<P, S>>(params, grads, state, multiplier, c, store);
      encode_all(params, p, kBlock<P, S>);
      each_kept([&](int k) { encode_all(states[k], s[k], kBlock<P, S>); });
    } else {
      elements<kBlock<P, S>>(p, g, s, multiplier, c, store);
    }
  }

  template <class Stored>
  static void prefetch(const Stored* at) {
    constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(Stored));
    for (int64_t i = 0; i < kPrefetchedAtOnce; i += kLine) __builtin_prefetch(at + i, 1);
  }

  template <class F>
  static FUSEDOPT_HD void each_kept(const F& f) {
    for (int k = 0; k < kStates; ++k)
      if (R::keeps(variant, k)) f(k);
  }

  // Calls f(p, g, s, first, n) for n elements in memory order: for whole blocks, and for a copy of the end of the row
  // that is filled up to one. So loops over a rule's maths have a constant length and no epilogue.
  template <class P, class G, class S, class F>
  static FUSEDOPT_HD void in_blocks(P* p, const G* g, S* const* s, int64_t n, const F& f) {
    const int64_t whole = n / kBlock<P, S> * kBlock<P, S>;
    if (whole > 0) f(p, g, s, 0, whole);
    if (whole == n) return;
    RowEnd<kBlock<P, S>> end(n - whole);
    const G* grad = end.fetch(g + whole);
    P* param = end.fetch(p + whole);
    S* state[kStates] = {};
    each_kept([&](int k) { state[k] = end.fetch(s[k] + whole); });
    f(param, grad, state, whole, n - whole);
    if constexpr (!std::is_const_v<P>) {
      end.put_back(p + whole, param);
      each_kept([&](int k) { end.put_back(s[k] + whole, state[k]); });
    }
  }

  template <class P, class G, class S, class Store>
  static void run(P* p, const G* g, S* const* s, int64_t n, T multiplier, const Scalars& c, const Streams& ahead,
                  const Store& store) {
    in_blocks(p, g, s, n, [&](P* param, const G* grad, S* const* state, int64_t first, int64_t count) {
      update_blocks(param, grad, state, first, count, multiplier, c, ahead, store);
    });
  }
  // Not inlined: whoever calls it from several places would hold it as often.
  template <class P, class G, class S, class Store>
  __attribute__((noinline)) static void update_blocks(P* p, const G* g, S* const* s, int64_t first, int64_t n,
                                                      T multiplier, const Scalars c, const Streams& ahead,
                                                      const Store store) {
    S* state[kStates] = {};
    for (int64_t i = 0; i < n; i += kBlock<P, S>) {
      each_kept([&](int k) { state[k] = s[k] + i; });
      ahead.prefetch(first + i, kBlock<P, S>);
      block(p + i, g + i, state, multiplier, c, store.at(first + i));
    }
  }

  // Adds the terms of n elements to accumulators.
  template <class P, class G, class S>
  static void add(const P* p, const G* g, S* const* s, int64_t n, T multiplier, const Scalars& c,
                  T (&sum)[kSums][fusedopt::kAccumulators]) {
    in_blocks(p, g, s, n, [&](const P* param, const G* grad, S* const* state, int64_t first, int64_t count) {
      T* to[kSums];
      alignas(64) T terms[kSums][kBlock<P, S>] = {};
      const int64_t at = first % fusedopt::kAccumulators;
      const bool whole = count >= kBlock<P, S>;
      for (int k = 0; k < kSums; ++k) to[k] = whole ? sum[k] : terms[k];
      add_blocks(param, grad, state, count, multiplier, c, to);
      if (whole) return;
      // A zero more changes no sum: none is -0, since all begin with 0.
      for (int k = 0; k < kSums; ++k)
#pragma GCC ivdep
#pragma GCC unroll 1
        for (int64_t i = 0; i < kBlock<P, S>; ++i) sum[k][at + i] += i < count ? terms[k][i] : T(0);
    });
  }
  template <class P, class G, class S>
  __attribute__((noinline)) static void add_blocks(const P* p, const G* g, S* const* s, int64_t n, T multiplier,
                                                   const Scalars c, T* const* to) {
    for (int64_t at = 0; at < n; at += kBlock<P, S>) {
      T* sum[kSums];
      for (int k = 0; k < kSums; ++k) sum[k] = to[k] + at % fusedopt::kAccumulators;
#pragma GCC ivdep
#pragma GCC unroll 1
      for (int64_t i = 0; i < kBlock<P, S>; ++i) {
        T value[kStates] = {}, terms[R::sums];
        for (int k = 0; k < kStates; ++k)
          if (R::keeps(variant, k)) value[k] = static_cast<T>(decode(s[k][at + i]));
        R::template measure<variant>(static_cast<T>(decode(p[at + i])), static_cast<T>(decode(g[at + i])) * multiplier,
                                     value, c, terms);
        for (int k = 0; k < kSums; ++k) sum[k][i] += terms[k];
      }
    }
  }

  // Calls visit(p, g, s, n, ahead, store) for elements [begin, end): all at once, or slice by slice, if the row is
  // dense and has one of the mixes that have loops of their own, else tile by tile.
  template <bool writes, class Visit>
  static void over(const Row& row, int64_t begin, int64_t end, Visit&& visit) {
    // A detour through L1 would cost 16-bit storages a third of their speed.
    if (!any<writes>(typename Loops<T>::Mixes(), row, begin, end, visit)) tiles<writes>(row, begin, end, visit);
  }

  template <bool writes, class... Mixes, class Visit>
  static bool any(MixList<Mixes...>, const Row& row, int64_t begin, int64_t end, Visit& visit) {
    return (
        direct<writes, typename Mixes::Param, typename Mixes::Grad, typename Mixes::State>(row, begin, end, visit) ||
        ...);
  }

  template <bool writes, class P, class G, class S, class Visit>
  static bool direct(const Row& row, int64_t begin, int64_t end, Visit& visit) {
    // Sums count from the begin of a chunk, not of a slice.
    constexpr bool kSlices = R::indexed && writes;
    bool fits = row.param_dtype == dtype_of(P()) && row.grad_dtype == dtype_of(G());
    for (int k = 0; k < kStates; ++k) fits = fits && (!R::keeps(variant, k) || row.state_dtype[k] == dtype_of(S()));
    // Sums have no blocks, in which float16s are converted: tiles do that.
    if (kConvertsHalves && !writes && std::is_same_v<P, f16>) return false;
    if (!fits || !plain<P, S>(row) || (row.layout && !(kSlices && row.layout->index))) return false;
    P* p = static_cast<P*>(row.param);
    const G* g = static_cast<const G*>(row.grad);
    S* s[kStates] = {};
    const auto move_states = [&](int64_t at) { each_kept([&](int k) { s[k] = static_cast<S*>(row.state[k]) + at; }); };
    // The n elements from these on, which are the row's from `at` on.
    const auto go = [&](P* param, const G* grad, int64_t n, int64_t at) {
      Streams ahead(fusedopt::g_prefetch_distance, n);
      if (n > fusedopt::g_prefetch_distance) {
        ahead.add(param, dtype_of(P()));
        ahead.add(grad, dtype_of(G()));
        each_kept([&](int k) { ahead.add(s[k], dtype_of(S())); });
      }
      if constexpr (kByChance<P, S>) {
        ByChance<kStates> store{{}, row.extras->numbering.first + at};
        for (int k = 0; k < kStates; ++k) store.key[k] = stream(row.extras->key, fusedopt::kState + k);
        visit(param, grad, s, n, ahead, store);
      } else {
        visit(param, grad, s, n, ahead, ToNearest());
      }
    };
    if constexpr (kSlices) {
      if (row.layout) {
        const Layout& layout = *row.layout;
        each_slice(layout, begin, end, [&](int64_t slice, int64_t at, int64_t done, int64_t n) {
          // No hardware foresees the next slices.
          if (const int64_t coming = slice + kSlicesAhead; coming < layout.size[0]) {
            const int64_t start = slice_start(layout, coming);
            move_states(start);
            for (int64_t i = 0; i < layout.size[1] && i < kPrefetchedOfSlice; i += kPrefetchedAtOnce) {
              prefetch(p + start + i);
              each_kept([&](int k) { prefetch(s[k] + i); });
            }
          }
          const int64_t start = slice_start(layout, slice) + at;
          move_states(start);
          go(p + start, g + begin + done, n, begin + done);
        });
        return true;
      }
    }
    move_states(begin);
    go(p + begin, g + begin, end - begin, begin);
    return true;
  }

  // Whether a row has no more extras than the loop of its mix knows of.
  template <class P, class S>
  static bool plain(const Row& row) {
    if constexpr (!kByChance<P, S>) return !row.extras;
    int kept = 0;
    for (int k = 0; k < kStates; ++k) kept |= R::keeps(variant, k) ? 1 << k : 0;
    const fusedopt::Extras* extras = row.extras;
    return extras && (extras->states_by_chance & kept) == kept && extras->nothing_but_draws();
  }

  static void sweep(const Row& row, int64_t begin, int64_t end) {
    const Scalars c = Shape<R>::template scalars<T>(row.scalars);
    const T multiplier = static_cast<T>(row.scalars[0]);
    over<true>(row, begin, end,
               [&](auto* p, const auto* g, auto* const* s, int64_t n, const Streams& ahead, const auto& store) {
                 run(p, g, s, n, multiplier, c, ahead, store);
               });
  }

  static void measure(const Row& row, int64_t begin, int64_t end, double* sums) {
    const Scalars c = Shape<R>::template scalars<T>(row.scalars);
    const T multiplier = static_cast<T>(row.scalars[0]);
    for (int64_t at = begin; at < end; at += fusedopt::kChunk) {
      alignas(64) T sum[kSums][fusedopt::kAccumulators] = {};
      // Tiles are a multiple of the accumulators long, so each begins with the first.
      over<false>(row, at, fusedopt::kChunk < end - at ? at + fusedopt::kChunk : end,
                  [&](const auto* p, const auto* g, auto* const* s, int64_t n, const Streams&, const auto&) {
                    add(p, g, s, n, multiplier, c, sum);
                  });
      for (int k = 0; k < R::sums; ++k) *sums++ = k < kSums ? static_cast<double>(total(sum[k])) : 0;
    }
  }

  // Any other mix, any strides, and rows with extras.
  template <bool writes, class Visit>
  static void tiles(const Row& row, int64_t begin, int64_t end, Visit& visit) {
    alignas(64) T buffer[2 + kStates][kTile];
    const TileParam<T> param(row, buffer[0]);
    const TileOperand<T> grad(row, fusedopt::kGrad, row.grad, row.grad_dtype, buffer[1]);
    const auto state = [&](int k) { return TileState<T>(row, k, buffer[2 + k]); };
    T* s[kStates] = {};
    Streams streams = tile_streams(row);
    each_kept([&](int k) { streams.add(row.state[k], row.state_dtype[k]); });
    for (int64_t at = begin; at < end; at += kTile) {
      const int64_t n = kTile < end - at ? kTile : end - at;
      T* p = param.load(at, n);
      const T* g = grad.load(at, n);
      each_kept([&](int k) { s[k] = state(k).load(at, n); });
      streams.move_to(at + kTile);
      visit(p, g, s, n, streams, ToNearest());
      if constexpr (!writes) continue;
      param.store(p, at, n);
      each_kept([&](int k) { state(k).store(at, n); });
    }
  }
};

template <class R>
struct Entry {
  static int variant(const double* hypers) { return R::variant(Shape<R>::hypers(hypers)); }
  static bool keeps(int variant, int state) { return R::keeps(variant, state); }
  static bool like_grad(int state) { return R::like_grad(state); }
  static double initial_state(const double* hypers, int state) {
    return R::initial_state(Shape<R>::hypers(hypers), state);
  }
  static double initial_counter(const double* hypers, int counter) {
    return R::initial_counter(Shape<R>::hypers(hypers), counter);
  }

  static void add_up(const double* sums, int64_t count, double* total_of) {
    // A short tensor has one chunk.
    const int width = width_for(count);
    for (int k = 0; k < R::sums; ++k) {
      double sum[fusedopt::kAccumulators];
      std::fill_n(sum, width, 0.0);
      for (int64_t i = 0; i < count; ++i) sum[i % fusedopt::kAccumulators] += sums[i * R::sums + k];
      total_of[k] = total(sum, width);
    }
  }

  template <class T>
  static void conclude(const double* total_of, double* kept, double* scalars) {
    auto c = Shape<R>::template scalars<T>(scalars);
    if constexpr (R::joint) {
      auto hypers = Shape<R>::hypers(kept);
      R::conclude(total_of, hypers, c);
      std::memcpy(kept, &hypers, sizeof(hypers));
    } else if constexpr (R::remembers) {
      R::conclude(total_of, kept, c);
    } else {
      R::conclude(total_of, c);
    }
    T fields[Shape<R>::kScalars];
    std::memcpy(fields, &c, sizeof(c));
    for (int i = 0; i < Shape<R>::kScalars; ++i) scalars[1 + i] = static_cast<double>(fields[i]);
  }

  template <int variant>
  static void add_sweeps(fusedopt::Rule& rule) {
    if constexpr (variant < R::variants) {
      if constexpr (R::sums > 0 && R::measures(variant)) {
        rule.measure[variant][0] = Kernel<R, variant, float>::measure;
        rule.measure[variant][1] = Kernel<R, variant, double>::measure;
      }
      rule.sweep[variant][0] = Kernel<R, variant, float>::sweep;
      rule.sweep[variant][1] = Kernel<R, variant, double>::sweep;
      add_sweeps<variant + 1>(rule);
    }
  }

  static fusedopt::Rule rule() {
    static_assert(R::sums > 0 || !(R::joint || R::remembers));
    static_assert(!(R::joint && R::remembers), "what is made of sums has one place to stay");
    fusedopt::Rule rule = described<R>();
    rule.hyper_defaults = R::hyper_defaults;
    rule.sums = R::sums;
    rule.indexed = R::indexed;
    rule.remembers = R::remembers;
    rule.joint = R::joint;
    rule.scopes = R::scopes;
    rule.variant = variant;
    rule.keeps = keeps;
    rule.like_grad = like_grad;
    rule.initial_state = initial_state;
    rule.initial_counter = initial_counter;
    if constexpr (R::sums > 0) {
      rule.add_up = add_up;
      rule.conclude[0] = conclude<float>;
      rule.conclude[1] = conclude<double>;
    }
    add_sweeps<0>(rule);
    return rule;
  }
};

template <class R>
const fusedopt::Rule& rule_of() {
  static const fusedopt::Rule rule = Entry<R>::rule();
  return rule;
}

}  // namespace FUSEDOPT_NAMESPACE
