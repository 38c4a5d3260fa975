// The part of a step that is particular to CUDA.
#include "graph_memory.h"
#include "plan.h"

#include "../rules/rule.h"

namespace fusedopt {

void Plan::give_groups(cuda::Step& step) const {
  step.rule = &rule();
  step.groups.clear();
  for (const Group& group : roster_.groups()) step.groups.push_back({group.hypers.data(), group.sign});
}

// Puts a step of rows on a CUDA device's stream.
void Plan::put(Work& work, int device) {
  const OnDevice guard(device);
  const cuda::Place place = {device, current_stream(device)};
  cuda::Step& step = work.step;
  step.slots = roster_.slots().size();
  const Scaling::There scaling = scaling_.on(place, capturing_);
  step.grad_scale = work.divides ? scaling.divisor : Number();
  step.found_inf = scaling.found_inf;
  step.skipped = scaling.skipped;

  const DeviceTables::Use use = {place, work.wave, work.stage};
  std::list<DeviceTables::DeviceTable> captured;
  if (capturing_) {
    tables_.forget_graphs();
    captured.push_back({use});
  }
  DeviceTables::DeviceTable& table = capturing_ ? captured.back() : tables_.table_for(use);
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
    table.captured = true;
    for (const Group& group : roster_.groups()) table.variants.push_back(group.variant);
    table.batches = work.batches;
  } else if (bytes) {
    allocate();
  }
  // Other processes may take their time: nobody's memory is freed in it.
  if (step.exchange)
    without_gil(kReleaseGil, [&] { table.table.launch(step, place); });
  else
    table.table.launch(step, place);
  tables_.keep(captured);
}

// Between the sweep that makes sums and what is concluded from them they go to other processes, in the order of the
// stream, and the host waits: whether a process refuses its step it has to know before it writes. Of matrices to be
// multiplied there are no sums: who has no rows, or refuses, comes to their gathering alone.
void Plan::launch(Work& work, int device) {
  if (!adds_up_ || work.step.rule->sums == 0) return put(work, device);
  const OnDevice guard(device);
  const c10::Device there = torch_device(device);
  std::vector<uint8_t> parts(families_.of_slots().begin(), families_.of_slots().end());
  const auto slots = static_cast<int64_t>(parts.size());
  const at::Tensor which = at::from_blob(parts.data(), {slots}, at::kByte).clone().to(there);
  const at::Tensor totals = at::zeros({slots, rule().sums}, at::TensorOptions(at::kDouble).device(there));
  // A kernel has counted by then.
  Before before;
  for (size_t i = 0; i < roster_.count(); ++i) keep_counters(i, before);
  const cuda::Exchange exchange = {which.const_data_ptr<uint8_t>(), totals.mutable_data_ptr<double>(), [&] {
                                     const py::gil_scoped_acquire acquire;
                                     try {
                                       families_.exchange(roster_, totals);
                                     } catch (...) {
                                       before.put_back();
                                       throw;
                                     }
                                   }};
  const Exchanging exchanging(work.step, exchange);
  put(work, device);
}

void Plan::keep_counters(size_t i, Before& before) const {
  const Source& source = roster_.source(i);
  for (int c = 0; c < rule().counters; ++c)
    if (source.before[c].device) before.keep(source.counter[c]);
}

void Plan::refresh(py::object optimizer) {
  const Ref groups = optimizer.attr("param_groups"), state = optimizer.attr("state");
  roster_.read_groups(groups.ptr(), state.ptr());
  std::vector<int> variants;
  for (const Group& group : roster_.groups()) variants.push_back(group.variant);
  const DeviceTables::DeviceTable* latest = nullptr;
  tables_.each_captured([&](const auto& table) { latest = &table; });
  if (latest && latest->variants != variants)
    throw std::runtime_error(
        "param_groups have changed since the step was captured in more than their numbers; capture it again");
  Work work;
  tables_.each_captured([&](DeviceTables::DeviceTable& table) {
    // What was captured with other groups keeps their numbers.
    const std::shared_ptr<at::Tensor> memory = table.of_graph.lock();
    if (!memory || table.variants != variants) return;
    const int device = table.use.place.device;
    const OnDevice guard(device);
    roster_.read_groups(groups.ptr(), state.ptr());
    const auto fetch = [&](std::vector<Group>& all, const GroupNames& names) {
      for (size_t g = 0; g < all.size(); ++g) all[g].fetch_for(device, names, roster_.group_dict(g));
    };
    fetch(roster_.groups(), roster_.names());
    Products* products = roster_.products();
    if (products) fetch(products->groups, products->names);
    if (table.use.stage == 0) {
      give_groups(work.step);
    } else {
      work.step.rule = products->after;
      work.batches = table.batches;
      give_batches(work);
    }
    table.table.send_groups(work.step, {device, current_stream(device)});
    use_on_stream(device, *memory);
  });
}

}  // namespace fusedopt
