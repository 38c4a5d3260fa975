// Sweeps every rule, variant, storage mix, layout, instruction set and thread count over exactly sized heap buffers,
// for ASan and UBSan to watch; also checks that every instruction set and thread count gives the bits of the generic
// one.
#include <cstdio>
#include <cstdlib>

#include "../../csrc/cpu/engine.h"
#include "operands.h"

using namespace fusedopt;
using namespace operands;

namespace {

struct Job {
  std::string rule;
  std::vector<double> hypers;
  Mix mix;
  bool strided;
  std::vector<int64_t> sizes;
};

// Two steps over fresh copies of the same operands; returns all the memory afterwards.
std::vector<Bytes> run(const Job& job, const char* isa, int threads) {
  cpu::use_isa(isa);
  const Rule& rule = *cpu::find_rule(job.rule);
  const int variant = rule.variant(job.hypers.data());
  const int64_t stride = job.strided ? 3 : 1;
  std::mt19937 random(7);
  std::vector<Bytes> memory;
  std::vector<Layout> layouts(job.sizes.size());
  double counters[kMaxCounters] = {}, scalars[2][kMaxScalars] = {};
  for (int step = 0; step < 2; ++step) {
    scalars[step][0] = step == 0 ? 0.5 : -1;
    rule.prepare(job.hypers.data(), counters, step == 0, scalars[step] + 1);
  }
  std::vector<Row> rows;
  int64_t work = 0;
  for (size_t r = 0; r < job.sizes.size(); ++r) {
    const int64_t n = job.sizes[r];
    Row row{};
    const auto operand = [&](Dtype dtype, int64_t by) {
      memory.push_back(random_operand(random, dtype, span(1, &n, &by)));
      return static_cast<void*>(memory.back().data.get());
    };
    row.param = operand(row.param_dtype = job.mix.param, stride);
    row.grad = operand(row.grad_dtype = job.mix.grad, 1);
    for (int k = 0; k < rule.states; ++k)
      if (rule.keeps(variant, k)) row.state[k] = operand(row.state_dtype[k] = job.mix.state, 1);
    row.numel = n;
    row.variant = variant;
    row.work_end = work += n + cpu::kRowOverhead;
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
    for (Row& row : rows) row.scalars = scalars[step];
    cpu::sweep(rule, rows.data(), rows.data() + rows.size(), threads);
  }
  return memory;
}

void expect_equal(const std::vector<Bytes>& a, const std::vector<Bytes>& b, const Job& job, const char* isa,
                  int threads) {
  for (size_t i = 0; i < a.size(); ++i) {
    if (a[i] == b[i]) continue;
    std::fprintf(stderr, "bits differ: rule %s, %s, %d threads, buffer %zu\n", job.rule.c_str(), isa, threads, i);
    std::exit(1);
  }
}

}  // namespace

int main() {
  std::vector<int64_t> sizes;
  for (int64_t n = 0; n <= 2 * 512 + 1; n += n < 70 ? 1 : 53) sizes.push_back(n);
  sizes.insert(sizes.end(), {511, 512, 513, 1023, 1024, 1025, 40'001});

  int checked = 0;
  for (const auto& [rule, hypers] : kVariants) {
    for (const Mix& mix : kMixes) {
      for (const bool strided : {false, true}) {
        const Job job{rule, hypers, mix, strided, sizes};
        const std::vector<Bytes> expected = run(job, "generic", 1);
        for (const cpu::Isa& isa : cpu::built_isas()) {
          if (!isa.supported) continue;
          for (const int threads : {1, 2, 3}) {
            expect_equal(run(job, isa.name, threads), expected, job, isa.name, threads);
            ++checked;
          }
        }
      }
    }
  }
  std::printf("%d sweeps, no bit differs\n", checked);
}
