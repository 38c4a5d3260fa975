// Steps the emulated CUDA engine and the CPU engine side by side over exactly sized heap buffers, for the sanitizers to
// watch; after each step all memory must be equal to the bit. One optimizer has params of every variant of a rule, mix
// of storages, placement in memory and awkward size; it grows, leaves params out, skips steps and is captured.
#include <algorithm>
#include <cmath>
#include <exception>
#include <set>

#include "../../csrc/cpu/engine.h"
#include "../../csrc/cuda/engine.h"
#include "../cuda_emulator/emulator.h"
#include "worlds.h"

using namespace fusedopt;
using namespace operands;

namespace {

// ThreadSanitizer runs each thread of a block as a thread of the system, which takes a thousand times as long.
#ifdef __SANITIZE_THREAD__
constexpr bool kFew = true;
#else
constexpr bool kFew = false;
#endif

struct Options {
  size_t groups;    // the first of them take part
  unsigned one_in;  // of their params
  double multiplier = 1;
  const Cell *grad_scale = nullptr, *found_inf = nullptr;
  size_t idle_groups = 0;  // beside the others, no param of theirs takes part
};

class Trial {
 public:
  Trial(const char* rule, bool numbers_on_device, uint64_t seed, int one_in)
      : rule_(*cpu::find_rule(rule)), on_device_(numbers_on_device), one_in_(one_in) {
    cuda_emulator::reset();
    cuda_emulator::set_seed(seed);
    for (const Variant& variant : kVariants)
      if (variant.rule == rule) hypers_.push_back(variant.hypers);
    for (size_t group = 0; group < hypers_.size(); ++group) {
      rates_.emplace_back(group % 2 == 0 ? Dtype::f32 : Dtype::f64, 0);
      numbers_.emplace_back();
      for (int i = 0; i < rule_.hypers; ++i) {
        numbers_[group].push_back({hypers_[group][i]});
        if (!rule_.joint || rule_.scopes[i] != Scope::kept) continue;
        kept_.emplace_back(Dtype::f64, hypers_[group][i]);
        numbers_[group][i] = kept_.back().number();
      }
      set_rate(group, 0.1);
      add_params(static_cast<int>(group));
    }
    for (const Param& param : params_)
      for (int c = 0; c < rule_.counters; ++c) {
        const double initial = rule_.initial_counter(hypers_[param.group].data(), c);
        counters_.emplace_back(counters_.size() % 3 == 0 ? Dtype::f64 : Dtype::f32, initial);
        counts_.push_back(counters_.back().get());
      }
    for (const double hyper : hypers_[0]) idle_.push_back({hyper});
    cpu_ = make_world(rule_, params_, hypers_);
    cuda_ = make_world(rule_, params_, hypers_);
    has_state_.resize(params_.size());
  }

  size_t groups() const { return hypers_.size(); }
  size_t params() const { return params_.size(); }

  void set_rate(size_t group, double rate) {
    rates_[group].set(rate);
    hypers_[group][0] = on_device_ ? rates_[group].get() : rate;
    numbers_[group][0] = on_device_ ? rates_[group].number() : Number{rate};
  }

  // One step of both engines.
  void step(const Options& options) {
    compose(options);
    expect(!cuda::ready(kPlace, rule_), "nothing is captured");
    bound_.provide(step_);
    bound_.table.launch(step_, kPlace);
    step_cpu();
    check();
  }

  // A step on the device is recorded once, then run twice, then twice with other learning rates.
  void capture(const Options& options) {
    Bound captured;
    compose(options);
    const cudaStream_t stream = static_cast<cudaStream_t>(kPlace.stream);
    cuda_emulator::begin_capture(stream);
    expect(cuda::ready(kPlace, rule_), "a capture is seen");
    captured.provide(step_);
    captured.table.send(step_, kAside);
    cuda::synchronize(kAside);
    captured.table.launch(step_, kPlace);
    const int graph = cuda_emulator::end_capture(stream);
    expect(graph >= 0, "the step can be captured");
    for (const double rate : {0.1, 0.025}) {
      for (size_t group = 0; group < options.groups; ++group) set_rate(group, rate);
      captured.table.send_groups(step_, kPlace);
      for (int i = 0; i < 2; ++i) {
        expect(cuda_emulator::replay(graph) == cudaSuccess, "the graph runs");
        step_cpu();
        check();
      }
    }
  }

 private:
  inline static const cuda::Place kPlace = {0, reinterpret_cast<void*>(1)}, kAside = {0, reinterpret_cast<void*>(2)};

  // Sizes on both sides of a lane's vector, a warp's tile, two of them, and the chunk that a warp takes.
  void add_params(int group) {
    std::vector<int64_t> sizes = {0,   1,   7,   31,  32,  33,   63,   64,   65,   127,  128,  129,
                                  255, 256, 257, 511, 512, 1023, 1024, 1025, 2047, 2048, 2049, 5000};
    std::vector<int64_t> strided = {0, 1, 36, 1024, 1025, 2050};
    if (kFew) sizes = {0, 33, 1029}, strided = {1025};
    for (size_t mix = 0; mix < kMixes.size(); ++mix)
      for (int place = kDense; place < kPlaces; ++place) {
        const std::vector<int64_t>& its = place <= kOffset ? sizes : strided;
        for (size_t size = 0; size < its.size(); ++size)
          // Of each mix in each place so many sizes; others in the next place, for the next mix and the next variant.
          if ((mix + place + size + group) % one_in_ == 0)
            params_.push_back({group, kMixes[mix], static_cast<Place>(place), its[size]});
      }
  }

