// How the threads of a team share the tensors of a step whose second moments are factored.
#include <algorithm>
#include <atomic>
#include <memory>
#include <vector>

#include "../cpu/engine.h"
#include "../cpu/parallel.h"
#include "../shape.h"
#include "cpu.h"
#include "maths.h"
#include "tiling.h"

namespace fusedopt::cpu {
namespace {

// Below this many elements a thread takes a tensor alone: its sweeps then meet in the thread's own cache, where the
// team's would wait for each other four times.
constexpr int64_t kAlone = 1 << 16;

int is_wide(const Factored& t) { return t.operand[kFactoredParam].dtype == Dtype::f64; }

// Room for the sums of one tensor at a time: a part in 64 of its size, and less.
class Room {
 public:
  template <class Tensor>
  explicit Room(const std::vector<Tensor*>& tensors) {
    size_t most = 0;
    for (const Factored* t : tensors) most = std::max(most, place(*t, nullptr));
    memory_.reset(new double[most]);
  }

  FactoredSums sums(const Factored& t) {
    FactoredSums sums = {};
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
  kernels.update[wide](t, sums, first, last);
}

// Shares tensors out among threads: one after the other to all of them, or many, small ones, to each thread some.
// share(tensor, its sums, thread, of, wait) is one thread's of `of`; wait() returns once all have come to it.
template <class Tensor, class F>
void each_tensor(Tensor* first, Tensor* last, int sweeps, int threads, F&& share) {
  std::vector<Tensor*> small, large;
  int64_t work = 0;
  for (Tensor* t = first; t < last; ++t) {
    if (t->numel == 0) continue;
    work += t->numel;
    (t->numel < kAlone ? small : large).push_back(t);
  }
  Room shared(large);
  std::vector<Room> own;
  for (int i = 0; i < std::max(threads, 1); ++i) own.emplace_back(small);

  std::atomic<size_t> next{0};
  parallel(sweeps * work, threads, [&](int thread, int of) {
    const auto wait = [of] {
      if (of == 1) return;
#pragma omp barrier
    };
    for (Tensor* t : large) {
      share(*t, shared.sums(*t), thread, of, wait);
      wait();
    }
    for (size_t i; (i = next++) < small.size();) share(*small[i], own[thread].sums(*small[i]), 0, 1, [] {});
  });
}

}  // namespace

const Rule& factored_rule() {
  static const Rule rule = [] {
    Rule rule = described<Adafactor>();
    rule.factored = true;
    rule.variant = [](const double*) { return 0; };
    rule.keeps = [](int variant, int state) { return (state == 2) == (variant == 1); };
    rule.like_grad = [](int state) { return state == 2; };
    rule.initial_state = [](const double*, int) { return 0.0; };
    rule.initial_counter = [](const double*, int) { return 0.0; };
    return rule;
  }();
  return rule;
}

// Elements are read and written in up to three sweeps, so fewer of them are worth a team.
void step_factored(Factored* first, Factored* last, int threads) {
  const FactoredKernels& kernels = chosen_isa().factored();
  each_tensor(first, last, 3, threads, [&](Factored& t, const FactoredSums& sums, int thread, int of, auto&& wait) {
    step_share(kernels, t, sums, thread, of, wait);
  });
}

void measure_parts(FactoredPart* first, FactoredPart* last, int threads) {
  const FactoredKernels& kernels = chosen_isa().factored();
  each_tensor(first, last, 1, threads, [&](FactoredPart& t, FactoredSums sums, int thread, int of, auto&& wait) {
    if (t.vector) return;
    const Tiling tiling(t);
    sums.part_rows = t.sums_of_rows;
    sums.part_cols = t.sums_of_cols;
    kernels.measure[is_wide(t)](t, sums, tiling.tiles * thread / of, tiling.tiles * (thread + 1) / of);
    wait();
    kernels.finish[is_wide(t)](t, sums, thread, of);
    if (thread == 0) t.squares[0] = kernels.add_all(sums.param, tiling.tiles);
  });
}

void take_sums(const FactoredPart& whole, double* means) {
  chosen_isa().factored().take[is_wide(whole)](whole, whole.sums_of_rows, whole.sums_of_cols, means);
}

void copy_factors(const Factored& whole, FactoredPart& part, const PartPlaces& at, char* memory) {
  const auto copy = [&](int role, const std::vector<int64_t>& places) {
    FactoredOperand& to = part.operand[role];
    const FactoredOperand& from = whole.operand[role];
    const int64_t count = static_cast<int64_t>(places.size()), size = element_size(from.dtype);
    const bool down = role == kRowVar;
    to.data = memory;
    to.dtype = from.dtype;
    to.row = to.col = 1;
    int64_t stride = count;
    for (int d = part.leads - 1; d >= 0; stride *= part.lead_size[d--]) to.lead[d] = stride;
    for (const int64_t matrix : at.matrices)
      for (const int64_t place : places) {
        const int64_t element = element_start(whole, role, matrix, down ? place : 0, down ? 0 : place);
        std::memcpy(memory, static_cast<const char*>(from.data) + element * size, size);
        memory += size;
      }
  };
  copy(kRowVar, at.rows);
  copy(kColVar, at.cols);
}

void square_parts(FactoredPart* first, FactoredPart* last, int threads) {
  const FactoredKernels& kernels = chosen_isa().factored();
  each_tensor(first, last, 1, threads, [&](FactoredPart& t, FactoredSums sums, int thread, int of, auto&& wait) {
    const Tiling tiling(t);
    sums.means = t.means;
    const auto sweep = t.vector ? kernels.measure : kernels.square;
    sweep[is_wide(t)](t, sums, tiling.tiles * thread / of, tiling.tiles * (thread + 1) / of);
    wait();
    if (thread > 0) return;
    if (t.vector) t.squares[0] = kernels.add_all(sums.param, tiling.tiles);
    t.squares[1] = kernels.add_all(sums.update, tiling.tiles);
  });
}

void update_parts(FactoredPart* first, FactoredPart* last, int threads) {
  const FactoredKernels& kernels = chosen_isa().factored();
  for (FactoredPart* t = first; t < last; ++t)
    t->scale = Adafactor::scale(Shape<Adafactor>::scalars<double>(t->scalars), t->squares[0], t->squares[1],
                                static_cast<double>(t->whole));
  each_tensor(first, last, 1, threads, [&](FactoredPart& t, FactoredSums sums, int thread, int of, auto&&) {
    const Tiling tiling(t);
    sums.means = t.means;
    kernels.update[is_wide(t)](t, sums, tiling.tiles * thread / of, tiling.tiles * (thread + 1) / of);
  });
}

}  // namespace fusedopt::cpu
