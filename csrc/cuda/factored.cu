// How a step of tensors with factored second moments is put on a stream.
#define FUSEDOPT_NAMESPACE fusedopt_cuda
#include "factored.cuh"
#include "factored.h"
#include "runtime.h"

#include <cstring>

namespace FUSEDOPT_NAMESPACE {

struct FactoredClass {
  void (*measure)(FactoredArguments);
  void (*finish)(FactoredArguments);
  void (*square)(FactoredArguments);
  void (*update)(FactoredArguments);
};

template <class T, class P, class G = P>
FactoredClass factored_class() {
  return {factored_measure<T, P, G>, factored_finish<T>, factored_square<T, P, G>, factored_update<T, P, G>};
}

inline const FactoredClass& factored_class_of(int kind) {
  static const FactoredClass classes[fusedopt::cuda::FactoredLaunch::kClasses] = {
      factored_class<float, float>(),
      factored_class<float, bf16>(),
      factored_class<float, f16>(),
      factored_class<double, double>(),
      factored_class<float, AnyStored>(),
      factored_class<double, AnyStored>(),
      factored_class<float, WithExtras, AnyStored>(),
      factored_class<double, WithExtras, AnyStored>()};
  return classes[kind];
}

}  // namespace FUSEDOPT_NAMESPACE

