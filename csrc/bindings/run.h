// The second half of a plan: making states, and the step itself. Included by bindings.cpp, after torch.
#pragma once

#include "plan.h"

namespace fusedopt {

// New states are complete before the first of them is entered in optimizer.state, and leave it if entering one fails.
inline void Plan::make_states(PyObject* state) {
  if (new_states_.empty()) return;
  std::unordered_map<PyObject*, size_t> made;  // a param listed twice has one state
  std::vector<std::pair<PyObject*, Ref>> entries;
  const at::ScalarType step_dtype = at::get_default_dtype_as_scalartype() == at::kDouble ? at::kDouble : at::kFloat;
  for (const size_t i : new_states_) {
    Source& source = sources_[i];
    PyObject* param = slots_[source.slot].param;
    if (const auto twin = made.find(param); twin != made.end()) {
      std::copy_n(sources_[twin->second].state, kMaxStates, source.state);
      std::copy_n(sources_[twin->second].counter, kMaxCounters, source.counter);
      std::copy_n(rows_[twin->second].state_dtype, kMaxStates, rows_[i].state_dtype);
      continue;
    }
    made[param] = i;
    py::dict entry;
    PyObject* fused = PyDict_GetItemString(PySequence_Fast_GET_ITEM(group_list_, source.group), "fused");
    for (int c = 0; c < rule_->counters; ++c) {
      const at::ScalarType dtype = fused && PyObject_IsTrue(fused) == 1 ? at::kFloat : step_dtype;
      const at::Tensor counter = at::zeros({}, at::TensorOptions(at::kCPU).dtype(dtype));
      entry[keys_[rule_->states + c]] = py::reinterpret_steal<py::object>(THPVariable_Wrap(counter));
      source.counter[c] = {counter.mutable_data_ptr(), dtype};
      written_.push_back(counter.unsafeGetTensorImpl());
    }
    for (int k = 0; k < rule_->states; ++k) {
      if (!rule_->keeps(rows_[i].variant, k)) continue;
      const at::Tensor& like = rule_->state_like_grad ? unpack(param).grad() : unpack(param);
      const at::Tensor value = at::zeros_like(like, unpack(param).options());
      entry[keys_[k]] = py::reinterpret_steal<py::object>(THPVariable_Wrap(value));
      source.state[k] = value.unsafeGetTensorImpl();
      storage_of(*source.state[k], rows_[i].state_dtype[k]);
    }
    entries.emplace_back(param, std::move(entry));
  }

  // A dict that was there before, empty or with other keys, gets its contents back.
  std::vector<std::pair<Ref, Ref>> restore;
  size_t entered = 0;
  try {
    for (; entered < entries.size(); ++entered) {
      const auto& [param, entry] = entries[entered];
      const Ref dict = borrow(slots_[sources_[made[param]].slot].state);
      restore.emplace_back(dict, dict ? py::reinterpret_steal<py::object>(PyDict_Copy(dict.ptr())) : Ref());
      if ((dict ? PyDict_Update(dict.ptr(), entry.ptr()) : PyObject_SetItem(state, param, entry.ptr())) != 0)
        throw py::error_already_set();
    }
  } catch (...) {
    const py::error_scope keep;
    while (entered-- > 0) {
      const auto& [dict, contents] = restore[entered];
      if (!dict) {
        if (PyObject_DelItem(state, entries[entered].first) != 0) PyErr_Clear();
        continue;
      }
      PyDict_Clear(dict.ptr());
      if (PyDict_Update(dict.ptr(), contents.ptr()) != 0) PyErr_Clear();
    }
    throw;
  }
}

inline void Plan::sort_waves() {
  int last = 0;
  for (const Source& source : sources_) last = std::max(last, slots_[source.slot].wave);
  if (last == 0) return;
  std::vector<size_t> index(rows_.size());
  for (size_t i = 0; i < index.size(); ++i) index[i] = i;
  const auto wave = [&](size_t i) { return slots_[sources_[i].slot].wave; };
  std::stable_sort(index.begin(), index.end(), [&](size_t a, size_t b) { return wave(a) < wave(b); });
  std::vector<Row> rows;
  std::vector<Source> sources;
  for (const size_t i : index) {
    rows.push_back(rows_[i]);
    sources.push_back(sources_[i]);
  }
  rows_.swap(rows);
  sources_.swap(sources);
}

// prepare() once for each run of rows with the same hyper-parameters and counters, which is nearly always all of them.
inline void Plan::prepare_rows(size_t first, size_t last) {
  prepared_.clear();
  for (size_t i = first; i < last; ++i) {
    Source& source = sources_[i];
    Prepared next{};
    next.group = groups_[source.group].same_as;
    next.first = source.first;
    for (int c = 0; c < rule_->counters; ++c) {
      const Counter& counter = source.counter[c];
      next.before[c] = counter.dtype == at::kFloat ? *static_cast<float*>(counter.data) : *static_cast<double*>(counter.data);
    }
    const Prepared* known = prepared_.empty() ? nullptr : &prepared_.back();
    if (!known || known->group != next.group || known->first != next.first ||
        !std::equal(next.before, next.before + rule_->counters, known->before)) {
      std::copy_n(next.before, rule_->counters, next.after);
      next.scalars[0] = groups_[next.group].sign * multiplier_;
      rule_->prepare(groups_[next.group].hypers.data(), next.after, next.first, next.scalars + 1);
      prepared_.push_back(next);
    }
    source.prepared = static_cast<uint32_t>(prepared_.size() - 1);
  }
  int64_t work = 0;
  for (size_t i = first; i < last; ++i) {
    rows_[i].scalars = prepared_[sources_[i].prepared].scalars;
    rows_[i].work_end = work += rows_[i].numel + cpu::kRowOverhead;
  }
}

inline void Plan::write_counters(size_t first, size_t last) {
  for (size_t i = first; i < last; ++i) {
    const Source& source = sources_[i];
    for (int c = 0; c < rule_->counters; ++c) {
      const double value = prepared_[source.prepared].after[c];
      if (source.counter[c].dtype == at::kFloat) *static_cast<float*>(source.counter[c].data) = static_cast<float>(value);
      else *static_cast<double*>(source.counter[c].data) = value;
    }
  }
}

inline void Plan::run() {
  // From this many elements on other Python threads may run meanwhile; what they could free is held.
  constexpr int64_t kReleaseGil = 1 << 21;
  std::vector<c10::intrusive_ptr<TensorImpl>> held;
  const auto hold = [&](TensorImpl* impl) {
    if (impl) held.push_back(c10::intrusive_ptr<TensorImpl>::reclaim_copy(impl));
  };
  for (size_t first = 0, last; first < rows_.size(); first = last) {
    const int wave = slots_[sources_[first].slot].wave;
    for (last = first; last < rows_.size() && slots_[sources_[last].slot].wave == wave;) ++last;
    prepare_rows(first, last);
    const auto sweep = [&] { cpu::sweep(*rule_, rows_.data() + first, rows_.data() + last, at::get_num_threads()); };
    if (rows_[last - 1].work_end < kReleaseGil) {
      sweep();
    } else {
      for (const Source& source : sources_) {
        hold(source.param);
        hold(source.grad);
        for (TensorImpl* state : source.state) hold(state);
      }
      for (TensorImpl* counter : written_) hold(counter);
      busy_ = true;
      {
        const py::gil_scoped_release release;
        sweep();
      }
      busy_ = false;
    }
    write_counters(first, last);
  }
  for (TensorImpl* impl : written_) impl->bump_version();
  for (const Source& source : sources_) {
    source.param->bump_version();
    for (int k = 0; k < rule_->states; ++k)
      if (source.state[k]) source.state[k]->bump_version();
  }
}

inline py::object Plan::step(py::object optimizer, bool engine_only) {
  if (busy_) throw std::runtime_error("step() is already running on this optimizer in another thread");
  rule_ = find();
  const Ref dict = py::reinterpret_steal<py::object>(PyObject_GenericGetDict(optimizer.ptr(), nullptr));
  const auto attribute = [&](const char* name) { return PyDict_GetItemString(dict.ptr(), name); };

  PyObject* found_inf = attribute("found_inf");
  skipped_ = found_inf && found_inf != Py_None && to_double(found_inf, "found_inf") != 0;
  if (skipped_) return py::none();
  PyObject* grad_scale = attribute("grad_scale");
  multiplier_ = grad_scale && grad_scale != Py_None ? 1 / to_double(grad_scale, "grad_scale") : 1;

  const Ref state = borrow(attribute("state"));
  if (!state || !PyDict_Check(state.ptr())) throw py::type_error("optimizer.state is not a dict");
  const Ref groups = borrow(attribute("param_groups"));
  read_groups(groups.ptr());
  if (!slots_match(state.ptr())) rebuild_slots(state.ptr());

  rows_.clear();
  sources_.clear();
  new_states_.clear();
  written_.clear();
  layouts_.clear();
  // A dispatch mode (FakeTensorMode, make_fx, a flop counter) must see operations, so torch's path takes all.
  const bool observed = c10::impl::TorchDispatchModeTLS::any_modes_set();
  py::list leftover;
  int slot = 0;
  for (int g = 0; g < static_cast<int>(groups_.size()); ++g) {
    py::list params;
    const int count = static_cast<int>(PySequence_Fast_GET_SIZE(groups_[g].params));
    for (int i = 0; i < count; ++i, ++slot) {
      const bool taken = observed ? !unpack(slots_[slot].param).unsafeGetTensorImpl()->grad().defined() : collect(g, slot, i);
      if (!taken) params.append(borrow(slots_[slot].param));
    }
    if (!params.empty()) leftover.append(py::make_tuple(g, params));
  }
  for (size_t i = 0; i < rows_.size(); ++i) lay_out(rows_[i], sources_[i]);
  // All that can be refused has been asked; from here on only memory can be lacking.
  if (!leftover.empty() && !engine_only) return leftover;

  make_states(state.ptr());
  for (const size_t i : new_states_) lay_out(rows_[i], sources_[i]);
  for (size_t i = 0; i < rows_.size(); ++i) {
    Row& row = rows_[i];
    const Source& source = sources_[i];
    row.param = source.param->mutable_data();
    row.grad = source.grad->data();
    for (int k = 0; k < rule_->states; ++k)
      if (source.state[k]) row.state[k] = source.state[k]->mutable_data();
  }
  sort_waves();
  run();
  return py::none();
}

}  // namespace fusedopt
