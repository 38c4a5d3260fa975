// Kernels that exist once for all rules of an object, of which this has the update of rows of any mix. What they do is
// common to rules but for a few lines of maths, and which lines these are is the same for a whole launch, so they
// branch there. `Rules` has the rules: with(number, f) calls f(R()) for one of them.
#pragma once

#include <type_traits>

#include "advance.cuh"
#include "any.cuh"

namespace FUSEDOPT_NAMESPACE {

template <int variant, class R, class F>
__device__ void with_variant_of(R r, int which, F&& f) {
  if constexpr (variant + 1 < R::variants)
    if (which != variant) return with_variant_of<variant + 1>(r, which, f);
  f(r, std::integral_constant<int, variant>());
}

// Calls f(R(), variant) for a variant of a rule, both of which are known where f is compiled.
template <class Rules, class F>
__device__ void with_variant(const CommonRule& rule, F&& f) {
  Rules::with(rule.number, [&](auto r) { with_variant_of<0>(r, rule.variant, f); });
}

// Blocks of an SM: a thread gets 128 registers.
constexpr int kAnyBlocks = 2;

// Floats have a kernel for variants with few states, which most are: those that others might have would want registers,
// of which there are none left.
constexpr int kFewStates = 2;
template <class R>
FUSEDOPT_HD constexpr bool has_few_states(int variant) {
  for (int k = kFewStates; k < Shape<R>::kStates; ++k)
    if (R::keeps(variant, k)) return false;
  return true;
}
template <class R, int states, class T>
FUSEDOPT_HD constexpr bool is_served(int variant) {
  return sizeof(T) != sizeof(float) || has_few_states<R>(variant) == (states == kFewStates);
}

template <class R, int variant, class T, int states>
__device__ void step(AnyTile<T, states>& tile, T multiplier, const T* numbers) {
  constexpr int kStates = Shape<R>::kStates;
  const auto scalars = Shape<R>::template scalars<T>(numbers);
#pragma unroll AnyTile < T, states> ::kUnroll
  for (int j = 0; j < kShare; ++j) {
    T s[kStates] = {};
#pragma unroll
    for (int k = 0; k < kStates; ++k)
      if (R::keeps(variant, k)) s[k] = tile.at.s[k][j];
    R::template update<variant>(tile.at.p[j], tile.at.g[j] * multiplier, s, scalars);
#pragma unroll
    for (int k = 0; k < kStates; ++k)
      if (R::keeps(variant, k)) tile.at.s[k][j] = s[k];
  }
}

template <class Rules, int states, class T>
__global__ void __launch_bounds__(fusedopt::cuda::kWarps* kLanes, kAnyBlocks)
    update_any(const __grid_constant__ UpdateArguments a, const __grid_constant__ CommonRule rule) {
  using Tile = AnyTile<T, states>;
  AnyChunk chunk;
  if (!chunk.find(a, rule.scalars, fusedopt::cuda::row_words(rule.states))) return;
  Tile tile(a, rule, chunk);
  const T* numbers = static_cast<const T*>(chunk.numbers);
  const T multiplier = numbers[0];

#pragma unroll 1
  for (int at = 0; at < chunk.n; at += kAnyTile) {
    const Share share = Tile::share(chunk, at);
    tile.load(share);
    with_variant<Rules>(rule, [&](auto r, auto variant) {
      using R = decltype(r);
      if constexpr (is_served<R, states, T>(variant)) step<R, variant>(tile, multiplier, numbers);
    });
    tile.store(share);
  }
}

}  // namespace FUSEDOPT_NAMESPACE