  // Entries and rows of a step, for either engine.
  void compose(const Options& options) {
    options_ = options;
    step_ = {};
    step_.rule = &rule_;
    for (size_t group = 0; group < options.groups; ++group)
      step_.groups.push_back({numbers_[group].data(), group % 2 == 0 ? 1.0 : -1.0});
    for (size_t i = 0; i < options.idle_groups; ++i) step_.groups.push_back({idle_.data(), 1});
    step_.slots = 0;
    leaders_.clear();
    cpu_rows_.clear();
    const std::vector<Row> before = std::move(cuda_rows_);
    cuda_rows_.clear();
    int64_t work = 0;
    for (size_t slot = 0; slot < params_.size(); ++slot) {
      const Param& param = params_[slot];
      if (static_cast<size_t>(param.group) >= options.groups) break;
      ++step_.slots;
      if (slot % options.one_in != 0) continue;
      cuda::Entry entry = {param.group, !has_state_[slot], param.mix.param == Dtype::f64, {}};
      for (int c = 0; c < rule_.counters; ++c) {
        const Cell& counter = counters_[slot * rule_.counters + c];
        entry.counter[c] = counts_there() ? counter.number() : Number{counter.get()};
      }
      const cuda::Entry* last = step_.entries.empty() ? nullptr : &step_.entries.back();
      if (!last || last->group != entry.group || last->first != entry.first || last->wide != entry.wide ||
          !std::equal(entry.counter, entry.counter + rule_.counters, last->counter) ||
          (rule_.measures(cuda_.rows[slot].variant) && !rule_.joint)) {
        step_.entries.push_back(entry);
        leaders_.push_back(slot);
      }
      for (World* world : {&cpu_, &cuda_}) world->rows[slot].entry = static_cast<uint32_t>(step_.entries.size() - 1);
      cpu_.rows[slot].work_end = work += param.numel + cpu::kRowOverhead;
      cpu_rows_.push_back(cpu_.rows[slot]);
      cuda_rows_.push_back(cuda_.rows[slot]);
    }
    const auto alike = [](const Row& a, const Row& b) { return a.slot == b.slot && a.entry == b.entry; };
    rows_version_ += !std::equal(before.begin(), before.end(), cuda_rows_.begin(), cuda_rows_.end(), alike);
    step_.rows_version = rows_version_;
    step_.first = cuda_rows_.data();
    step_.last = cuda_rows_.data() + cuda_rows_.size();
    step_.multiplier = options.multiplier;
    if (options.grad_scale) step_.grad_scale = options.grad_scale->number();
    if (options.found_inf) {
      step_.found_inf = options.found_inf->number();
      skipped_ = std::make_unique<uint32_t>(7);
      step_.skipped = skipped_.get();
    }
  }

  bool skips() const { return options_.found_inf && options_.found_inf->get() != 0; }

  // The counters' cells stand for those that only the host has, too; it brings them up to date here, after the device
  // has.
  void step_cpu() {
    if (skips()) return;
    std::vector<double> scalars(step_.entries.size() * kMaxScalars);
    std::vector<double> after(step_.entries.size() * kMaxCounters);
    for (size_t e = 0; e < step_.entries.size(); ++e) {
      const cuda::Entry& entry = step_.entries[e];
      double* const counters = &after[e * kMaxCounters];
      for (int c = 0; c < rule_.counters; ++c) counters[c] = counts(leaders_[e], c);
      double* const numbers = &scalars[e * kMaxScalars];
      const double multiplier =
          options_.grad_scale ? options_.multiplier / options_.grad_scale->get() : options_.multiplier;
      numbers[0] = step_.groups[entry.group].sign * multiplier;
      rule_.prepare(hypers_[entry.group].data(), counters, entry.first, numbers + 1);
    }
    for (Row& row : cpu_rows_) {
      row.scalars = &scalars[row.entry * kMaxScalars];
      row.counters = &after[row.entry * kMaxCounters];
      has_state_[row.slot] = true;
    }
    const cpu::Between together = [&](const std::vector<cpu::ChunkSums>& sums) {
      const std::vector<double> of_slots = by_slot(rule_, cpu_rows_, sums);
      double total[kMaxSums], unused[kMaxScalars] = {};
      rule_.add_up(of_slots.data(), static_cast<int64_t>(of_slots.size() / rule_.sums), total);
      for (size_t e = 0; e < step_.entries.size(); ++e) {
        std::vector<double> hypers = hypers_[step_.entries[e].group];
        rule_.conclude[step_.entries[e].wide](total, hypers.data(), &scalars[e * kMaxScalars]);
      }
      for (size_t group = 0; group < options_.groups; ++group) rule_.conclude[1](total, hypers_[group].data(), unused);
    };
    cpu::sweep(rule_, cpu_rows_.data(), cpu_rows_.data() + cpu_rows_.size(), 1,
               rule_.joint ? together : cpu::Between());
    keep();
    for (const Row& row : cpu_rows_) {
      for (int c = 0; c < rule_.counters; ++c) {
        const size_t at = row.slot * rule_.counters + c;
        counts_[at] = counters_[at].rounded(after[row.entry * kMaxCounters + c]);
        if (!counts_there()) counters_[at].set(counts_[at]);
      }
    }
  }

