// What rounds by chance draws by an element's number in the whole: a row that is a part, in one piece, in runs, in runs
// of runs and across a multiple of 2^32, is stepped to the bits of its elements stepped each by itself, on every
// instruction set and on the emulated device.
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "../cuda_emulator/emulator.h"
#include "worlds.h"

using namespace fusedopt;
using namespace operands;

namespace {

constexpr int64_t kNumel = 2100;
constexpr int64_t kHalf = int64_t{1} << 32;
// A step's, and what an engine makes of it for the first row.
constexpr uint64_t kKey = 77, kKeyOfRow = 0x6258cbe07c1ff081;

struct Part {
  Numbering numbering;
  int64_t number(int64_t e) const {
    int64_t number = numbering.first + e;
    for (int c = 0; c < kCuts; ++c)
      if (numbering.run[c]) number += e / numbering.run[c] * numbering.gap[c];
    return number;
  }
};

// Params in bfloat16 or float32, with states in 16 bits, all rounded by chance; or with codes.
struct Storages {
  Dtype param, state;
  bool stochastic;
};

struct Memory {
  Bytes param, grad, states[2];
  std::vector<float> scales[2] = {};
};

Memory fresh(const Storages& storages) {
  std::mt19937 random(5);
  const auto state = [&] {
    return is_coded(storages.state) ? Bytes((kNumel + kCodeBlock) * 1) : random_operand(random, storages.state, kNumel);
  };
  Memory memory = {random_operand(random, storages.param, kNumel, true),
                   random_operand(random, Dtype::f32, kNumel, true),
                   {state(), state()}};
  for (int k = 0; k < 2; ++k) {
    if (is_coded(storages.state)) std::memset(memory.states[k].data.get(), 0, memory.states[k].size);
    memory.scales[k].assign(kNumel / kCodeBlock + 1, 1.0f);
  }
  return memory;
}

Row row_of(const Storages& storages, Memory& memory, Extras& extras, int64_t begin, int64_t n) {
  Row row = {};
  const auto at = [&](Bytes& bytes, Dtype dtype) {
    return static_cast<void*>(bytes.data.get() + begin * element_size(dtype));
  };
  row.param = at(memory.param, row.param_dtype = storages.param);
  row.grad = at(memory.grad, row.grad_dtype = Dtype::f32);
  for (int k = 0; k < 2; ++k) {
    row.state[k] = at(memory.states[k], row.state_dtype[k] = storages.state);
    if (is_coded(storages.state)) {
      if (k == 1) row.state_dtype[k] = Dtype::u8;
      extras.scales[k] = memory.scales[k].data();
    }
  }
  row.numel = n;
  row.extras = &extras;
  extras.key = kKeyOfRow;
  extras.stochastic = storages.stochastic;
  extras.states_by_chance = 3;
  return row;
}

const std::vector<double> kHypers = {0.1, 0.9, 0.999, 1e-8, 0.1, 0, 1, 1, 0};

void sweep(const Rule& rule, Row row) {
  double counters[kMaxCounters] = {}, scalars[kMaxScalars] = {1};
  rule.prepare(kHypers.data(), counters, true, scalars + 1);
  row.variant = static_cast<uint8_t>(rule.variant(kHypers.data()));
  row.scalars = scalars;
  row.counters = counters;
  row.work_end = row.numel + cpu::kRowOverhead;
  cpu::sweep(rule, &row, &row + 1, 1);
}

void expect_equal(const Memory& a, const Memory& b, const char* where, size_t part) {
  if (a.param == b.param && a.states[0] == b.states[0] && a.states[1] == b.states[1]) return;
  std::fprintf(stderr, "bits differ: %s, part %zu\n", where, part);
  std::exit(1);
}

void step_on_device(const Rule& rule, const Storages& storages, Memory& memory, const Numbering& numbering) {
  cuda_emulator::reset();
  const cuda::Place place = {0, reinterpret_cast<void*>(1)};
  std::vector<Number> hypers;
  for (const double hyper : kHypers) hypers.push_back({hyper});
  Extras extras;
  extras.numbering = numbering;
  Row row = row_of(storages, memory, extras, 0, kNumel);
  row.variant = static_cast<uint8_t>(rule.variant(kHypers.data()));
  cuda::Step step;
  step.rule = &rule;
  step.first = &row;
  step.last = &row + 1;
  step.slots = 1;
  step.groups = {{hypers.data(), 1}};
  step.entries = {{0, true, false, {}}};
  step.key = kKey;
  if (cuda::ready(place, rule)) std::exit(1);
  Bound bound;
  bound.provide(step);
  bound.table.launch(step, place);
}

}  // namespace

int main() {
  std::vector<Part> parts(9);
  const auto cut = [&](size_t at, int64_t first, int64_t run, int64_t gap, int64_t outer = 0, int64_t more = 0) {
    parts[at].numbering = {first, {run, outer}, {gap, more}, run > 0 || first % kCodeBlock != 0};
  };
  cut(1, 777, 0, 0);
  cut(2, kHalf - 100, 0, 0);
  cut(3, 3 * kHalf - 1024, 0, 0);
  parts[3].numbering.scattered = 0;
  cut(4, 5, 7, 30);
  cut(5, kHalf - 300, 300, 1);
  cut(6, 0, 1, 4);
  cut(7, kHalf - 5000, 40, 3, 1000, 12345);
  cut(8, 2 * kHalf + 11, 25, kHalf - 9);

  int checked = 0;
  for (const Storages& storages : {Storages{Dtype::bf16, Dtype::bf16, true}, Storages{Dtype::f16, Dtype::r16, true},
                                   Storages{Dtype::f32, Dtype::bf16, false}, Storages{Dtype::f32, Dtype::i8, false}}) {
    for (size_t p = 0; p < parts.size(); ++p) {
      cpu::use_isa("generic");
      const Rule& generic = *cpu::find_rule("adam");
      Memory expected = fresh(storages);
      if (is_coded(storages.state)) {
        // A block is whole, so what draws each by itself cannot be made of it: the backends agree.
        Extras extras;
        extras.numbering = parts[p].numbering;
        sweep(generic, row_of(storages, expected, extras, 0, kNumel));
      } else {
        for (int64_t e = 0; e < kNumel; ++e) {
          Extras extras;
          extras.numbering.first = parts[p].number(e);
          sweep(generic, row_of(storages, expected, extras, e, 1));
        }
      }
      for (const cpu::Isa& isa : cpu::built_isas()) {
        if (!isa.supported) continue;
        cpu::use_isa(isa.name);
        Memory memory = fresh(storages);
        Extras extras;
        extras.numbering = parts[p].numbering;
        sweep(*cpu::find_rule("adam"), row_of(storages, memory, extras, 0, kNumel));
        expect_equal(memory, expected, isa.name, p);
        ++checked;
      }
      Memory memory = fresh(storages);
      step_on_device(generic, storages, memory, parts[p].numbering);
      expect_equal(memory, expected, "cuda", p);
      ++checked;
    }
  }
  std::printf("%d parts, no bit differs\n", checked);
}
