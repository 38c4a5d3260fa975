// How a param comes and what is made of it once it is updated, with its partner, its average and its gradient: decided
// here, once for all engines.
//
// `Tile` is what an engine has of the elements at hand, `Numbers` where it has the param's, indexed like f's second
// argument:
//   each<access>(operand, f)             calls f(stored, i) for each element of an operand, in whatever storage
//   each_of<access, Stored>(operand, f)  in a storage that is known
//   reload(p)                            the param as it is stored now
//   store(p), store_by_chance(p)         store the param, rounded to nearest, or up or down by chance
//   store_as(operand, p)                 store the same numbers as another operand
// Lambdas take the numbers by value: on the CPU loops over them are vectorised.
#pragma once

#include "precision.h"
#include "step.h"

namespace FUSEDOPT_NAMESPACE {

using fusedopt::Operand;
using fusedopt::Pair;

enum class Access { reads, writes, both };

template <class T>
struct WriteBack {
  Pair pair;
  bool stochastic, averages, new_average, clears_grad;
  T average_weight;
};

template <class T>
FUSEDOPT_HD WriteBack<T> how_of(const fusedopt::Extras& x, bool averages) {
  return {x.pair, x.stochastic, averages, x.new_average, x.clears_grad, static_cast<T>(x.average_weight)};
}

// Makes the exact param of what is stored.
template <class T, class Tile, class Numbers>
FUSEDOPT_HD void complete_param(const Tile& tile, Pair pair, Numbers p) {
  if (pair == Pair::remainder)
    tile.template each_of<Access::reads, int16_t>(fusedopt::kPartner, [=](const int16_t& x, auto i) {
      p[i] = static_cast<T>(join(static_cast<float>(p[i]), x));
    });
  if (pair == Pair::master)
    tile.template each<Access::reads>(fusedopt::kPartner,
                                      [=](const auto& x, auto i) { p[i] = unless_edited(p[i], x); });
  if (pair == Pair::compensation)
    tile.template each<Access::reads>(fusedopt::kPartner, [=](const auto& x, auto i) { p[i] = complete(T(p[i]), x); });
}

template <class T, class Tile, class Numbers>
FUSEDOPT_HD void write_back(const Tile& tile, const WriteBack<T>& w, Numbers p) {
  if (w.pair == Pair::remainder) {
    tile.template each_of<Access::writes, bf16>(fusedopt::kParam,
                                                [=](bf16& x, auto i) { x = upper_half(static_cast<float>(p[i])); });
    tile.template each_of<Access::writes, int16_t>(
        fusedopt::kPartner, [=](int16_t& x, auto i) { x = lower_half(static_cast<float>(p[i])); });
  } else if (w.stochastic && w.pair == Pair::none) {
    tile.store_by_chance(p);
  } else {
    tile.store(p);
  }
  if (w.pair == Pair::copy || w.pair == Pair::master) tile.store_as(fusedopt::kPartner, p);
  if (w.pair == Pair::compensation)
    tile.template each<Access::writes>(fusedopt::kPartner, [=](auto& x, auto i) {
      const float exact = static_cast<float>(p[i]);
      encode(exact, x);
      encode(lacking(exact, static_cast<float>(decode(x))), x);
    });
  if (w.averages) {
    // Of the number that there is from now on, which without a partner is the rounded one.
    if (w.pair == Pair::none) p = tile.reload(p);
    const T weight = w.new_average ? T(1) : w.average_weight;
    tile.template each<Access::both>(
        fusedopt::kAverage, [=](auto& x, auto i) { encode(lerp(static_cast<T>(decode(x)), T(p[i]), weight), x); });
  }
  if (w.clears_grad) tile.template each<Access::writes>(fusedopt::kGrad, [](auto& x, auto) { encode(T(0), x); });
}

}  // namespace FUSEDOPT_NAMESPACE
