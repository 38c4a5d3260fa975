// How the threads of a team share the tensors of a step whose second moments are factored.
#include <algorithm>
#include <atomic>
#include <memory>
#include <vector>

#include "../rules/adafactor.h"
#include "../shape.h"
#include "../tiling.h"
#include "engine.h"
#include "parallel.h"

namespace fusedopt::cpu {
namespace {

// Below this many elements a thread takes a tensor alone: its sweeps then meet in the thread's own cache, where the
// team's would wait for each other four times.
constexpr int64_t kAlone = 1 << 16;

int is_wide(const Factored& t) { return t.operand[kFactoredParam].dtype == Dtype::f64; }

// Room for the sums of one tensor at a time: a part in 64 of its size, and less.
class Room {
 public:
  explicit Room(const std::vector<Factored*>& tensors) {
    size_t most = 0;
    for (const Factored* t : tensors) most = std::max(most, place(*t, nullptr));
    memory_.reset(new double[most]);
  }

  FactoredSums sums(const Factored& t) {
    FactoredSums sums;
    place(t, &sums);
    return sums;
  }

 private:
  size_t place(const Factored& t, FactoredSums* sums) const {
    const Tiling tiling(t);
    const int64_t rows = tiling.chunks > 1 && !t.vector ? t.matrices * t.rows * tiling.chunks : 0;
    const int64_t cols = tiling.blocks > 1 && !t.vector ? t.matrices * tiling.blocks * t.cols : 0;
    if (sums) {
      sums->param = memory_.get();
      sums->update = sums->param + tiling.tiles;
      sums->rows = sums->update + tiling.tiles;
      sums->cols = sums->rows + rows;
    }
    return 2 * tiling.tiles + rows + (is_wide(t) ? cols : (cols + 1) / 2);
  }

  std::unique_ptr<double[]> memory_;
};

// The share of one thread in a tensor that `of` threads step together; `wait` returns once all have come to it.
template <class F>
void step_share(const FactoredKernels& kernels, Factored& t, const FactoredSums& sums, int thread, int of, F&& wait) {
  const Tiling tiling(t);
  const int wide = is_wide(t);
  const int64_t first = tiling.tiles * thread / of, last = tiling.tiles * (thread + 1) / of;
  kernels.measure[wide](t, sums, first, last);
  wait();
  if (!t.vector) {
    if (tiling.chunks > 1 || tiling.blocks > 1) {
      kernels.finish[wide](t, sums, thread, of);
      wait();
    }
    kernels.square[wide](t, sums, first, last);
    wait();
  }
  if (thread == 0) kernels.conclude(t, sums);
  wait();
  kernels.update[wide](t, first, last);
}

}  // namespace

const Rule& factored_rule() {
  using R = Adafactor;
  static const Rule rule = [] {
    Rule rule = {};
    rule.name = R::name;
    rule.hyper_names = R::hyper_names;
    rule.state_names = R::state_names;
    rule.counter_names = R::counter_names;
    rule.state_kinds = R::state_kinds;
    rule.hypers = Shape<R>::kHypers;
    rule.states = Shape<R>::kStates;
    rule.scalars = Shape<R>::kScalars;
    rule.counters = R::counters;
    rule.variants = R::variants;
    rule.factored = true;
    rule.variant = [](const double*) { return 0; };
    rule.keeps = [](int variant, int state) { return (state == 2) == (variant == 1); };
    rule.like_grad = [](int state) { return state == 2; };
    rule.initial_state = [](const double*, int) { return 0.0; };
    rule.initial_counter = [](const double*, int) { return 0.0; };
    rule.prepare = [](const double* hypers, double* counters, bool first, double* scalars) {
      const auto made = R::prepare(Shape<R>::hypers(hypers), counters, first);
      std::memcpy(scalars, &made, sizeof(made));
    };
    return rule;
  }();
  return rule;
}

void step_factored(Factored* first, Factored* last, int threads) {
  const FactoredKernels& kernels = chosen_isa().factored();
  std::vector<Factored*> small, large;
  int64_t work = 0;
  for (Factored* t = first; t < last; ++t) {
    if (t->numel == 0) continue;
    work += t->numel;
    (t->numel < kAlone ? small : large).push_back(t);
  }
  Room shared(large);
  std::vector<Room> own;
  for (int i = 0; i < std::max(threads, 1); ++i) own.emplace_back(small);

  std::atomic<size_t> next{0};
  // Elements are read and written in up to three sweeps, so fewer of them are worth a team.
  parallel(3 * work, threads, [&](int thread, int of) {
    const auto wait = [of] {
      if (of == 1) return;
#pragma omp barrier
    };
    for (Factored* t : large) {
      const FactoredSums sums = shared.sums(*t);
      step_share(kernels, *t, sums, thread, of, wait);
      wait();
    }
    for (size_t i; (i = next++) < small.size();)
      step_share(kernels, *small[i], own[thread].sums(*small[i]), 0, 1, [] {});
  });
}

}  // namespace fusedopt::cpu
