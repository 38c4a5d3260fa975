// Adafactor's plan: its params with their gradients and factored states, found and checked at every step, and handed to
// an engine as plain data. Included by bindings.cpp, after torch.
#pragma once

#include <unordered_map>
#include <vector>

#include "../cpu/engine.h"
#include "../cuda/factored.h"
#include "factored_tensor.h"

namespace fusedopt {

class FactoredPlan {
 public:
  // As Plan::step: params that no engine takes come back as [(group index, [params])], nothing having been written.
  py::object step(py::object optimizer, bool engine_only, py::object divisor);
  // Whether the last step was skipped: a bool, or on a device that alone knows it a tensor, zero if not.
  py::object skipped() const;

 private:
  struct Group {
    Number hypers[kFactoredHypers];
    PyObject* values[kFactoredHypers];  // borrowed; eps[0] may be None
    Ref eps;                            // holds its two
    double sign;
  };
  struct Names {
    Ref lr = GroupNames::intern("lr"), beta2_decay = GroupNames::intern("beta2_decay"), eps = GroupNames::intern("eps"),
        d = GroupNames::intern("d"), weight_decay = GroupNames::intern("weight_decay"),
        maximize = GroupNames::intern("maximize"), params = GroupNames::intern("params");
  };

  void read_groups();
  py::list collect_all(PyObject* state);
  bool settle_scaling(bool leftover);
  void make_states(NewEntries& new_entries);
  void run();
  void compose(size_t first, size_t last);
  void make_ready(const py::object& optimizer) const;
  void move_counters();
  void launch(int device);

  // torch.finfo(dtype).eps
  static double default_eps(const TensorImpl& impl) {
    switch (impl.dtype().toScalarType()) {
      case at::kDouble:
        return 2.220446049250313e-16;
      case at::kFloat:
        return 1.1920928955078125e-07;
      case at::kHalf:
        return 0.0009765625;
      default:
        return 0.0078125;
    }
  }

