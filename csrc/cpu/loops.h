// Which storages a rule has loops of its own for, and how such a loop takes elements apart and stores them. Included
// once for each rule and instruction set.
#pragma once

#include "../precision.h"
#include "tile.h"

namespace FUSEDOPT_NAMESPACE {

// Two neighbours in bfloat16. A shift or a mask widens and narrows the halves of a word, where AVX2 would have to
// shuffle. (Float16s are converted a block at a time: half.h.)
struct __attribute__((may_alias, packed, aligned(2))) Two {
  uint32_t word;
};

// What an operand's element, or each of two neighbours, is stored as.
template <class Operand>
struct Parts {
  using Stored = Operand;
  static constexpr int kCount = 1;
};
template <>
struct Parts<Two> {
  using Stored = bf16;
  static constexpr int kCount = 2;
};
template <int, class Stored>
inline Stored part(const Stored& x) {
  return x;
}
template <int half>
inline bf16 part(const Two& x) {
  return {static_cast<uint16_t>(x.word >> (16 * half))};
}
template <class Stored>
inline void put(const Stored (&parts)[1], Stored& x) {
  x = parts[0];
}
inline void put(const bf16 (&parts)[2], Two& x) { x.word = parts[0].bits | uint32_t{parts[1].bits} << 16; }

// How states come to be stored: what at(first) returns stores x as element first + i of state k. To the nearest,
struct ToNearest {
  ToNearest at(int64_t) const { return *this; }
  template <class T, class S>
  void operator()(int, int64_t, T x, S& stored) const {
    encode(x, stored);
  }
};
// or up or down by chance.
template <int states>
struct ByChance {
  struct Block {
    Draws draws[states];
    template <class T, class S>
    void operator()(int k, int64_t i, T x, S& stored) const {
      encode_by_chance(x, draws[k](i), stored);
    }
  };
  uint64_t key[states];
  int64_t begin;  // of the elements, as draws count them
  Block at(int64_t first) const {
    Block block;
    for (int k = 0; k < states; ++k) block.draws[k] = Draws(key[k], begin + first);
    return block;
  }
};

// The mixes with loops of their own. States in bfloat16 beside a float32 param are one here, and rounded by chance, as
// they are for whoever asks for them: while a divider is busy with one vector the draws of the next are made, for which
// a detour would have to wait.
template <class P, class S>
constexpr bool kByChance = std::is_same_v<P, float> && std::is_same_v<S, bf16>;
// Elements of a block, for which a loop has a constant length: a line of the param's memory, or several where a block
// has something to prepare, which are draws or a conversion of float16s.
template <class P, class S>
constexpr int64_t kBlock = kByChance<std::remove_const_t<P>, S> || std::is_same_v<std::remove_const_t<P>, f16>
                               ? kLargestBlock
                               : 64 / static_cast<int64_t>(sizeof(P));
template <class T>
struct Loops {
  template <class... Mixes>
  static MixList<Mixes..., Mix<float, float, bf16>> with_more(MixList<Mixes...>);
  using Mixes = decltype(with_more(FloatMixes()));
};
template <>
struct Loops<double> {
  using Mixes = DoubleMixes;
};

}  // namespace FUSEDOPT_NAMESPACE
