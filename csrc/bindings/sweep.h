// A rule run once over tensors that are given, for optimizers whose step is more than one sweep and for rows of sparse
// gradients. Included by bindings.cpp, after torch.
#pragma once

#include <deque>

#include "../cpu/engine.h"
#include "device.h"
#include "group.h"

namespace fusedopt {

class RuleSweep {
 public:
  explicit RuleSweep(std::string rule) : rule_name_(std::move(rule)) {}

  // params[i], grads[i] and states[i] belong together, on one device for all i. `counters` holds the rule's counters
  // before the step, the same for all. With `slices`, grads[i] holds only those slices of the outermost dimension that
  // slices[i], a tensor of int64, lists.
  void run(const std::vector<double>& hypers, const std::vector<double>& counters,
           const std::vector<at::Tensor>& params, const std::vector<at::Tensor>& grads,
           const std::vector<std::vector<at::Tensor>>& states, double multiplier,
           const std::vector<at::Tensor>& slices) {
    const Rule* rule = cpu::find_rule(rule_name_);
    if (!rule) throw py::value_error("no rule is named '" + rule_name_ + "'");
    if (params.empty()) return;
    if (static_cast<int>(hypers.size()) != rule->hypers || static_cast<int>(counters.size()) != rule->counters ||
        grads.size() != params.size() || states.size() != params.size() ||
        (!slices.empty() && slices.size() != params.size()))
      throw py::value_error("a sweep of '" + rule_name_ + "' was given lists of different lengths");
    layouts_.clear();
    rows_.assign(params.size(), Row{});
    for (size_t i = 0; i < params.size(); ++i) {
      if (static_cast<int>(states[i].size()) > rule->states) throw py::value_error("too many states");
      collect(*rule, i, params[i], grads[i], states[i], slices.empty() ? nullptr : &slices[i]);
      if (device_index(*params[i].unsafeGetTensorImpl()) != device_index(*params[0].unsafeGetTensorImpl()))
        throw py::value_error("a sweep is of tensors on one device");
    }
    numbers_.clear();
    for (const double hyper : hypers) numbers_.push_back({hyper});
    const int device = device_index(*params[0].unsafeGetTensorImpl());
    device == kHost ? on_host(*rule, counters, multiplier) : on_device(*rule, counters, multiplier, device);
    for (size_t i = 0; i < params.size(); ++i) {
      params[i].unsafeGetTensorImpl()->bump_version();
      for (const at::Tensor& state : states[i]) state.unsafeGetTensorImpl()->bump_version();
    }
  }

 private:
  void collect(const Rule& rule, size_t i, const at::Tensor& param, const at::Tensor& grad,
               const std::vector<at::Tensor>& states, const at::Tensor* slices) {
    Row& row = rows_[i];
    const TensorImpl* operands[kOperands] = {param.unsafeGetTensorImpl(), grad.unsafeGetTensorImpl()};
    int count = 2;
    for (const at::Tensor& state : states) operands[count++] = state.unsafeGetTensorImpl();
    const auto refuse = [&](const std::string& what) {
      throw py::value_error("tensor " + std::to_string(i) + " of a sweep of '" + rule_name_ + "': " + what);
    };
    Dtype dtypes[kOperands];
    for (int o = 0; o < count; ++o)
      if (!plain(*operands[o]) || is_complex(*operands[o]) || !storage_of(*operands[o], dtypes[o]) ||
          operands[o]->device() != operands[0]->device())
        refuse("its operands are not all dense and real on one device");
    row.param_dtype = dtypes[0];
    row.grad_dtype = dtypes[1];
    std::copy(dtypes + 2, dtypes + count, row.state_dtype);
    row.slot = static_cast<uint32_t>(i);
    row.numel = grad.numel();
    std::vector<double> none(kMaxHypers);
    row.variant = static_cast<uint8_t>(rule.variant(none.data()));
    if (row.numel == 0) return;
    row.param = data_of(*operands[0]);
    row.grad = read_of(*operands[1], operands[1]->dtype().itemsize());
    for (int o = 2; o < count; ++o) row.state[o - 2] = data_of(*operands[o]);
    for (int o = 1; o < count; ++o)
      if (!equal(operands[o]->sizes(), operands[0]->sizes()) && !(slices && o == kGrad)) refuse("sizes differ");
    if (slices) return take_slices(row, operands, count, *slices, refuse);
    Layout merged;
    if (!make_layout(operands, count, merged)) refuse("too many dimensions");
    if (!dense(merged, count)) row.layout = &layouts_.emplace_back(merged);
  }