  Names names_;
  FactoredKeys keys_;
  PyObject* group_list_ = nullptr;  // borrowed, valid during a step
  std::vector<Group> groups_;
  std::vector<FactoredSource> sources_;
  std::vector<Factored> tensors_;
  double multiplier_ = 1;              // 1 / grad_scale, if that is not in device memory
  at::Tensor found_inf_, grad_scale_;  // where the host has not read them
  at::Tensor skipped_there_;
  bool skipped_ = false, busy_ = false;
};

inline void FactoredPlan::read_groups() {
  const int count = static_cast<int>(PySequence_Fast_GET_SIZE(group_list_));
  groups_.resize(count);
  for (int g = 0; g < count; ++g) {
    Group& group = groups_[g];
    const std::string where = "param_groups[" + std::to_string(g) + "]";
    PyObject* dict = PySequence_Fast_GET_ITEM(group_list_, g);
    if (!PyDict_Check(dict)) throw py::type_error(where + " is not a dict");
    const auto find = [&](const Ref& key) {
      PyObject* value = PyDict_GetItemWithError(dict, key.ptr());
      if (!value) throw py::key_error(where + "['" + std::string(py::str(key)) + "'] is missing");
      return value;
    };
    group.eps = entries_of(find(names_.eps), 2);
    PyObject* eps = group.eps.ptr();
    if (!eps) throw py::value_error(where + "['eps'] is not a tuple of 2 numbers, the first of which may be None");
    const char* names[] = {"lr", "beta2_decay", "eps'][0", "eps'][1", "d", "weight_decay"};
    PyObject* values[] = {
        find(names_.lr), find(names_.beta2_decay), PySequence_Fast_GET_ITEM(eps, 0), PySequence_Fast_GET_ITEM(eps, 1),
        find(names_.d),  find(names_.weight_decay)};
    for (int i = 0; i < kFactoredHypers; ++i) {
      group.values[i] = values[i];
      if (values[i] == Py_None && i == 2) continue;
      const auto name = [&] { return where + "['" + names[i] + (names[i][3] == '\'' ? "]" : "']"); };
      if (PyFloat_CheckExact(values[i]))
        group.hypers[i] = {PyFloat_AS_DOUBLE(values[i])};
      else
        group.hypers[i] = to_number(values[i], name());
      if (std::isnan(group.hypers[i].value)) throw py::value_error(name() + " is nan; set it to a number");
    }
    PyObject* maximize = PyDict_GetItemWithError(dict, names_.maximize.ptr());
    group.sign = maximize && PyObject_IsTrue(maximize) == 1 ? -1 : 1;
    if (!is_sequence(find(names_.params)))
      throw py::type_error(where + "['params'] is not a list; assign a list of tensors");
  }
}

// Fills sources_ with what the engines step, those that step together side by side, and returns the rest as
// [(group index, [params])].
inline py::list FactoredPlan::collect_all(PyObject* state) {
  // The dict is walked, for a look-up would call Tensor.__hash__, which is Python code.
  std::unordered_map<PyObject*, PyObject*> dict_of;
  std::unordered_map<PyObject*, int> seen;
  PyObject *key, *value;
  for (Py_ssize_t position = 0; PyDict_Next(state, &position, &key, &value);) dict_of[key] = value;

  const bool observed = c10::impl::TorchDispatchModeTLS::any_modes_set();
  py::list leftover;
  sources_.clear();
  for (int g = 0; g < static_cast<int>(groups_.size()); ++g) {
    PyObject* params = PyDict_GetItemWithError(PySequence_Fast_GET_ITEM(group_list_, g), names_.params.ptr());
    py::list left;
    for (int i = 0; i < PySequence_Fast_GET_SIZE(params); ++i) {
      PyObject* object = PySequence_Fast_GET_ITEM(params, i);
      if (!THPVariable_Check(object)) throw py::type_error(param_label(group_list_, g, i) + " is not a tensor");
      if (!unpack(object).grad().defined()) continue;
      const auto found = dict_of.find(object);
      FactoredSource source(group_list_, g, i, object, found == dict_of.end() ? nullptr : found->second);
      source.wave = seen[object]++;
      if (!observed && source.read(keys_))
        sources_.push_back(std::move(source));
      else
        left.append(borrow(object));
    }
    if (!left.empty()) leftover.append(py::make_tuple(g, left));
  }
  std::stable_sort(sources_.begin(), sources_.end(), [](const FactoredSource& a, const FactoredSource& b) {
    return std::make_pair(a.wave, a.device) < std::make_pair(b.wave, b.device);
  });
  return leftover;
}

// As Plan::settle_scaling: reads on the host what the host must know, and returns whether to skip.
inline bool FactoredPlan::settle_scaling(bool leftover) {
  bool host = leftover;
  for (const FactoredSource& source : sources_) host = host || source.first || source.device == kHost;
  if (host && grad_scale_.defined()) {
    multiplier_ = 1 / grad_scale_.item().toDouble();
    grad_scale_ = at::Tensor();
  }
  if (!host || !found_inf_.defined()) return false;
  const bool found = found_inf_.item().toDouble() != 0;
  found_inf_ = at::Tensor();
  return found;
}

// New states are complete before the first of them is entered.
inline void FactoredPlan::make_states(NewEntries& new_entries) {
  std::unordered_map<PyObject*, const FactoredSource*> made;  // a param listed twice has one state
  for (FactoredSource& source : sources_) {
    if (!source.first) continue;
    const auto [twin, is_new] = made.emplace(source.object, &source);
    if (is_new)
      source.make_state();
    else
      source.share_state(*twin->second);
  }
  for (const FactoredSource& source : sources_)
    if (source.first && made[source.object] == &source)
      new_entries.enter(borrow(source.dict), source.object, source.entry(keys_));
}

// Makes plain data of sources [first, last).
inline void FactoredPlan::compose(size_t first, size_t last) {
  tensors_.clear();
  for (size_t i = first; i < last; ++i) {
    const FactoredSource& source = sources_[i];
    const Group& group = groups_[source.group];
    Factored& t = tensors_.emplace_back(source.tensor);
    source.address(t);
    for (int k = 0; k < kFactoredHypers; ++k) {
      t.hypers[k] = group.hypers[k];
      if (group.values[k] == Py_None) t.hypers[k] = {default_eps(*source.param.unsafeGetTensorImpl())};
      if (t.hypers[k].device &&
          (source.device == kHost || device_index(*unpack(group.values[k]).unsafeGetTensorImpl()) != source.device))
        t.hypers[k] = {unpack(group.values[k]).item().toDouble()};
    }
    t.step = source.count();
    t.multiplier = group.sign * multiplier_;
  }
}

// Throws if the step cannot take place on the devices that it needs.
inline void FactoredPlan::make_ready(const py::object& optimizer) const {
  int last = kHost;
  for (const FactoredSource& source : sources_) {
    if (source.device == kHost || source.device == last) continue;
    last = source.device;
    const OnDevice guard(last);
    // As torch's, which has no capturable Adafactor.
    if (cuda::ready_for_factored({last, current_stream(last)}))
      throw std::runtime_error("Attempting CUDA graph capture of step() for an instance of " +
                               std::string(py::str(py::type::of(optimizer).attr("__name__"))) +
                               ", which torch.optim does not have capturable either: step outside of the capture");
  }
}

// Where a device alone knows whether the step takes place, it has to count it.
inline void FactoredPlan::move_counters() {
  if (!found_inf_.defined()) return;
  for (FactoredSource& source : sources_) source.move_counter(keys_);
}

inline void FactoredPlan::launch(int device) {
  const OnDevice guard(device);
  const cuda::Place place = {device, current_stream(device)};
  cuda::FactoredStep step;
  step.first = tensors_.data();
  step.last = tensors_.data() + tensors_.size();
  const auto here = [&](const at::Tensor& tensor, Number& number) {
    if (!tensor.defined()) return at::Tensor();
    const at::Tensor copy = tensor.to(torch_device(device), /*non_blocking=*/true);
    number.device = copy.unsafeGetTensorImpl()->data();
    storage_of(*copy.unsafeGetTensorImpl(), number.dtype);
    return copy;
  };
  const at::Tensor scale = here(grad_scale_, step.grad_scale), found = here(found_inf_, step.found_inf);
  const auto there = at::TensorOptions(torch_device(device));
  if (found.defined()) {
    skipped_there_ = at::zeros({}, there.dtype(at::kInt));
    step.skipped = static_cast<uint32_t*>(data_of(*skipped_there_.unsafeGetTensorImpl()));
  }
  const cuda::FactoredLaunch launch(step);
  // torch's allocators know when the stream is done with both.
  const at::Tensor memory = at::empty({static_cast<int64_t>(launch.bytes())}, there.dtype(at::kByte));
  const at::Tensor image = at::empty({static_cast<int64_t>(launch.table_bytes())},
                                     at::TensorOptions(at::kCPU).dtype(at::kByte).pinned_memory(kPinned));
  launch.fill(image.mutable_data_ptr(), memory.mutable_data_ptr());
  memory.narrow(0, 0, image.numel()).copy_(image, /*non_blocking=*/true);
  launch.launch(place, memory.mutable_data_ptr());
}

inline void FactoredPlan::run() {
  for (size_t first = 0, last; first < sources_.size(); first = last) {
    const int wave = sources_[first].wave, device = sources_[first].device;
    for (last = first; last < sources_.size(); ++last)
      if (sources_[last].wave != wave || sources_[last].device != device) break;
    compose(first, last);
    if (device == kHost) {
      busy_ = true;
      // The tensors are held by sources_ meanwhile.
      const py::gil_scoped_release release;
      cpu::step_factored(tensors_.data(), tensors_.data() + tensors_.size(), at::get_num_threads());
      busy_ = false;
    } else {
      launch(device);
    }
    for (size_t i = first; i < last; ++i) sources_[i].write_count(tensors_[i - first].step);
  }
  for (const FactoredSource& source : sources_) source.bump_versions();
}

inline py::object FactoredPlan::step(py::object optimizer, bool engine_only, py::object divisor) {
  if (busy_) throw std::runtime_error("step() is already running on this optimizer in another thread");
  const Ref dict = py::reinterpret_steal<py::object>(PyObject_GenericGetDict(optimizer.ptr(), nullptr));
  const auto attribute = [&](const char* name) { return PyDict_GetItemString(dict.ptr(), name); };
  const auto scaling = [&](PyObject* found, const char* name, double absent, at::Tensor& on_device) {
    on_device = at::Tensor();
    if (!found || found == Py_None) return absent;
    const Number number = to_number(found, name);
    if (number.device) on_device = unpack(found);
    return number.device ? absent : number.value;
  };
  // Nothing is kept alive between steps.
  struct Release {
    FactoredPlan& plan;
    ~Release() {
      plan.found_inf_ = plan.grad_scale_ = at::Tensor();
      plan.sources_.clear();
    }
  } const release{*this};
  skipped_there_ = at::Tensor();
  skipped_ = scaling(attribute("found_inf"), "found_inf", 0, found_inf_) != 0;
  PyObject* scale = divisor.is_none() ? attribute("grad_scale") : divisor.ptr();
  multiplier_ = 1 / scaling(scale, "grad_scale", 1, grad_scale_);
  if (skipped_) return py::none();

  const Ref state = optimizer.attr("state"), groups = optimizer.attr("param_groups");
  if (!PyDict_Check(state.ptr())) throw py::type_error("optimizer.state is not a dict");
  if (!is_sequence(groups.ptr())) throw py::type_error("optimizer.param_groups is not a list");
  group_list_ = groups.ptr();
  read_groups();
  const py::list leftover = collect_all(state.ptr());
  make_ready(optimizer);
  skipped_ = settle_scaling(!leftover.empty());
  if (skipped_) return py::none();
  if (!leftover.empty() && !engine_only) return leftover;
  move_counters();
  NewEntries new_entries(state.ptr());
  make_states(new_entries);
  for (FactoredSource& source : sources_) source.lay_out();
  run();
  new_entries.keep();
  return py::none();
}

inline py::object FactoredPlan::skipped() const {
  if (!skipped_there_.defined()) return py::bool_(skipped_);
  return py::reinterpret_steal<py::object>(THPVariable_Wrap(skipped_there_));
}

}  // namespace fusedopt
