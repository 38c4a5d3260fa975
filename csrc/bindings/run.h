// The second half of a plan: making states, and the step itself. Included by bindings.cpp, after torch.
#pragma once

#include "collect.h"

namespace fusedopt {

// New states are complete before the first of them is entered in optimizer.state, and leave it if entering one fails.
inline void Plan::make_states(PyObject* state) {
  if (new_states_.empty()) return;
  std::unordered_map<PyObject*, size_t> made;  // a param listed twice has one state
  std::vector<std::pair<PyObject*, Ref>> entries;
  const at::ScalarType default_dtype = at::get_default_dtype_as_scalartype() == at::kDouble ? at::kDouble : at::kFloat;
  for (const size_t i : new_states_) {
    Source& source = sources_[i];
    const Slot& slot = slots_[source.slot];
    const auto [twin, is_new] = made.emplace(slot.param, i);
    if (!is_new) {
      std::copy_n(sources_[twin->second].state, kMaxStates, source.state);
      std::copy_n(sources_[twin->second].counter, kMaxCounters, source.counter);
      std::copy_n(rows_[twin->second].state_dtype, kMaxStates, rows_[i].state_dtype);
      continue;
    }
    py::dict entry;
    PyObject* fused = PyDict_GetItemString(PySequence_Fast_GET_ITEM(group_list_, slot.group), "fused");
    const at::ScalarType dtype = fused && PyObject_IsTrue(fused) == 1 ? at::kFloat : default_dtype;
    for (int c = 0; c < rule_->counters; ++c) {
      const at::Tensor counter = at::zeros({}, at::TensorOptions(at::kCPU).dtype(dtype));
      entry[keys_[rule_->states + c]] = py::reinterpret_steal<py::object>(THPVariable_Wrap(counter));
      source.counter[c] = counter.unsafeGetTensorImpl();
    }
    for (int k = 0; k < rule_->states; ++k) {
      if (!(groups_[slot.group].keeps >> k & 1)) continue;
      const at::Tensor& param = unpack(slot.param);
      const at::Tensor value = at::zeros_like(rule_->state_like_grad ? param.grad() : param, param.options());
      entry[keys_[k]] = py::reinterpret_steal<py::object>(THPVariable_Wrap(value));
      source.state[k] = value.unsafeGetTensorImpl();
      storage_of(*source.state[k], rows_[i].state_dtype[k]);
    }
    entries.emplace_back(slot.param, std::move(entry));
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
  for (size_t i = 0; i < count_; ++i) last = std::max(last, slots_[sources_[i].slot].wave);
  if (last == 0) return;
  std::vector<size_t> index(count_);
  for (size_t i = 0; i < count_; ++i) index[i] = i;
  const auto wave = [&](size_t i) { return slots_[sources_[i].slot].wave; };
  std::stable_sort(index.begin(), index.end(), [&](size_t a, size_t b) { return wave(a) < wave(b); });
  const std::vector<Row> rows = rows_;
  const std::vector<Source> sources = sources_;
  for (size_t i = 0; i < count_; ++i) {
    rows_[i] = rows[index[i]];
    sources_[i] = sources[index[i]];
  }
}

inline void Plan::read_counts(Source& source) const {
  for (int c = 0; c < rule_->counters; ++c)
    source.before[c] =
        is_double(*source.counter[c]) ? *static_cast<double*>(source.count[c]) : *static_cast<float*>(source.count[c]);
}

inline void Plan::write_counts(size_t first, size_t last) {
  for (size_t i = first; i < last; ++i) {
    const Source& source = sources_[i];
    for (int c = 0; c < rule_->counters; ++c) {
      const double value = prepared_[source.prepared].after[c];
      if (is_double(*source.counter[c]))
        *static_cast<double*>(source.count[c]) = value;
      else
        *static_cast<float*>(source.count[c]) = static_cast<float>(value);
    }
  }
}

// prepare() once for each run of rows with the same hyper-parameters and counters, which is nearly always all of them.
inline void Plan::prepare_rows(size_t first, size_t last) {
  prepared_.clear();
  int64_t work = 0;
  for (size_t i = first; i < last; ++i) {
    Source& source = sources_[i];
    const int group = groups_[slots_[source.slot].group].same_as;
    const Prepared* known = prepared_.empty() ? nullptr : &prepared_.back();
    if (!known || known->group != group || known->first != source.first ||
        !std::equal(source.before, source.before + rule_->counters, known->before)) {
      Prepared& next = prepared_.emplace_back();
      next.group = group;
      next.first = source.first;
      std::copy_n(source.before, kMaxCounters, next.before);
      std::copy_n(source.before, kMaxCounters, next.after);
      next.scalars[0] = groups_[group].sign * multiplier_;
      rule_->prepare(groups_[group].hypers.data(), next.after, next.first, next.scalars + 1);
    }
    source.prepared = static_cast<uint32_t>(prepared_.size() - 1);
    rows_[i].work_end = work += rows_[i].numel + cpu::kRowOverhead;
  }
  for (size_t i = first; i < last; ++i) rows_[i].scalars = prepared_[sources_[i].prepared].scalars;
}

// Tells autograd of the writes.
inline void Plan::bump_versions() const {
  for (size_t i = 0; i < count_; ++i) {
    const Source& source = sources_[i];
    source.param->bump_version();
    for (int c = 0; c < rule_->counters; ++c) source.counter[c]->bump_version();
    for (int k = 0; k < rule_->states; ++k)
      if (source.state[k]) source.state[k]->bump_version();
  }
}

inline void Plan::run() {
  // From this many elements on other Python threads may run meanwhile; what they could free is held.
  constexpr int64_t kReleaseGil = 1 << 21;
  std::vector<c10::intrusive_ptr<TensorImpl>> held;
  const auto hold = [&](TensorImpl* impl) {
    if (impl) held.push_back(c10::intrusive_ptr<TensorImpl>::reclaim_copy(impl));
  };
  for (size_t first = 0, last; first < count_; first = last) {
    const int wave = slots_[sources_[first].slot].wave;
    for (last = first; last < count_ && slots_[sources_[last].slot].wave == wave;) ++last;
    if (wave > 0)
      for (size_t i = first; i < last; ++i) read_counts(sources_[i]);
    prepare_rows(first, last);
    const auto sweep = [&] { cpu::sweep(*rule_, rows_.data() + first, rows_.data() + last, at::get_num_threads()); };
    if (rows_[last - 1].work_end < kReleaseGil) {
      sweep();
    } else {
      for (size_t i = 0; i < count_; ++i) {
        hold(sources_[i].param);
        hold(sources_[i].grad);
        for (TensorImpl* state : sources_[i].state) hold(state);
        for (TensorImpl* counter : sources_[i].counter) hold(counter);
      }
      busy_ = true;
      {
        const py::gil_scoped_release release;
        sweep();
      }
      busy_ = false;
    }
    write_counts(first, last);
  }
  bump_versions();
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

  // A subclass may make them properties.
  const auto member = [&](const char* name) {
    PyObject* found = attribute(name);
    return found ? borrow(found) : Ref(optimizer.attr(name));
  };
  const Ref state = member("state");
  if (!PyDict_Check(state.ptr())) throw py::type_error("optimizer.state is not a dict");
  const Ref groups = member("param_groups");
  read_groups(groups.ptr());
  if (!slots_match(state.ptr())) rebuild_slots(state.ptr());

  // All that can be refused is refused here; after it only memory can be lacking.
  const py::list leftover = collect_all();
  if (!leftover.empty() && !engine_only) return leftover;
  make_states(state.ptr());
  for (const size_t i : new_states_) {
    Row& row = rows_[i];
    Source& source = sources_[i];
    lay_out(row, source);
    address(row, source);
    for (int c = 0; c < rule_->counters; ++c) source.count[c] = data_of(*source.counter[c]);
    read_counts(source);
  }
  sort_waves();
  run();
  return py::none();
}

}  // namespace fusedopt