  // What a rule remembers of sums a device has to keep where it makes them.
  bool counts_there() const { return on_device_ || rule_.remembers; }

  // What groups keep of a joint rule's step: here as the device has it, which a host without it never sees.
  void keep() {
    if (!rule_.joint) return;
    for (size_t group = 0; group < options_.groups; ++group) {
      for (int i = 0; i < rule_.hypers; ++i) {
        if (rule_.scopes[i] != Scope::kept) continue;
        const double number = *static_cast<const double*>(numbers_[group][i].device);
        expect(number == hypers_[group][i], "groups keep the same");
      }
    }
  }

  double counts(size_t slot, int c) const { return counts_[slot * rule_.counters + c]; }

  // After each run of a step or of a graph.
  void check() {
    ++runs_;
    for (size_t i = 0; i < cpu_.memory.size(); ++i) {
      if (cpu_.memory[i] == cuda_.memory[i]) continue;
      const auto [slot, operand] = cpu_.owners[i];
      const Param& param = params_[slot];
      std::fprintf(stderr, "bits differ: %s, run %d, group %d, place %d, %lld elements, operand %d\n", rule_.name,
                   runs_, param.group, param.place, static_cast<long long>(param.numel), operand);
      std::exit(1);
    }
    for (size_t i = 0; i < counters_.size(); ++i)
      expect(counters_[i].get() == counts(i / rule_.counters, static_cast<int>(i % rule_.counters)), "counters agree");
    if (options_.found_inf) expect(*skipped_ == skips(), "the flag tells whether the step was skipped");
    expect(cuda_emulator::last_message().empty(), "no kernel failed");
  }

  const Rule& rule_;
  bool on_device_;
  int one_in_;                                // of a param's sizes
  std::vector<std::vector<double>> hypers_;   // of each group, as the CPU sees them
  std::vector<std::vector<Number>> numbers_;  // as the device does
  std::vector<Number> idle_;                  // of groups without params
  std::deque<Cell> rates_, counters_, kept_;
  std::vector<double> counts_;
  std::vector<Param> params_;
  std::vector<bool> has_state_;
  World cpu_, cuda_;
  Options options_ = {};
  int runs_ = 0;
  Bound bound_;
  cuda::Step step_;
  std::unique_ptr<uint32_t> skipped_;
  uint64_t rows_version_ = 0;
  std::vector<size_t> leaders_;  // a slot of each entry
  std::vector<Row> cpu_rows_, cuda_rows_;
};

size_t run(const char* rule, bool on_device, uint64_t seed, int one_in) {
  Trial trial(rule, on_device, seed, one_in);
  const size_t all = trial.groups();
  const Cell scale(Dtype::f32, 1024), finite(Dtype::f32, 0), infinite(Dtype::f32, 1);
  trial.step({1, 1});
  trial.step({all, 1, 0.5});  // more groups and more params than the table was made for
  trial.step({all, 3, -1});
  trial.set_rate(0, 0.05);
  trial.step({all, 1, 1, nullptr, &infinite});
  trial.step({all, 2, 1, &scale, &finite});
  if (on_device) trial.capture({all, 2, 1, &scale, &finite});
  trial.step({all, 1});
  trial.step({all, 1});  // with device counters, nothing that the table does not know
  for (size_t groups = 1; groups < 4; ++groups) trial.step({all, 2, 1, nullptr, nullptr, groups});
  return trial.params();
}

}  // namespace

// With two numbers every so many of the runs are made, others of each rule, with every so many of the sizes, others of
// each mix, place and variant.
int main(int count, char** given) {
  const int one_in = count > 1 ? std::atoi(given[1]) : 1, of_sizes = count > 2 ? std::atoi(given[2]) : 1;
  int runs = 0;
  cpu::use_isa("generic");
  try {
    size_t params = 0;
    std::set<std::string> rules;
    for (const Variant& variant : kVariants)
      if (!kFew || variant.rule == "adam" || variant.rule == "lamb") rules.insert(variant.rule);
    for (const std::string& rule : rules) {
      for (const bool on_device : {false, true})
        // Blocks and threads in the order of their numbers; for some, in others, too.
        for (const uint64_t seed : {0, 1, 2})
          if (seed == 0 || (!kFew && (rule == "sgd" || rule == "adam" || rule == "rmsprop")))
            params += runs++ % one_in == 0 ? run(rule.c_str(), on_device, seed, of_sizes) : 0;
      runs += one_in % 2 == 0;  // so that the next rule has its numbers where this one had not
    }
    std::printf("%zu params on the emulated device, no bit differs from the CPU\n", params);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
