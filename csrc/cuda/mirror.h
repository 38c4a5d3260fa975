// The host's copy of a table: what the device has been told, and which words of a step it has yet to be.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "../adafactor/cuda_table.h"
#include "engine.h"
#include "table.h"

namespace fusedopt::cuda {

class Mirror {
 public:
  // The rows that one update launch serves.
  struct Launch {
    int kernel;
    bool measures;
    uint32_t starts, chunks, sums, totals;
  };

  // Finds room for everything in a step; `kernel_of` names the update kernel of a row. Returns 0, or the words that the
  // table takes if it has to begin anew, all zero.
  template <class F>
  size_t reserve(const Step& step, F&& kernel_of) {
    const Rule& rule = *step.rule;
    if (!lost_ && rows_version_ != 0 && step.rows_version == rows_version_ && step.entries.size() <= entries_ &&
        step.groups.size() <= groups_)
      return 0;
    rows_version_ = 0;
    entries_ = step.entries.size();
    groups_ = step.groups.size();
    launches_.clear();
    launch_of_.clear();
    size_t layouts = 0, extras = 0, sums = 0, rows = step.slots * row_words(rule.states), starts = 0;
    if (step.factored) {
      rows = (step.last - step.first) * fusedopt_cuda::kFactoredWords;
      starts = fusedopt_cuda::kFactoredStarts * starts_words(step.last - step.first);
      uint32_t taken = 0;
      for (const Row* row = step.first; row < step.last; ++row)
        fusedopt_cuda::FactoredEntry(step.factored[row - step.first], taken);
      sums = taken;
    }
    for (const Row* row = step.first; row < step.last && !step.factored; ++row) {
      const int kernel = kernel_of(*row);
      size_t launch = 0;
      while (launch < launches_.size() && launches_[launch].kernel != kernel) ++launch;
      if (launch == launches_.size()) launches_.push_back({kernel, rule.measures(row->variant), 0, 0, 0, 0});
      if (rule.measures(row->variant)) sums += chunks_of(*row, step) * rule.sums;
      launch_of_.push_back(static_cast<uint8_t>(launch));
      if (row->layout) layouts += layout_words(row->layout->dims, rule.states);
      if (row->extras) extras += extras_words(rule.states);
    }
    if (!step.factored) starts = launches_.size() * starts_words(step.slots);
    if (rule.joint) sums += launches_.size() * step.slots * rule.sums;
    const size_t need[kSections] = {step.groups.size() * group_words(rule.hypers),
                                    step.entries.size() * entry_words(rule.counters),
                                    rows,
                                    starts,
                                    layouts,
                                    extras,
                                    step.entries.size() * scalar_words(rule.scalars),
                                    sums};
    const bool fits = std::equal(need, need + kSections, capacity_, [](size_t n, size_t c) { return n <= c; });
    if (fits && !lost_) return 0;
    size_t end = 2;  // a layout that starts at word 0 means that there is none
    for (int s = 0; s < kSections; ++s) {
      if (need[s] > capacity_[s]) capacity_[s] = (need[s] + need[s] / 4 + 1) / 2 * 2;
      begin_[s] = static_cast<uint32_t>(end);
      end += capacity_[s];
    }
    known_.assign(begin_[kScalars], 0);  // what follows the device writes itself
    drop();
    lost_ = true;
    return end;
  }

  // After a launch failed nobody can say what the device has; new memory is all zero.
  void lose() { lost_ = true; }
  void find() { lost_ = false; }

  // Notes the words of a step that the device does not have.
  void compose(const Step& step) {
    compose_groups(step);
    compose_entries(step);
    if (step.rows_version != rows_version_ || rows_version_ == 0)
      step.factored ? compose_factored(step) : compose_rows(step);
    rows_version_ = step.rows_version;
  }

  void compose_groups(const Step& step) {
    const int hypers = step.rule->hypers;
    uint32_t at = begin_[kGroups];
    for (const Group& group : step.groups) {
      uint64_t kinds = 0;
      for (int i = 0; i < hypers; ++i) kinds |= kind_of(group.hypers[i]) << (i * kKindBits);
      put(at++, kinds);
      put(at++, bits_of(group.sign));
      for (int i = 0; i < hypers; ++i) put(at++, word_of(group.hypers[i]));
    }
  }

  // Copies as many of the noted words as fit into a launch's parameters; sent() says that the launch took them.
  template <int capacity>
  void fill(Patch<capacity>& patch) const {
    patch.count = static_cast<uint32_t>(std::min<size_t>(noted(), capacity));
    std::memcpy(patch.word, word_.data() + taken_, patch.count * sizeof(uint64_t));
    std::memcpy(patch.at, at_.data() + taken_, patch.count * sizeof(uint32_t));
  }
  void sent(uint32_t count) {
    taken_ += count;
    if (noted() == 0) drop();
  }
  // The noted words will not be sent: the device has what it had.
  void take_back() {
    for (size_t i = word_.size(); i-- > taken_;) known_[at_[i]] = before_[i];
    drop();
  }
  size_t noted() const { return word_.size() - taken_; }

