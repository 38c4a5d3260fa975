// What steps the engines' tests compare are made of: params in every place of memory, numbers of a device, and tables.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <deque>

#include "../../csrc/cuda/engine.h"
#include "operands.h"

namespace operands {

using namespace fusedopt;

// Where a param and what belongs to it lie: densely, densely but some of it off the vectors' alignment, or as strides
// say: with gaps, the gradient transposed, the gradient expanded from one row.
enum Place { kDense, kOffset, kGaps, kTransposed, kExpanded, kPlaces };

struct Param {
  int group;
  Mix mix;
  Place place;
  int64_t numel;
};

// One engine's copy of all operands.
struct World {
  std::vector<Bytes> memory;
  std::vector<std::pair<size_t, int>> owners;  // of memory: a slot and which of its operands
  std::vector<Row> rows;
  std::deque<Layout> layouts;
};

inline Layout layout_of(Place place, int64_t numel, int operands) {
  Layout layout = {};
  if (place == kGaps) {
    layout.dims = 1;
    layout.size[0] = numel;
    for (int o = 0; o < operands; ++o) layout.stride[o][0] = o == kParam ? 3 : o == kGrad ? 1 : 2;
    return layout;
  }
  int64_t rows = static_cast<int64_t>(std::sqrt(static_cast<double>(numel)));
  while (numel % rows != 0) --rows;
  const int64_t columns = numel / rows;
  layout.dims = 2;
  layout.size[0] = rows;
  layout.size[1] = columns;
  for (int o = 0; o < operands; ++o) {
    layout.stride[o][0] = o >= kState ? columns + 1 : columns;
    layout.stride[o][1] = 1;
  }
  layout.stride[kGrad][0] = place == kTransposed ? 1 : 0;
  layout.stride[kGrad][1] = place == kTransposed ? rows : 1;
  return layout;
}

inline World make_world(const Rule& rule, const std::vector<Param>& params,
                        const std::vector<std::vector<double>>& hypers) {
  World world;
  std::mt19937 random(11);
  for (size_t slot = 0; slot < params.size(); ++slot) {
    const Param& param = params[slot];
    const int operands = kState + rule.states;
    Row row = {};
    row.numel = param.numel;
    row.slot = static_cast<uint32_t>(slot);
    row.variant = static_cast<uint8_t>(rule.variant(hypers[param.group].data()));
    const bool strided = param.place > kOffset && param.numel > 0;
    if (strided) row.layout = &world.layouts.emplace_back(layout_of(param.place, param.numel, operands));
    for (int o = 0; o < operands; ++o) {
      if (o >= kState && !rule.keeps(row.variant, o - kState)) continue;
      const Dtype dtype = param.mix.of(o);
      // By one element, in turns for each operand.
      const int64_t front = param.place == kOffset && (param.numel + o) % 3 == 0;
      const int64_t elements = strided ? span(row.layout->dims, row.layout->size, row.layout->stride[o]) : param.numel;
      world.memory.push_back(random_operand(random, dtype, front + elements));
      world.owners.emplace_back(slot, o);
      void* data = world.memory.back().data.get() + front * element_size(dtype);
      (o == kParam ? row.param_dtype : o == kGrad ? row.grad_dtype : row.state_dtype[o - kState]) = dtype;
      if (o == kGrad)
        row.grad = data;
      else
        (o == kParam ? row.param : row.state[o - kState]) = data;
    }
    world.rows.push_back(row);
  }
  return world;
}

// A number in memory of its own.
struct Cell {
  Bytes bytes;
  Dtype dtype;

  Cell(Dtype dtype, double value) : bytes(element_size(dtype)), dtype(dtype) { set(value); }
  void set(double value) {
    const float narrow = static_cast<float>(value);
    std::memcpy(bytes.data.get(), dtype == Dtype::f64 ? static_cast<const void*>(&value) : &narrow, bytes.size);
  }
  double get() const {
    float narrow = 0;
    double wide = 0;
    std::memcpy(dtype == Dtype::f64 ? static_cast<void*>(&wide) : &narrow, bytes.data.get(), bytes.size);
    return dtype == Dtype::f64 ? wide : narrow;
  }
  double rounded(double value) const { return dtype == Dtype::f64 ? value : static_cast<float>(value); }
  Number number() const { return {0, bytes.data.get(), dtype}; }
};

inline void expect(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "does not hold: %s\n", what);
  std::exit(1);
}

// A table and the memory that it asked for.
struct Bound {
  cuda::Table table;
  std::unique_ptr<Bytes> memory;

  void provide(const cuda::Step& step) {
    const size_t bytes = table.lacks(step);
    if (bytes == 0) return;
    // As where there was no memory to give, and the step is tried again.
    expect(table.lacks(step) == bytes, "the table lacks what it was not given");
    memory = std::make_unique<Bytes>(bytes);
    std::memset(memory->data.get(), 0, bytes);
    table.bind(memory->data.get());
  }
};

}  // namespace operands
