// The part of a step that is particular to CUDA.
#include "graph_memory.h"
#include "plan.h"

#include "../rules/rule.h"

namespace fusedopt {

// Looks at every device that the step will use. Throws if it cannot take place there.
void Plan::make_ready(const py::object& optimizer) {
  capturing_ = false;
  bool on_host = false;
  for (const Pass& pass : passes_) {
    on_host = on_host || pass.device == kHost;
    if (pass.from != kHost) {
      const OnDevice guard(pass.from);
      capturing_ = cuda::is_captured({pass.from, current_stream(pass.from)}) || capturing_;
    }
    if (pass.device == kHost || pass.wave > 0) continue;
    const OnDevice guard(pass.device);
    const cuda::Place place = {pass.device, current_stream(pass.device)};
    capturing_ = cuda::ready(place, *rule_) || capturing_;
    if (products_) cuda::ready(place, *products_->after);
  }
  if (!capturing_) return;

  for (const Pass& pass : passes_)
    if (pass.from != kHost)
      throw std::runtime_error(
          "offload='cpu' steps params on the host, and a replay of a CUDA graph does nothing there; step outside of "
          "the capture");
  if (owes_sums_)
    throw std::runtime_error(
        "a step of tensors of which this process has shards, and whose rule needs the whole of them, waits for other "
        "processes, and cannot be captured into a CUDA graph; step outside of the capture");
  for (const Group& group : groups_)
    if (group.refuses_capture)
      throw std::runtime_error("Attempting CUDA graph capture of step() for an instance of " +
                               std::string(py::str(py::type::of(optimizer).attr("__name__"))) +
                               " but param_groups' capturable is False: construct it with capturable=True");
  bool draws = false;
  for (int g = 0; g < static_cast<int>(groups_.size()); ++g) draws = draws || options_of(g).draws();
  if (draws)
    throw std::runtime_error(
        "rounding='stochastic', and a state_dtype of 16 bits, draw anew in each step, which a replay of a CUDA graph "
        "cannot; step outside the capture");
  if (on_host) throw std::runtime_error("a step that also updates params on the CPU cannot be captured");
  for (const size_t i : new_states_)
    fail(sources_[i],
         "it has no state yet, which a replay would make anew each time; take one step before the capture");
  for (size_t i = 0; i < count_; ++i)
    for (int c = 0; c < rule_->counters; ++c)
      if (!sources_[i].before[c].device)
        fail(sources_[i], std::string("its state '") + rule_->counter_names[c] +
                              "' is on the CPU, where a graph cannot advance it; take one step before the capture");
  for (const Group& group : groups_)
    for (int i = 0; rule_->joint && i < rule_->hypers; ++i)
      if (rule_->scopes[i] == Scope::kept && !group.hypers[i].device)
        throw std::runtime_error("param_groups' '" + std::string(py::str(names_.hypers[i].key)) +
                                 "' is on the CPU, where a graph cannot advance it; take one step before the capture");
}

// Whether the host must know found_inf and what gradients are divided by: to step params on the CPU or leave some to
// torch, and to make no states in a step that is none. Not in steady state.
bool Plan::host_needs_scaling(bool leftover) const {
  bool host = leftover || (!new_states_.empty() && !capturing_);
  for (const Pass& pass : passes_) host = host || pass.device == kHost;
  for (size_t i = 0; rule_->indexed && i < count_; ++i) host = host || counts_in_python(sources_[i]);
  return host;
}

// Whether a param's counters belong on its device: where torch has them there, where the host cannot know whether a
// step takes place, where sums decide on them, and where one of them is there already, since loading a checkpoint moves
// all but `step`.
bool Plan::counts_on_device(const Source& source) const {
  if (source.device == kHost || counts_in_python(source)) return false;
  bool one = scaling_.known_there_alone() || device_counters_ || rule_->remembers ||
             groups_[slots_[source.slot].group].device_counters;
  for (int c = 0; c < rule_->counters; ++c) one = one || source.before[c].device;
  return one;
}

// Counters from a checkpoint, or from steps without a GradScaler, come to the param's device.
void Plan::move_counters() {
  bool wanted = scaling_.known_there_alone() || device_counters_ || rule_->counters > 1;
  for (const Group& group : groups_) wanted = wanted || group.device_counters;
  if (!wanted || rule_->counters == 0) return;
  std::vector<std::tuple<size_t, int, at::Tensor>> moved;
  for (size_t i = 0; i < count_; ++i) {
    const Source& source = sources_[i];
    if (source.first || !counts_on_device(source)) continue;
    for (int c = 0; c < rule_->counters; ++c) {
      if (source.before[c].device) continue;
      const at::Tensor counter = source.counter[c]
                                     ? tensor_of(source.counter[c])
                                     : at::full({}, source.before[c].value, at::TensorOptions(at::kFloat));
      moved.emplace_back(i, c, counter.to(torch_device(source.device)));
    }
  }
  for (const auto& [i, c, counter] : moved) {
    Source& source = sources_[i];
    const Ref value = wrap(counter);
    if (PyDict_SetItem(slots_[source.slot].state, keys_[rule_->states + c].name.ptr(), value.ptr()) != 0)
      throw py::error_already_set();
    source.counter[c] = counter.unsafeGetTensorImpl();
    source.count[c] = data_of(*source.counter[c]);
    source.before[c] = {0, source.count[c], is_double(*source.counter[c]) ? Dtype::f64 : Dtype::f32};
  }
}

void Plan::give_groups(cuda::Step& step) const {
  step.rule = rule_;
  step.groups.clear();
  for (const Group& group : groups_) step.groups.push_back({group.hypers.data(), group.sign});
}

Plan::DeviceTable& Plan::table_for(const cuda::Place& place, const Work& work, std::list<DeviceTable>& captured) {
  // A table belongs to one stream: its memory is used in the order in which torch's allocator knows it.
  constexpr size_t kKept = 16;
  if (capturing_) {
    forget_graphs();
  } else {
    size_t eager = 0;
    auto oldest = tables_.end();
    for (auto table = tables_.begin(); table != tables_.end(); ++table) {
      if (table->captured) continue;
      if (table->place.device == place.device && table->place.stream == place.stream && table->wave == work.wave &&
          table->stage == work.stage)
        return *table;
      if (eager++ == 0) oldest = table;
    }
    if (eager == kKept) tables_.erase(oldest);
  }
  // A captured step's is kept once the capture has it.
  DeviceTable& table = (capturing_ ? captured : tables_).emplace_back();
  table.place = place;
  table.wave = work.wave;
  table.stage = work.stage;
  table.captured = capturing_;
  for (const Group& group : groups_) table.variants.push_back(group.variant);
  table.batches = work.batches;
  return table;
}

// Forgets the tables of graphs that nobody can replay any more.
void Plan::forget_graphs() {
  collect_from_graphs();
  tables_.remove_if([](const DeviceTable& table) { return table.captured && table.of_graph.expired(); });
}

bool Plan::captured() {
  forget_graphs();
  return std::any_of(tables_.begin(), tables_.end(), [](const DeviceTable& table) { return table.captured; });
}

// Steps rows on a CUDA device.
void Plan::launch(Work& work, int device) {
  const OnDevice guard(device);
  const cuda::Place place = {device, current_stream(device)};
  cuda::Step& step = work.step;
  step.slots = slots_.size();
  const Scaling::There scaling = scaling_.on(place, capturing_);
  step.grad_scale = work.divides ? scaling.divisor : Number();
  step.found_inf = scaling.found_inf;
  step.skipped = scaling.skipped;

  std::list<DeviceTable> captured;
  DeviceTable& table = table_for(place, work, captured);
  const size_t bytes = table.table.lacks(step);
  const auto allocate = [&] {
    table.memory = zeros_on(device, static_cast<int64_t>(bytes));
    table.table.bind(table.memory.data_ptr());
  };
  if (capturing_) {
    // The table is filled now and stays as it is: a replay launches the two kernels and nothing else.
    {
      const OffCapture off(device);
      const cuda::Place aside = {device, current_stream(device)};
      allocate();
      table.table.send(step, aside);
      // Others may have work on that stream that waits for a Python thread.
      without_gil(std::numeric_limits<int64_t>::max(), [&] { cuda::synchronize(aside); });
    }
    table.of_graph = give_to_graph(place, table.memory);
    table.memory = at::Tensor();
  } else if (bytes) {
    allocate();
  }
  if (adds_up_)
    launch_and_add_up(table.table, step, place);
  else
    table.table.launch(step, place);
  tables_.splice(tables_.end(), captured);
}

// Between the sweep that makes sums and what is concluded from them they go to other processes, in the order of the
// stream, and the host waits: whether a process refuses its step it has to know before it writes.
void Plan::launch_and_add_up(cuda::Table& table, cuda::Step& step, const cuda::Place& place) {
  const c10::Device there = torch_device(place.device);
  std::vector<uint8_t> parts(in_a_family_.begin(), in_a_family_.end());
  const auto slots = static_cast<int64_t>(parts.size());
  const at::Tensor which = at::from_blob(parts.data(), {slots}, at::kByte).clone().to(there);
  const at::Tensor totals = at::zeros({slots, rule_->sums}, at::TensorOptions(at::kDouble).device(there));
  // A kernel has counted by then.
  std::vector<std::pair<at::Tensor, at::Tensor>> before;
  for (size_t i = 0; i < count_; ++i)
    for (int c = 0; c < rule_->counters; ++c)
      if (sources_[i].before[c].device)
        before.emplace_back(tensor_of(sources_[i].counter[c]), tensor_of(sources_[i].counter[c]).clone());
  const cuda::Exchange exchange = {which.const_data_ptr<uint8_t>(), totals.mutable_data_ptr<double>(), [&] {
                                     const py::gil_scoped_acquire acquire;
                                     try {
                                       this->exchange(totals);
                                     } catch (...) {
                                       for (const auto& [counter, copy] : before) counter.copy_(copy);
                                       throw;
                                     }
                                   }};
  step.exchange = &exchange;
  struct Without {
    cuda::Step& step;
    ~Without() { step.exchange = nullptr; }
  } const without{step};
  without_gil(kReleaseGil, [&] { table.launch(step, place); });
}

void Plan::refresh(py::object optimizer) {
  const Ref groups = optimizer.attr("param_groups"), state = optimizer.attr("state");
  read_groups(groups.ptr(), state.ptr());
  forget_graphs();
  Work work;
  std::vector<int> variants;
  for (const Group& group : groups_) variants.push_back(group.variant);
  const DeviceTable* latest = nullptr;
  for (const DeviceTable& table : tables_)
    if (table.captured) latest = &table;
  if (latest && latest->variants != variants)
    throw std::runtime_error(
        "param_groups have changed since the step was captured in more than their numbers; capture it again");
  for (DeviceTable& table : tables_) {
    // What was captured with other groups keeps their numbers.
    const std::shared_ptr<at::Tensor> memory = table.of_graph.lock();
    if (!memory || table.variants != variants) continue;
    const OnDevice guard(table.place.device);
    read_groups(groups.ptr(), state.ptr());
    const auto fetch = [&](std::vector<Group>& all, const GroupNames& names) {
      for (size_t g = 0; g < all.size(); ++g)
        all[g].fetch_for(table.place.device, names, PySequence_Fast_GET_ITEM(group_list_, g));
    };
    fetch(groups_, names_);
    if (products_) fetch(products_->groups, products_->names);
    if (table.stage == 0) {
      give_groups(work.step);
    } else {
      work.step.rule = products_->after;
      work.batches = table.batches;
      give_batches(work);
    }
    table.table.send_groups(work.step, {table.place.device, current_stream(table.place.device)});
    use_on_stream(table.place.device, *memory);
  }
}

}  // namespace fusedopt