  const std::vector<Launch>& launches() const { return launches_; }
  TableView view(void* memory) const {
    return {static_cast<uint64_t*>(memory), begin_[kGroups], begin_[kEntries], begin_[kRows], begin_[kScalars]};
  }

 private:
  enum Section { kGroups, kEntries, kRows, kStarts, kLayouts, kExtras, kScalars, kSums, kSections };

  static uint64_t bits_of(double number) {
    uint64_t word;
    std::memcpy(&word, &number, sizeof(word));
    return word;
  }
  static uint64_t word_of(const Number& number) {
    return number.device ? reinterpret_cast<uint64_t>(number.device) : bits_of(number.value);
  }
  static uint64_t kind_of(const Number& number) { return number.device ? cuda::kind_of(number.dtype) : kImmediate; }
  static uint64_t halves(uint64_t low, uint64_t high) { return high << 32 | low; }
  // A part without elements has a chunk for the whole's sums, of which its rule remembers what all processes do.
  static uint32_t chunks_of(const Row& row, const Step& step) {
    if (row.numel == 0) return step.exchange && step.rule->remembers ? 1 : 0;
    return static_cast<uint32_t>((row.numel + kChunk - 1) / kChunk);
  }
  static uint32_t starts_words(size_t rows) { return static_cast<uint32_t>((rows + 2) / 2); }

  void put(uint32_t at, uint64_t word) {
    if (known_[at] == word) return;
    before_.push_back(known_[at]);
    known_[at] = word;
    at_.push_back(at);
    word_.push_back(word);
  }
  void drop() {
    at_.clear();
    word_.clear();
    before_.clear();
    taken_ = 0;
  }

  void compose_entries(const Step& step) {
    const int counters = step.rule->counters;
    uint32_t at = begin_[kEntries];
    for (const Entry& entry : step.entries) {
      uint64_t flags = (entry.first ? kFirst : 0) | (entry.wide ? kWide : 0);
      for (int c = 0; c < counters; ++c) flags |= kind_of(entry.counter[c]) << (kCounterKinds + c * kKindBits);
      put(at++, halves(entry.group, flags));
      for (int c = 0; c < counters; ++c) put(at++, word_of(entry.counter[c]));
    }
  }

  void compose_rows(const Step& step) {
    const int states = step.rule->states, stride = row_words(states);
    const uint32_t words = starts_words(step.slots);
    starts_.assign(launches_.size() * words * 2, 0);
    next_.assign(launches_.size(), 0);
    for (Launch& launch : launches_) launch.chunks = 0;
    uint32_t layout = begin_[kLayouts], extras = begin_[kExtras];
    const uint8_t* index = launch_of_.data();
    for (const Row* row = step.first; row < step.last; ++row, ++index) {
      uint32_t* starts = starts_.data() + *index * words * 2;
      // The slots since the last row have no chunks here.
      for (uint32_t& next = next_[*index]; next <= row->slot;) starts[next++] = launches_[*index].chunks;
      launches_[*index].chunks += chunks_of(*row, step);

      uint8_t dtypes[8] = {static_cast<uint8_t>(row->param_dtype), static_cast<uint8_t>(row->grad_dtype)};
      for (int k = 0; k < states; ++k) dtypes[2 + k] = static_cast<uint8_t>(row->state_dtype[k]);
      uint64_t dtypes_word;
      std::memcpy(&dtypes_word, dtypes, sizeof(dtypes_word));
      uint32_t at = begin_[kRows] + row->slot * stride;
      put(at++, reinterpret_cast<uint64_t>(row->param));
      put(at++, reinterpret_cast<uint64_t>(row->grad));
      put(at++, row->numel);
      put(at++, halves(row->entry, row->layout ? layout : 0));
      put(at++, dtypes_word);
      for (int k = 0; k < states; ++k) put(at++, reinterpret_cast<uint64_t>(row->state[k]));
      put(at++, row->extras ? extras : 0);
      if (row->layout) layout = put_layout(*row->layout, states, layout);
      if (row->extras) extras = put_extras(*row, states, extras);
    }
    uint32_t at = begin_[kStarts], sums = begin_[kSums];
    for (size_t l = 0; l < launches_.size(); ++l) {
      uint32_t* starts = starts_.data() + l * words * 2;
      for (uint32_t next = next_[l]; next <= step.slots;) starts[next++] = launches_[l].chunks;
      launches_[l].starts = at;
      launches_[l].sums = sums;
      if (launches_[l].measures) sums += launches_[l].chunks * step.rule->sums;
      for (uint32_t w = 0; w < words; ++w) put(at++, halves(starts[2 * w], starts[2 * w + 1]));
    }
    for (Launch& launch : launches_) {
      launch.totals = sums;
      if (step.rule->joint) sums += static_cast<uint32_t>(step.slots) * step.rule->sums;
    }
  }