  template <class F>
  void take_slices(Row& row, const TensorImpl* const* operands, int count, const at::Tensor& slices, F&& refuse) {
    const int64_t taken = slices.numel();
    if (slices.scalar_type() != at::kLong || !slices.is_contiguous() || taken == 0 || row.numel % taken != 0)
      refuse("slices are not a contiguous tensor of int64, one for each of the gradient");
    for (int o = 0; o < count; ++o)
      if (!operands[o]->is_contiguous()) refuse("slices are of contiguous tensors");
    Layout layout;
    layout.dims = 2;
    layout.index = static_cast<const int64_t*>(slices.unsafeGetTensorImpl()->data());
    layout.size[0] = taken;
    layout.size[1] = row.numel / taken;
    for (int o = 0; o < kOperands; ++o) {
      layout.stride[o][0] = layout.size[1];
      layout.stride[o][1] = 1;
    }
    row.layout = &layouts_.emplace_back(layout);
  }

  void on_host(const Rule& rule, const std::vector<double>& counters, double multiplier) {
    double hypers[kMaxHypers] = {}, after[kMaxCounters], scalars[kMaxScalars];
    for (int h = 0; h < rule.hypers; ++h) hypers[h] = numbers_[h].value;
    std::copy(counters.begin(), counters.end(), after);
    scalars[0] = multiplier;
    rule.prepare(hypers, after, false, scalars + 1);
    int64_t work = 0;
    for (Row& row : rows_) {
      row.scalars = scalars;
      row.work_end = work += row.numel + cpu::kRowOverhead;
    }
    const int threads = at::get_num_threads();
    const py::gil_scoped_release release;
    cpu::sweep(rule, rows_.data(), rows_.data() + rows_.size(), threads);
  }

  void on_device(const Rule& rule, const std::vector<double>& counters, double multiplier, int device) {
    const OnDevice guard(device);
    const cuda::Place place = {device, current_stream(device)};
    if (cuda::ready(place, rule)) throw std::runtime_error("this step cannot be captured into a graph");
    cuda::Step step;
    step.rule = &rule;
    step.first = rows_.data();
    step.last = rows_.data() + rows_.size();
    step.slots = rows_.size();
    step.multiplier = multiplier;
    step.groups.push_back({numbers_.data(), 1});
    cuda::Entry entry{};
    entry.wide = rows_[0].param_dtype == Dtype::f64;
    for (int c = 0; c < rule.counters; ++c) entry.counter[c] = {counters[c]};
    step.entries = {entry, entry};
    step.entries[1].wide = !entry.wide;
    for (Row& row : rows_) row.entry = (row.param_dtype == Dtype::f64) != entry.wide;
    DeviceTable* mine = nullptr;
    for (DeviceTable& table : tables_)
      if (table.place.device == device && table.place.stream == place.stream) mine = &table;
    if (!mine) {
      // A table belongs to one stream; who uses more than these gets new ones.
      constexpr size_t kKept = 8;
      if (tables_.size() == kKept) tables_.pop_front();
      mine = &tables_.emplace_back();
      mine->place = place;
    }
    if (const size_t bytes = mine->table.lacks(step)) {
      mine->memory = at::zeros({static_cast<int64_t>(bytes)}, at::TensorOptions(torch_device(device)).dtype(at::kByte));
      mine->table.bind(mine->memory.data_ptr());
    }
    mine->table.launch(step, place);
  }

  struct DeviceTable {
    cuda::Table table;
    at::Tensor memory;
    cuda::Place place;
  };

  std::string rule_name_;
  std::vector<Row> rows_;
  std::deque<Layout> layouts_;
  std::vector<Number> numbers_;
  std::deque<DeviceTable> tables_;
};

}  // namespace fusedopt
