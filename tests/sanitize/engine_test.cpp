// Sweeps every rule and variant over every mix of storages, sizes, layouts, instruction sets and thread counts: each
// instruction set and each thread count gives the bits of the generic one on one thread. All buffers are exactly sized
// and on the heap, for ASan and UBSan to watch. `engine_test digests` says instead what the bits are, for a test that
// compares kinds of processors.
#include <array>
#include <cstdio>
#include <cstdlib>

#include "../../csrc/cpu/engine.h"
#include "operands.h"

using namespace fusedopt;
using namespace operands;

namespace {

#if defined(__SANITIZE_ADDRESS__) || defined(ENGINE_TEST_FEW)
constexpr bool kFew = true;
#else
constexpr bool kFew = false;
#endif
constexpr int64_t kLongest = 300'001;  // enough for teams of threads

struct Job {
  std::string rule;
  std::vector<double> hypers;
  Mix mix;
  bool strided;
  const std::vector<int64_t>& sizes;
};

struct Operand {
  Bytes bytes;
  Dtype dtype;
};

// Numbers to begin with, of each storage, positive or of either sign: the operands are copies of their first elements,
// from another place in each.
const Bytes& numbers(Dtype dtype, bool is_state) {
  static const std::vector<Bytes> all = [] {
    std::vector<Bytes> made;
    for (const Dtype dtype : {Dtype::f32, Dtype::f64, Dtype::bf16, Dtype::f16}) {
      std::mt19937 random(7);
      for (const bool is_state : {false, true})
        made.push_back(random_operand(random, dtype, 3 * kLongest + 1000, !is_state));
    }
    return made;
  }();
  return all[2 * static_cast<int>(dtype) + is_state];
}

// What follows from the sums of all rows, of a joint rule.
cpu::Between conclusion_of(const Rule& rule, const std::vector<Row>& rows, std::vector<double> hypers) {
  if (!rule.joint) return {};
  return [&rule, &rows, hypers](const std::vector<cpu::ChunkSums>& sums) {
    const std::vector<double> of_rows = by_slot(rule, rows, sums);
    double total[kMaxSums];
    rule.add_up(of_rows.data(), static_cast<int64_t>(of_rows.size() / rule.sums), total);
    for (const Row& row : rows) {
      std::vector<double> kept = hypers;
      rule.conclude[row.param_dtype == Dtype::f64](total, kept.data(), row.scalars);
    }
  };
}

// Two steps over fresh copies of the same operands; returns all the memory afterwards.
std::vector<Operand> run(const Job& job, const char* isa, int threads) {
  cpu::use_isa(isa);
  const Rule& rule = *cpu::find_rule(job.rule);
  const int variant = rule.variant(job.hypers.data());
  const int64_t stride = job.strided ? 3 : 1;
  std::vector<Operand> memory;
  std::vector<Layout> layouts(job.sizes.size());
  double counters[kMaxCounters] = {}, prepared[2][kMaxScalars] = {};
  for (int k = 0; k < rule.counters; ++k) counters[k] = rule.initial_counter(job.hypers.data(), k);
  for (int step = 0; step < 2; ++step) {
    prepared[step][0] = step == 0 ? 0.5 : -1;
    rule.prepare(job.hypers.data(), counters, step == 0, prepared[step] + 1);
  }
  std::vector<Row> rows;
  // A rule that has sums changes each row's own.
  std::vector<double> scalars(job.sizes.size() * kMaxScalars);
  std::vector<std::array<double, kMaxCounters>> after(job.sizes.size());
  int64_t work = 0;
  for (size_t r = 0; r < job.sizes.size(); ++r) {
    const int64_t n = job.sizes[r];
    Row row{};
    const auto operand = [&](Dtype dtype, int64_t by, bool is_state = false) {
      Bytes bytes(span(1, &n, &by) * element_size(dtype));
      const size_t shift = memory.size() % 997 * element_size(dtype);
      std::memcpy(bytes.data.get(), numbers(dtype, is_state).data.get() + shift, bytes.size);
      memory.push_back({std::move(bytes), dtype});
      return static_cast<void*>(memory.back().bytes.data.get());
    };
    row.param = operand(row.param_dtype = job.mix.param, stride);
    row.grad = operand(row.grad_dtype = job.mix.grad, 1);
    for (int k = 0; k < rule.states; ++k)
      if (rule.keeps(variant, k)) row.state[k] = operand(row.state_dtype[k] = job.mix.state, 1, true);
    row.numel = n;
    row.slot = static_cast<uint32_t>(r);
    row.variant = static_cast<uint8_t>(variant);
    row.work_end = work += n + cpu::kRowOverhead;
    row.scalars = scalars.data() + r * kMaxScalars;
    if (job.strided && n > 0) {
      layouts[r].dims = 1;
      layouts[r].size[0] = n;
      for (auto& s : layouts[r].stride) s[0] = 1;
      layouts[r].stride[kParam][0] = stride;
      row.layout = &layouts[r];
    }
    rows.push_back(row);
  }
  for (int step = 0; step < 2; ++step) {
    for (size_t r = 0; r < rows.size(); ++r) {
      std::memcpy(rows[r].scalars, prepared[step], sizeof prepared[step]);
      rows[r].counters = after[r].data();
    }
    cpu::sweep(rule, rows.data(), rows.data() + rows.size(), threads, conclusion_of(rule, rows, job.hypers));
  }
  return memory;
}

void expect_equal(const std::vector<Operand>& a, const std::vector<Operand>& b, const Job& job, const char* isa,
                  int threads) {
  for (size_t i = 0; i < a.size(); ++i) {
    if (alike(a[i].bytes, b[i].bytes, a[i].dtype)) continue;
    std::fprintf(stderr, "bits differ: rule %s, %s, %d threads, storages %d %d %d, buffer %zu\n", job.rule.c_str(), isa,
                 threads, static_cast<int>(job.mix.param), static_cast<int>(job.mix.grad),
                 static_cast<int>(job.mix.state), i);
    std::exit(1);
  }
}

// A number that tells the bits of all buffers from others (FNV-1a), where NaNs are alike.
uint64_t digest(const std::vector<Operand>& memory) {
  uint64_t hash = 0xcbf29ce484222325;
  const auto add = [&](unsigned char byte) { hash = (hash ^ byte) * 0x100000001b3; };
  for (const Operand& operand : memory) {
    const size_t size = element_size(operand.dtype);
    for (size_t at = 0; at < operand.bytes.size; at += size) {
      const unsigned char* element = operand.bytes.data.get() + at;
      const bool nan = is_nan(operand.dtype, element);
      for (size_t i = 0; i < size; ++i) add(nan ? 0xff : element[i]);
    }
  }
  return hash;
}

// Whoever adds a rule or a variant adds it to the list.
void expect_all_variants() {
  for (const Rule* rule : cpu::built_rules()) {
    std::vector<bool> listed(rule->variants);
    for (const auto& [name, hypers] : kVariants) {
      if (name != rule->name) continue;
      if (static_cast<int>(hypers.size()) != rule->hypers) {
        std::fprintf(stderr, "operands.h gives %s %zu numbers, it has %d\n", rule->name, hypers.size(), rule->hypers);
        std::exit(1);
      }
      listed[rule->variant(hypers.data())] = true;
    }
    for (size_t variant = 0; variant < listed.size(); ++variant) {
      if (listed[variant]) continue;
      std::fprintf(stderr, "operands.h has no variant %zu of %s\n", variant, rule->name);
      std::exit(1);
    }
  }
}

}  // namespace