namespace fusedopt::cuda {
namespace {

using fusedopt_cuda::FactoredArguments;
using fusedopt_cuda::FactoredEntry;
using fusedopt_cuda::kThreads;
using fusedopt_cuda::Tiling;

bool is_wide(const Factored& t) { return t.operand[kFactoredParam].dtype == Dtype::f64; }

int class_of(const Factored& t) {
  const Dtype param = t.operand[kFactoredParam].dtype, grad = t.operand[kFactoredGrad].dtype;
  if (t.has_extras) return 6 + is_wide(t);
  if (param != grad) return 4 + is_wide(t);
  return param == Dtype::f32 ? 0 : param == Dtype::bf16 ? 1 : param == Dtype::f16 ? 2 : 3;
}

}  // namespace

bool ready_for_factored(const Place& place) {
  static Brought brought;
  const bool captured = capturing(place);
  brought.to(place.device, [] {
    cudaError_t error = bring(fusedopt_cuda::factored_prepare, fusedopt_cuda::factored_conclude);
    for (int kind = 0; kind < FactoredLaunch::kClasses; ++kind) {
      const fusedopt_cuda::FactoredClass& its = fusedopt_cuda::factored_class_of(kind);
      if (error == cudaSuccess) error = bring(its.measure, its.finish, its.square, its.update);
    }
    return error;
  });
  return captured;
}

// Entries, starts of each class, then the sums.
FactoredLaunch::FactoredLaunch(const FactoredStep& step) : step_(step), tensors_(step.last - step.first) {
  size_t at = tensors_ * sizeof(FactoredEntry) + 2 * kClasses * (tensors_ + 1) * sizeof(uint32_t);
  const auto take = [&](int64_t bytes) {
    at = (at + 15) / 16 * 16;
    const size_t begin = at;
    at += static_cast<size_t>(bytes);
    return begin;
  };
  table_bytes_ = take(0);
  for (const Factored* t = step.first; t < step.last; ++t) {
    const Tiling tiling(*t);
    const bool empty = t->numel == 0, matrices = !empty && !t->vector;
    const int64_t tiles = empty ? 0 : tiling.tiles, size = is_wide(*t) ? 8 : 4;
    const int64_t finishes = matrices ? t->matrices * fusedopt_cuda::finishing_blocks(*t) : 0;
    Parts& parts = parts_.emplace_back();
    parts.param = take(tiles * 8);
    parts.update = take(tiles * 8);
    parts.rows = take(matrices && tiling.chunks > 1 ? t->matrices * t->rows * tiling.chunks * 8 : 0);
    parts.cols = take(matrices && tiling.blocks > 1 ? t->matrices * tiling.blocks * t->cols * size : 0);
    parts.factors = take(matrices ? t->matrices * t->cols * size : 0);
    parts.means = take(matrices ? t->matrices * 8 : 0);
    for (int kind = 0; kind < kClasses; ++kind) {
      const bool its = kind == class_of(*t);
      starts_[kind].tiles.push_back(starts_[kind].tiles.back() + static_cast<uint32_t>(its ? tiles : 0));
      starts_[kind].finishes.push_back(starts_[kind].finishes.back() + static_cast<uint32_t>(its ? finishes : 0));
    }
  }
  bytes_ = at;
}

size_t FactoredLaunch::starts_at(int kind, bool finishes) const {
  return tensors_ * sizeof(FactoredEntry) + (2 * kind + finishes) * (tensors_ + 1) * sizeof(uint32_t);
}

void FactoredLaunch::fill(void* image, void* memory) const {
  char* const there = static_cast<char*>(memory);
  for (size_t i = 0; i < tensors_; ++i) {
    FactoredEntry entry = {};
    entry.tensor = step_.first[i];
    const Parts& parts = parts_[i];
    entry.sums.param = reinterpret_cast<double*>(there + parts.param);
    entry.sums.update = reinterpret_cast<double*>(there + parts.update);
    entry.sums.rows = reinterpret_cast<double*>(there + parts.rows);
    entry.sums.cols = there + parts.cols;
    entry.factors = there + parts.factors;
    entry.means = reinterpret_cast<double*>(there + parts.means);
    std::memcpy(static_cast<char*>(image) + i * sizeof(entry), &entry, sizeof(entry));
  }
  for (int kind = 0; kind < kClasses; ++kind)
    for (const bool finishes : {false, true}) {
      const std::vector<uint32_t>& starts = finishes ? starts_[kind].finishes : starts_[kind].tiles;
      std::memcpy(static_cast<char*>(image) + starts_at(kind, finishes), starts.data(),
                  starts.size() * sizeof(uint32_t));
    }
}

void FactoredLaunch::launch(const Place& place, void* memory) const {
  use(place.device);
  char* const there = static_cast<char*>(memory);
  auto* entries = reinterpret_cast<FactoredEntry*>(there);
  const uint32_t count = static_cast<uint32_t>(tensors_);
  const uint32_t* skipped = step_.found_inf.device ? step_.skipped : nullptr;
  const fusedopt_cuda::FactoredPrepare prepare = {entries,
                                                  count,
                                                  {step_.grad_scale.device, step_.grad_scale.dtype},
                                                  {step_.found_inf.device, step_.found_inf.dtype},
                                                  step_.skipped};
  put_together([&](bool& wrote) {
    put(place, (count + kThreads - 1) / kThreads, kThreads, fusedopt_cuda::factored_prepare, prepare);
    for (const Factored* t = step_.first; t < step_.last; ++t) wrote = wrote || t->step.device;
    const auto each = [&](auto kernel, bool finishes) {
      for (int kind = 0; kind < kClasses; ++kind) {
        const uint32_t blocks = (finishes ? starts_[kind].finishes : starts_[kind].tiles).back();
        const auto* starts = reinterpret_cast<const uint32_t*>(there + starts_at(kind, finishes));
        const FactoredArguments arguments = {entries, starts, count, skipped};
        if (blocks == 0) continue;
        put(place, blocks, kThreads, fusedopt_cuda::factored_class_of(kind).*kernel, arguments);
        wrote = true;
      }
    };
    using Class = fusedopt_cuda::FactoredClass;
    each(&Class::measure, false);
    each(&Class::finish, true);
    each(&Class::square, false);
    put(place, count, kThreads, fusedopt_cuda::factored_conclude, FactoredArguments{entries, nullptr, count, skipped});
    each(&Class::update, false);
  });
}

}  // namespace fusedopt::cuda
