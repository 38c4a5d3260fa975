// The build says which instruction sets it links objects of: FUSEDOPT_ISAS(do) is do(isa) for each, narrowest first.
#include "engine.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>

#include "../adafactor/cpu.h"
#include "../registry.h"
#include "isa.h"
#include "parallel.h"

namespace fusedopt {

std::vector<Registry>& registries() {
  static std::vector<Registry> all = {linked_rules()};
  return all;
}

}  // namespace fusedopt

namespace fusedopt::cpu {
namespace {

const char* g_reason = "";
std::atomic<const Isa*> g_chosen{nullptr};

// Whether this processor has what a set of instructions is compiled for.
bool supports(std::string_view isa) {
#ifdef __x86_64__
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  if (isa == "avx2") return avx2;
  if (isa == "avx512")
    return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
  return isa == "generic";
}

// Calls f(rule) for the rules of the chosen instruction set.
template <class F>
void each_rule(const Registry& registry, F&& f) {
  const std::string_view isa = chosen_isa().name;
  for (const CpuRule* one = registry.cpu; one->rule; ++one)
    if (isa == one->isa) f(one->rule());
}

const Isa* named(std::string_view name) {
  std::string usable;
  for (const Isa& isa : built_isas()) {
    if (name == isa.name && isa.supported) return &isa;
    if (isa.supported) usable += usable.empty() ? isa.name : std::string(", ") + isa.name;
  }
  throw std::invalid_argument("CPU instruction set '" + std::string(name) +
                              "' is not available here; use one of: " + usable);
}

const Isa* choose() {
  if (const char* forced = std::getenv("FUSEDOPT_CPU_ISA"); forced && *forced) {
    g_reason = "FUSEDOPT_CPU_ISA";
    return named(forced);
  }
  g_reason = "the widest that this processor supports";
  const Isa* widest = nullptr;
  std::string built;
  for (const Isa& isa : built_isas()) {
    if (isa.supported) widest = &isa;
    built += std::string(built.empty() ? "" : ", ") + isa.name;
  }
  if (!widest)
    throw std::runtime_error("fusedopt was built for " + built +
                             " alone, which this processor lacks; build it here, or without FUSEDOPT_ISAS=native");
  return widest;
}

int64_t begin_of(const Row&) { return 0; }
int64_t begin_of(const Part& part) { return part.begin; }
template <class R>
int64_t length(const R& row) {
  return row.numel - begin_of(row);
}

// Asks for the first elements of a row: short rows end before the hardware has seen a stream in them.
template <class R>
void prefetch_row(const Rule& rule, const R& row) {
  if (row.layout) return;
  const auto operand = [&](const void* data, Dtype dtype) {
    const char* const from = static_cast<const char*>(data) + begin_of(row) * bits_of(dtype) / 8;
    const int64_t bytes = std::min<int64_t>(length(row) * element_size(dtype), 2048);
    for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(from + at);
  };
  operand(row.param, row.param_dtype);
  operand(row.grad, row.grad_dtype);
  for (int k = 0; k < rule.states; ++k)
    if (row.state[k]) operand(row.state[k], row.state_dtype[k]);
}

// Calls visit(row, begin, end) for the elements of a share, which meets its neighbours on multiples of `grain`.
template <class R, class F>
void visit_share(const Rule& rule, const R* first, const R* last, int64_t from, int64_t to, int64_t grain, F&& visit) {
  const R* row = std::lower_bound(first, last, from + 1, [](const R& r, int64_t work) { return r.work_end < work; });
  for (; row < last; ++row) {
    if (row + 1 < last) prefetch_row(rule, row[1]);
    const int64_t row_begin = row->work_end - length(*row) - kRowOverhead;
    if (row_begin >= to) break;
    const auto cut = [&](int64_t work) {
      const int64_t begin = begin_of(*row), element = begin + work - row_begin;
      return element <= begin ? begin : element >= row->numel ? row->numel : element / grain * grain;
    };
    const int64_t begin = cut(from), end = cut(to);
    if (begin < end) visit(*row, begin, end);
  }
}

// The same for all shares, each on a thread of its own.
template <class R, class F>
void each_share(const Rule& rule, const R* first, const R* last, int threads, int64_t grain, const F& visit) {
  if (first == last) return;
  const int64_t start = first->work_end - length(*first) - kRowOverhead;
  const int64_t work = last[-1].work_end - start;
  parallel(work, threads, [&](int thread, int of) {
    visit_share(rule, first, last, start + work * thread / of, start + work * (thread + 1) / of, grain, visit);
  });
}

// Shares of an update meet between blocks of codes, and so never write to one cache line of a dense aligned tensor.
constexpr int64_t kUpdateGrain = kCodeBlock;

bool is_wide(const Row& row) { return row.param_dtype == Dtype::f64; }

template <class R, class SumsOf>
void measure_all(const Rule& rule, const R* first, const R* last, int threads, const SumsOf& sums_of) {
  each_share(rule, first, last, threads, kChunk, [&](const R& row, int64_t begin, int64_t end) {
    if (!rule.measures(row.variant)) return;
    double* const sums = sums_of(row) + (begin - begin_of(row)) / kChunk * rule.sums;
    rule.measure[row.variant][is_wide(row)](row, begin, end, sums);
  });
}

template <class R>
void update_all(const Rule& rule, const R* first, const R* last, int threads) {
  each_share(rule, first, last, threads, kUpdateGrain,
             [&](const R& row, int64_t begin, int64_t end) { rule.sweep[row.variant][is_wide(row)](row, begin, end); });
}

}  // namespace

const std::vector<Isa>& built_isas() {
#define FUSEDOPT_ROW(isa)                                                                   \
  {#isa, supports(#isa), fusedopt_##isa::history_kernels, fusedopt_##isa::factored_kernels, \
   fusedopt_##isa::norm_kernels},
  static const std::vector<Isa> isas = {FUSEDOPT_ISAS(FUSEDOPT_ROW)};
  return isas;
}

const Isa& chosen_isa() {
  if (!g_chosen) g_chosen = choose();
  return *g_chosen.load();
}

const char* choice_reason() { return chosen_isa(), g_reason; }

void use_isa(std::string_view name) {
  g_chosen = named(name);
  g_reason = "use_isa()";
}

bool multiplies_bfloat16() {
#ifdef __x86_64__
  return __builtin_cpu_supports("avx512bf16");
#else
  return true;
#endif
}

std::vector<const Rule*> built_rules() {
  std::vector<const Rule*> rules;
  each_rule(linked_rules(), [&](const Rule& rule) { rules.push_back(&rule); });
  return rules;
}

const Rule* find_rule(std::string_view name) {
  if (name == factored_rule().name) return &factored_rule();
  const Rule* found = nullptr;
  for (const Registry& registry : registries())
    each_rule(registry, [&](const Rule& rule) {
      if (!found && name == rule.name) found = &rule;
    });
  return found;
}

void conclude(const Rule& rule, const Row& row, const ChunkSums& sums) {
  double total[kMaxSums];
  rule.add_up(sums.sums, sums.chunks, total);
  rule.conclude[is_wide(row)](total, row.counters, row.scalars);
}

void measure(const Rule& rule, const Part* first, const Part* last, int threads,
             const std::function<double*(const Part&)>& sums_of) {
  measure_all(rule, first, last, threads, sums_of);
}

void update(const Rule& rule, const Part* first, const Part* last, int threads) {
  update_all(rule, first, last, threads);
}

void sweep(const Rule& rule, const Row* first, const Row* last, int threads, const Between& between) {
  const auto measures = [&](const Row& row) { return rule.measures(row.variant); };
  // Others may wait for what this process adds to their sums, be it nothing.
  if (rule.sums > 0 && first != last && (between || std::any_of(first, last, measures))) {
    std::vector<int64_t> chunks = {0};  // before each row
    for (const Row* row = first; row < last; ++row)
      // Of an empty shard, too: others have what is added to it.
      chunks.push_back(chunks.back() + (measures(*row) ? std::max<int64_t>(1, (row->numel + kChunk - 1) / kChunk) : 0));
    std::vector<double> sums(chunks.back() * rule.sums);
    const auto of_row = [&](const Row& row) { return sums.data() + chunks[&row - first] * rule.sums; };
    measure_all(rule, first, last, threads, of_row);
    std::vector<ChunkSums> of_all;
    for (const Row* row = first; row < last; ++row)
      of_all.push_back({of_row(*row), chunks[row - first + 1] - chunks[row - first]});
    for (ChunkSums& its : of_all) {
      if (!rule.joint || its.chunks == 0) continue;
      double total[kMaxSums];
      rule.add_up(its.sums, its.chunks, total);
      std::copy_n(total, rule.sums, its.sums);
      its.chunks = 1;
    }
    if (between) between(of_all);
    for (const Row* row = first; row < last && !rule.joint; ++row)
      if (measures(*row)) conclude(rule, *row, of_all[row - first]);
  }
  update_all(rule, first, last, threads);
}

void in_shares(int64_t count, int64_t work, int threads, const std::function<void(int64_t, int64_t)>& visit) {
  parallel(work, threads, [&](int thread, int of) { visit(count * thread / of, count * (thread + 1) / of); });
}

void adam_traffic(float* p, const float* g, float* m, float* v, int64_t n, int threads) {
  parallel(std::numeric_limits<int64_t>::max(), threads, [&](int thread, int of) {
    const int64_t end = n * (thread + 1) / of;
#pragma GCC ivdep
    for (int64_t i = n * thread / of; i < end; ++i) {
      const float first = m[i] + g[i], second = v[i] + g[i];
      m[i] = first;
      v[i] = second;
      p[i] += first + second;
    }
  });
}

}  // namespace fusedopt::cpu