// With a number every so many of the jobs are done, others of each rule.
int main(int argc, char** argv) {
  const bool digests = argc > 1 && std::strcmp(argv[1], "digests") == 0;
  const int one_in = argc > 1 && !digests ? std::atoi(argv[1]) : 1;
  int jobs = 0;
  expect_all_variants();
  // Every size there is up to past two vectors' unrolled rounds; and some around what engines count in.
  std::vector<int64_t> every, some;
  for (int64_t n = 0; n <= 1100; n += kFew && n >= 70 ? 53 : 1) every.push_back(n);
  for (const int64_t edge : {8, 16, 32, 64, 128, 256, 512, 1024})
    for (const int64_t n : {edge - 1, edge, edge + 1}) some.push_back(n);
  every.push_back(kFew ? 40'001 : kLongest);
  some.insert(some.end(), {1, 2, 3, 5, 40'001});

  const std::vector<Dtype> storages = {Dtype::f32, Dtype::f64, Dtype::bf16, Dtype::f16};
  std::vector<Mix> mixes;
  for (const Dtype param : storages)
    for (const Dtype grad : storages)
      for (const Dtype state : storages) mixes.push_back({param, grad, state});
  if (kFew) mixes = kMixes;

  int checked = 0;
  for (const auto& [rule, hypers] : kVariants) {
    for (const Mix& mix : mixes) {
      const bool in_every_size = kFew || (mix.param == mix.grad && mix.param == mix.state);
      for (const bool strided : {false, true}) {
        if (jobs++ % one_in != 0) continue;
        const Job job{rule, hypers, mix, strided, in_every_size ? every : some};
        const auto expected = run(job, "generic", 1);
        if (digests) {
          std::printf("%s %d %d %d %d %016llx\n", rule.c_str(), static_cast<int>(mix.param), static_cast<int>(mix.grad),
                      static_cast<int>(mix.state), strided, static_cast<unsigned long long>(digest(expected)));
          continue;
        }
        const auto check = [&](const char* isa, int threads) {
          expect_equal(run(job, isa, threads), expected, job, isa, threads);
          ++checked;
        };
        const char* widest = nullptr;
        for (const cpu::Isa& isa : cpu::built_isas()) {
          if (!isa.supported) continue;
          // What is expected is generic's own, which alone is run again: where nothing is wider, to be run at all.
          widest = isa.name;
          if (std::strcmp(widest, "generic") != 0) check(widest, 1);
        }
        // How a sweep is divided does not depend on where elements lie.
        if (in_every_size)
          for (const int threads : {2, 3})
            if (threads == 3 || !strided || one_in == 1) check(widest, threads);
      }
    }
  }
  if (!digests) std::printf("%d sweeps, no bit differs\n", checked);
}
