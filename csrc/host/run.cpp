// The passes of a step, and what processes have to tell each other in the middle of one.
#include "plan.h"

namespace fusedopt {

// prepare() once for each run of rows with the same hyper-parameters and counters, which is nearly always all of them.
// Where a device has the counters it does this, too.
void Plan::prepare_rows(const Pass& pass) {
  std::vector<cuda::Entry>& entries = work_.step.entries;
  entries.clear();
  work_.prepared.clear();
  const Rule& rule = this->rule();
  const std::vector<Group>& groups = roster_.groups();
  bool changed = false;
  const cuda::Entry* known = nullptr;  // the last of them
  uint32_t at = 0;                     // and its place
  for (size_t i = pass.first; i < pass.last; ++i) {
    const Source& source = roster_.source(i);
    Row& row = roster_.row(i);
    // A captured step keeps to its own group: its numbers may come to differ from the others' before a replay.
    const int own = roster_.slot(source).group, group = capturing_ ? own : groups[own].same_as;
    const bool wide = row.param_dtype == Dtype::f64 || rule.factored;
    if (!known || known->group != group || known->first != source.first || known->wide != wide ||
        !std::equal(source.before, source.before + rule.counters, known->counter) ||
        (rule.measures(row.variant) && !rule.joint)) {
      cuda::Entry& entry = entries.emplace_back();
      Prepared& prepared = work_.prepared.emplace_back();
      known = &entry;
      at = static_cast<uint32_t>(entries.size() - 1);
      entry.group = group;
      entry.first = source.first;
      entry.wide = wide;
      bool on_device = source.device != kHost && rule.counters == 0;
      for (int c = 0; c < rule.counters; ++c) {
        entry.counter[c] = source.before[c];
        prepared.after[c] = source.before[c].value;
        on_device = on_device || source.before[c].device;
      }
      prepared.scalars[0] = groups[group].sign * scaling_.multiplier();
      if (!on_device) rule.prepare(groups[group].numbers().data(), prepared.after, entry.first, prepared.scalars + 1);
    }
    changed = changed || row.entry != at;
    row.entry = at;
  }
  if (changed) roster_.touch();
}

// Steps rows on the CPU.
void Plan::sweep(Work& work, Row* first, Row* last) {
  int64_t total = 0;
  for (Row* row = first; row < last; ++row) {
    row->work_end = total += row->numel + cpu::kRowOverhead;
    row->scalars = work.prepared[row->entry].scalars;
    row->counters = work.prepared[row->entry].after;
  }
  if (rule().joint) {
    without_gil(families_.owe_sums() ? std::max(total, kReleaseGil) : total, [&] {
      cpu::sweep(*work.step.rule, first, last, at::get_num_threads(),
                 [&](const std::vector<cpu::ChunkSums>& sums) { conclude_together(sums, first, work); });
    });
    return roster_.keep_in_groups(concluded_);
  }
  if (!adds_up_) return without_gil(total, [&] { cpu::sweep(*work.step.rule, first, last, at::get_num_threads()); });
  // Other processes may take their time: nobody's memory is freed in it.
  without_gil(std::max(total, kReleaseGil), [&] {
    cpu::sweep(*work.step.rule, first, last, at::get_num_threads(), [&](const std::vector<cpu::ChunkSums>& sums) {
      const py::gil_scoped_acquire acquire;
      add_up_over_processes(sums, first);
    });
  });
}

void Plan::run(Work& work, Row* first, Row* last, int device) {
  if (device == kHost) return sweep(work, first, last);
  work.step.first = first;
  work.step.last = last;
  launch(work, device);
}

void Plan::write_counts(const Pass& pass) {
  const int counters = rule().counters;
  if (counters == 0) return;
  for (size_t i = pass.first; i < pass.last; ++i) {
    const Number* before = roster_.source(i).before;
    const double* after = work_.prepared[roster_.row(i).entry].after;
    for (int c = 0; c < counters; ++c)
      if (!before[c].device) roster_.count(i, c, after[c]);
  }
}

void Plan::run() {
  // Whoever has no gradients has part in the others' sums all the same.
  const auto divided = [&](const Source& source) { return roster_.in_parts(source); };
  const auto takes_part = [&] { return rule().joint ? roster_.count() > 0 : roster_.any_row(divided); };
  if (families_.owe_sums() && !takes_part()) come_without_rows();
  for (const Pass& pass : roster_.passes()) {
    if (rule().joint && pass.device != kHost) roster_.keep_on_device(pass.device);
    if (pass.wave > 0)
      for (size_t i = pass.first; i < pass.last; ++i) roster_.read_counts(roster_.source(i));
    prepare_rows(pass);
    work_.wave = pass.wave;
    adds_up_ = families_.owe_sums() && (rule().joint || roster_.any_row(pass, divided));
    give_groups(work_.step);
    work_.step.rows_version = roster_.version();
    work_.step.multiplier = scaling_.multiplier();
    if (roster_.products())
      run_with_products(pass);
    else if (rule().factored)
      run_factored(pass);
    else if (pass.from != kHost)
      run_offloaded(pass);
    else
      run(work_, roster_.begin(pass), roster_.end(pass), pass.device);
    write_counts(pass);
  }
  roster_.bump_versions();
}

void Plan::give_up() noexcept {
  if (families_.owe_sums()) families_.say_refused([this] { come_without_rows(); });
}

void Plan::add_up_over_processes(const std::vector<cpu::ChunkSums>& of_rows, const Row* first) {
  const int64_t sums = rule().sums;
  const at::Tensor totals = at::zeros({static_cast<int64_t>(roster_.slots().size()), sums}, at::kDouble);
  double* numbers = totals.mutable_data_ptr<double>();
  const auto each = [&](auto&& f) {
    for (size_t i = 0; i < of_rows.size(); ++i)
      if (families_.has(first[i].slot))
        for (int64_t k = 0; k < of_rows[i].chunks * sums; ++k)
          f(of_rows[i].sums, k, numbers[first[i].slot * sums + k % sums]);
  };
  for (size_t i = 0; i < of_rows.size(); ++i)
    if (families_.has(first[i].slot) && of_rows[i].chunks > 0)
      rule().add_up(of_rows[i].sums, of_rows[i].chunks, numbers + first[i].slot * sums);
  families_.exchange(roster_, totals);
  // The first chunk stands for the tensor.
  each([&](double* parts, int64_t k, double total) { parts[k] = k < sums ? total : 0; });
}

// Sums of rows without a gradient here, of which another process may have a part, count as well.
void Plan::conclude_together(const std::vector<cpu::ChunkSums>& of_rows, const Row* first, Work& work) {
  const int64_t sums = rule().sums;
  std::vector<double> of_slots(roster_.slots().size() * sums);
  for (size_t i = 0; i < of_rows.size(); ++i)
    if (of_rows[i].chunks > 0) std::copy_n(of_rows[i].sums, sums, of_slots.data() + first[i].slot * sums);
  if (families_.owe_sums()) {
    const py::gil_scoped_acquire acquire;
    const at::Tensor totals = at::zeros({static_cast<int64_t>(roster_.slots().size()), sums}, at::kDouble);
    double* numbers = totals.mutable_data_ptr<double>();
    std::copy(of_slots.begin(), of_slots.end(), numbers);
    families_.exchange(roster_, totals);
    for (size_t slot = 0; slot < roster_.slots().size(); ++slot)
      if (families_.has(slot)) std::copy_n(numbers + slot * sums, sums, of_slots.data() + slot * sums);
  }
  double total[kMaxSums];
  rule().add_up(of_slots.data(), static_cast<int64_t>(roster_.slots().size()), total);
  for (size_t e = 0; e < work.prepared.size(); ++e) {
    std::array<double, kMaxHypers> hypers = roster_.groups()[work.step.entries[e].group].numbers();
    rule().conclude[work.step.entries[e].wide](total, hypers.data(), work.prepared[e].scalars);
  }
  concluded_.clear();
  for (const Group& group : roster_.groups()) {
    double scalars[kMaxScalars] = {};
    rule().conclude[1](total, concluded_.emplace_back(group.numbers()).data(), scalars);
  }
}

}  // namespace fusedopt
