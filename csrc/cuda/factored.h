// Steps of tensors with factored second moments on a CUDA device, as csrc/host sees them: no torch, no CUDA headers.
// Compiled with nvcc it is factored.cu; without, absent.cpp.
#pragma once

#include <vector>

#include "../factored.h"
#include "engine.h"

namespace fusedopt::cuda {

struct FactoredStep {
  const Factored *first, *last;
  Number grad_scale;            // if on the device, to divide the gradients by
  Number found_inf;             // if on the device, anything but zero there makes the step nothing
  uint32_t* skipped = nullptr;  // device memory that is told so; not null if found_inf is on the device
};

// Throws if a step cannot be put there: an earlier kernel failed, or the device is none that was built for. Returns
// whether the stream is being captured into a graph.
bool ready_for_factored(const Place& place);

// One step, in memory of the device that nobody else uses until its kernels have run.
class FactoredLaunch {
 public:
  explicit FactoredLaunch(const FactoredStep& step);

  size_t bytes() const { return bytes_; }
  // The first so many of them have to hold what fill() writes.
  size_t table_bytes() const { return table_bytes_; }
  void fill(void* image, void* memory) const;
  void launch(const Place& place, void* memory) const;

  // The storages that have kernels of their own, two for any others, and two for params with extras: arithmetic in
  // float, and in double.
  static constexpr int kClasses = 8;

 private:
  // Running totals of blocks before each tensor, of one class.
  struct Starts {
    std::vector<uint32_t> tiles = {0}, finishes = {0};
  };
  struct Parts {
    size_t param, update, rows, cols, factors, means;
  };
  size_t starts_at(int kind, bool finishes) const;

  FactoredStep step_;
  Starts starts_[kClasses];
  std::vector<Parts> parts_;  // where the sums of each tensor lie
  size_t tensors_, table_bytes_, bytes_;
};

}  // namespace fusedopt::cuda