  void compose_factored(const Step& step) {
    using namespace fusedopt_cuda;
    const size_t count = step.last - step.first;
    uint32_t at = begin_[kRows], sums = begin_[kSums];
    for (size_t i = 0; i < count; ++i) {
      const FactoredEntry entry(step.factored[i], sums);
      uint64_t words[kFactoredWords];
      std::memcpy(words, &entry, sizeof(words));
      for (const uint64_t word : words) put(at++, word);
    }

    at = begin_[kStarts];
    const auto with_starts = [&](auto&& blocks) {
      starts_.assign(2 * starts_words(count), 0);
      for (size_t i = 0; i < count; ++i) starts_[i + 1] = starts_[i] + static_cast<uint32_t>(blocks(step.factored[i]));
      const Launch launch = {0, false, at, starts_[count], 0, 0};
      for (uint32_t w = 0; w < starts_words(count); ++w) put(at++, halves(starts_[2 * w], starts_[2 * w + 1]));
      return launch;
    };
    Launch of_tiles[kFactoredKinds], of_finishes[kFactoredKinds], of_takes[kFactoredKinds];
    for (int kind = 0; kind < kFactoredKinds; ++kind) {
      of_tiles[kind] =
          with_starts([=](const Factored& t) { return fusedopt_cuda::kind_of(t) == kind ? tiles_of(t) : 0; });
      of_finishes[kind] =
          with_starts([=](const Factored& t) { return fusedopt_cuda::kind_of(t) == kind ? finishes_of(t) : 0; });
      of_takes[kind] =
          with_starts([=](const Factored& t) { return fusedopt_cuda::kind_of(t) == kind ? takes_of(t) : 0; });
    }
    const Launch of_tensors = with_starts([](const Factored&) { return 1; });
    const auto launch_of = [&](int pass, int kind) {
      switch (pass) {
        case kFinish:
          return of_finishes[kind];
        case kTake:
          return of_takes[kind];
        case kLookUp:
          return step.exchange ? of_finishes[kind] : Launch{};
        case kTotal:
          return step.exchange ? of_tensors : Launch{};
        case kConclude:
          return of_tensors;
        default:
          return of_tiles[kind];
      }
    };

    launches_.clear();
    for (int pass = 0; pass < kFactoredPasses; ++pass) {
      for (int kind = 0; kind < kFactoredKinds; ++kind) {
        launches_.push_back(launch_of(pass, kind));
        launches_.back().kernel = pass * kFactoredKinds + kind;
        if (pass == kConclude || pass == kTotal) break;
      }
    }
  }

  uint32_t put_layout(const Layout& layout, int states, uint32_t at) {
    put(at++, layout.dims);
    put(at++, reinterpret_cast<uint64_t>(layout.index));
    for (int d = 0; d < layout.dims; ++d) {
      put(at++, layout.size[d]);
      for (int o = 0; o < kState + states; ++o) put(at++, layout.stride[o][d]);
      put(at++, layout.stride[kPartner][d]);
      put(at++, layout.stride[kAverage][d]);
    }
    return at;
  }

  uint32_t put_extras(const Row& row, int states, uint32_t at) {
    const Extras& extras = *row.extras;
    TableExtras<kMaxStates> out = {};
    out.pair = extras.pair;
    out.partner_dtype = extras.partner_dtype;
    out.average_dtype = extras.average_dtype;
    out.flags = (extras.new_average ? kNewAverage : 0) | (extras.stochastic ? kStochastic : 0) |
                (extras.clears_grad ? kClearsGrad : 0) |
                (extras.numbering.first > 0 || extras.numbering.scattered ? kPart : 0);
    for (int k = 0; k < states; ++k) out.coded |= row.state[k] && is_coded(row.state_dtype[k]) ? 1 << k : 0;
    out.by_chance = extras.states_by_chance;
    out.partner = extras.partner;
    out.average = extras.average;
    out.average_weight = extras.average_weight;
    out.numbering = extras.numbering;
    std::copy_n(extras.scales, states, out.scales);
    uint64_t words[extras_words(kMaxStates)];
    std::memcpy(words, &out, sizeof(words));
    for (int w = 0; w < extras_words(states); ++w) put(at++, words[w]);
    return at;
  }

  uint64_t rows_version_ = 0;        // of the rows in the table; 0: none
  size_t entries_ = 0, groups_ = 0;  // that the last reserve() had room made for
  size_t capacity_[kSections] = {};
  uint32_t begin_[kSections] = {};
  std::vector<uint64_t> known_;
  bool lost_ = true;
  std::vector<uint32_t> at_;  // the noted words, of which `taken_` are on their way
  std::vector<uint64_t> word_, before_;
  size_t taken_ = 0;
  std::vector<Launch> launches_;
  std::vector<uint8_t> launch_of_;       // for each row
  std::vector<uint32_t> starts_, next_;  // of all launches; the first slot of each that is not yet filled
};

}  // namespace fusedopt::cuda
