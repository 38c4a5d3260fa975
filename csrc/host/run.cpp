// The second half of a plan: the step itself.
#include "new_entries.h"
#include "plan.h"

namespace fusedopt {

// Gives a counter that is a Python number its next value, in all rows of a param that is listed twice.
void Plan::count_in_python(size_t i, int c, double value) {
  const Slot& slot = slots_[sources_[i].slot];
  const Ref dict = slot.state ? borrow(slot.state) : Ref(borrow(state_of_all_)[borrow(slot.param)]);
  dict[keys_[rule_->states + c].name] = py::int_(static_cast<int64_t>(value));
  for (size_t k = i; k < count_; ++k)
    if (slots_[sources_[k].slot].param == slot.param)
      sources_[k].counter_object[c] = PyDict_GetItem(dict.ptr(), keys_[rule_->states + c].name.ptr());
}

void Plan::write_counts(const Pass& pass) {
  for (size_t i = pass.first; i < pass.last; ++i) {
    const Source& source = sources_[i];
    for (int c = 0; c < rule_->counters; ++c) {
      if (source.before[c].device) continue;
      const double value = work_.prepared[rows_[i].entry].after[c];
      if (!source.counter[c])
        count_in_python(i, c, value);
      else if (is_double(*source.counter[c]))
        *static_cast<double*>(source.count[c]) = value;
      else
        *static_cast<float*>(source.count[c]) = static_cast<float>(value);
    }
  }
}

// prepare() once for each run of rows with the same hyper-parameters and counters, which is nearly always all of them.
// Where a device has the counters it does this, too.
void Plan::prepare_rows(const Pass& pass) {
  std::vector<cuda::Entry>& entries = work_.step.entries;
  entries.clear();
  work_.prepared.clear();
  bool changed = false;
  for (size_t i = pass.first; i < pass.last; ++i) {
    const Source& source = sources_[i];
    // A captured step keeps to its own group: its numbers may come to differ from the others' before a replay.
    const int own = slots_[source.slot].group, group = capturing_ ? own : groups_[own].same_as;
    const bool wide = rows_[i].param_dtype == Dtype::f64 || rule_->factored;
    const cuda::Entry* known = entries.empty() ? nullptr : &entries.back();
    if (!known || known->group != group || known->first != source.first || known->wide != wide ||
        !std::equal(source.before, source.before + rule_->counters, known->counter) ||
        (rule_->measures(rows_[i].variant) && !rule_->joint)) {
      cuda::Entry& entry = entries.emplace_back();
      Prepared& prepared = work_.prepared.emplace_back();
      entry.group = group;
      entry.first = source.first;
      entry.wide = wide;
      bool on_device = source.device != kHost && rule_->counters == 0;
      for (int c = 0; c < rule_->counters; ++c) {
        entry.counter[c] = source.before[c];
        prepared.after[c] = source.before[c].value;
        on_device = on_device || source.before[c].device;
      }
      prepared.scalars[0] = groups_[group].sign * scaling_.multiplier();
      if (!on_device)
        rule_->prepare(groups_[group].numbers().data(), prepared.after, entry.first, prepared.scalars + 1);
    }
    const uint32_t entry = static_cast<uint32_t>(work_.prepared.size() - 1);
    changed = changed || rows_[i].entry != entry;
    rows_[i].entry = entry;
  }
  rows_version_ += changed;
}

// Whether clearing one gradient could change what another param still has to read: gradients that share memory, and
// expanded ones.
bool Plan::grads_overlap() const {
  std::vector<std::pair<const char*, const char*>> ranges;
  for (size_t i = 0; i < count_; ++i) {
    const TensorImpl& grad = *sources_[i].grad;
    if (grad.numel() == 0) continue;
    if (!grad.is_non_overlapping_and_dense()) return true;
    const char* begin = static_cast<const char*>(read_of(grad, grad.dtype().itemsize()));
    ranges.emplace_back(begin, begin + grad.numel() * grad.dtype().itemsize());
  }
  std::sort(ranges.begin(), ranges.end());
  for (size_t i = 1; i < ranges.size(); ++i)
    if (ranges[i].first < ranges[i - 1].second) return true;
  return false;
}

// Tells autograd of the writes.
void Plan::bump_versions() const {
  for (size_t i = 0; i < count_; ++i) {
    const Source& source = sources_[i];
    source.param->bump_version();
    for (int c = 0; c < rule_->counters; ++c)
      if (source.counter[c]) source.counter[c]->bump_version();
    for (int k = 0; k < rule_->states; ++k)
      if (source.state[k]) source.state[k]->bump_version();
    for (int a = 0; rows_[i].extras && a < kAttached; ++a)
      if (source.attached[a]) source.attached[a]->bump_version();
    if (clears_grad_) source.grad->bump_version();
    if (source.sharded) whole(source, [](TensorImpl* impl) { impl->bump_version(); });
  }
}

// Steps rows on the CPU.
void Plan::sweep(Work& work, Row* first, Row* last) {
  int64_t total = 0;
  for (Row* row = first; row < last; ++row) {
    row->work_end = total += row->numel + cpu::kRowOverhead;
    row->scalars = work.prepared[row->entry].scalars;
    row->counters = work.prepared[row->entry].after;
  }
  if (rule_->joint) {
    without_gil(owes_sums_ ? std::max(total, kReleaseGil) : total, [&] {
      cpu::sweep(*work.step.rule, first, last, at::get_num_threads(),
                 [&](const std::vector<cpu::ChunkSums>& sums) { conclude_together(sums, first, work); });
    });
    return keep_in_groups();
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

void Plan::run() {
  // Whoever has no gradients has part in the others' sums all the same.
  const auto divided = [&](const Source& source) { return in_parts(source); };
  const bool takes_part = rule_->joint ? count_ > 0 : std::any_of(sources_.begin(), sources_.begin() + count_, divided);
  if (owes_sums_ && !takes_part) come_without_rows();
  for (const Pass& pass : passes_) {
    if (rule_->joint && pass.device != kHost) keep_on_device(pass.device);
    if (pass.wave > 0)
      for (size_t i = pass.first; i < pass.last; ++i) read_counts(sources_[i]);
    prepare_rows(pass);
    work_.wave = pass.wave;
    adds_up_ = owes_sums_ && std::any_of(sources_.begin() + pass.first, sources_.begin() + pass.last, divided);
    give_groups(work_.step);
    work_.step.rows_version = rows_version_;
    work_.step.multiplier = scaling_.multiplier();
    if (products_)
      run_with_products(pass);
    else if (rule_->factored)
      run_factored(pass);
    else if (pass.from != kHost)
      run_offloaded(pass);
    else
      run(work_, rows_.data() + pass.first, rows_.data() + pass.last, pass.device);
    write_counts(pass);
  }
  bump_versions();
}

// Rules are those of an instruction set, and another may have been chosen since the last step.
void Plan::find_rules() {
  const cpu::Isa* chosen = &cpu::chosen_isa();
  if (isa_ == chosen) return;
  rule_ = rule_named(rule_name_);
  if (products_) products_->after = rule_named(products_->after->name);
  isa_ = chosen;
}

py::object Plan::step_clipped(const py::object& optimizer, double max_norm, bool clears_grad) {
  Clipping clipping = {max_norm, {}, {}};
  step(optimizer, false, py::none(), clears_grad, py::none(), &clipping);
  return clipping.norm.defined() ? wrap(clipping.norm) : py::none();
}

py::object Plan::step(py::object optimizer, bool engine_only, py::object divisor, bool clears_grad, py::object grads,
                      Clipping* clipping) {
  if (busy_) throw std::runtime_error("step() is already running on this optimizer in another thread");
  if (clipping && !looks_once_) return py::none();
  find_rules();
  const Ref dict = py::reinterpret_steal<py::object>(PyObject_GenericGetDict(optimizer.ptr(), nullptr));
  // What a step reads of an optimizer.
  struct Attributes {
    Ref found_inf = intern("found_inf"), grad_scale = intern("grad_scale"), state = intern("state"),
        param_groups = intern("param_groups"), ema_decay = intern("ema_decay");
  };
  static const Attributes& known = *new Attributes();
  const auto attribute = [&](const Ref& name) {
    PyObject* found = PyDict_GetItem(dict.ptr(), name.ptr());
    return found == Py_None ? nullptr : found;
  };

  struct Release {
    Plan& plan;
    ~Release() {
      plan.scaling_.release();
      plan.held_.clear();
      plan.grads_ = nullptr;
    }
  } const release{*this};
  // Under a dispatch mode torch steps all params, and a number may be one that must not be read.
  PyObject* scale = c10::impl::TorchDispatchModeTLS::any_modes_set() ? nullptr
                    : divisor.is_none()                              ? attribute(known.grad_scale)
                                                                     : divisor.ptr();
  scaling_.read(attribute(known.found_inf), scale);
  if (scaling_.skips()) return py::none();
  clears_grad_ = clears_grad;
  shares_grads_ = false;

  // A subclass may make them properties.
  const auto member = [&](const Ref& name) {
    PyObject* found = attribute(name);
    return found ? borrow(found) : Ref(optimizer.attr(name));
  };
  const Ref state = member(known.state);
  if (!PyDict_Check(state.ptr())) throw py::type_error("optimizer.state is not a dict");
  state_of_all_ = state.ptr();
  const Ref groups = member(known.param_groups);
  read_groups(groups.ptr(), state.ptr());
  const bool listed_anew = !slots_match(state.ptr());
  if (listed_anew) rebuild_slots(state.ptr());
  take_grads(grads);
  find_families();
  struct Together {
    Plan& plan;
    bool done = false;
    ~Together() {
      if (!done) plan.give_up();
      plan.owes_sums_ = false;
    }
  } together{*this};

  // All that can be refused is refused here; after it only memory can be lacking.
  py::list leftover = collect_all();
  // What is stepped here is cleared there.
  const auto offloaded = [](const Pass& pass) { return pass.from != kHost; };
  if (clears_grad_ && (rule_->indexed || std::any_of(passes_.begin(), passes_.end(), offloaded) || grads_overlap())) {
    shares_grads_ = true;
    clears_grad_ = false;
    leftover = collect_all();
  }
  if (listed_anew || (count_ == 0 && leftover.empty())) refuse_replaced();
  if (clipping && !(leftover.empty() && clip(*clipping))) {
    together.done = true;
    return py::none();
  }
  if (rule_->joint) check_one_pass();
  make_ready(optimizer);
  if (host_needs_scaling(!leftover.empty())) scaling_.fetch();
  const bool skipped = scaling_.skips();
  together.done = skipped || (!leftover.empty() && !engine_only);
  if (skipped) return py::none();
  if (together.done) return leftover;
  if (!leftover.empty() && has_options_) refuse_leftover(leftover);
  move_counters();
  NewEntries new_entries(state.ptr());
  make_states(new_entries);
  for (const size_t i : new_states_) {
    Row& row = rows_[i];
    Source& source = sources_[i];
    outfit(i);
    lay_out(row, source);
    address(row, source, moved_);
    for (int c = 0; c < rule_->counters; ++c)
      if (source.counter[c]) source.count[c] = data_of(*source.counter[c]);
    read_counts(source);
  }
  if (has_options_) {
    const Ref decay = member(known.ema_decay);
    set_draws(decay.is_none() ? 0 : to_number(decay.ptr(), "ema_decay").value);
  }
  run();
  together.done = true;
  if (count_ > 0) ++draws_;
  new_entries.keep();
  return py::none();
}

void bind_plan(py::module_& m) {
  py::class_<Plan>(m, "Plan", py::module_local(), "A rule bound to one optimizer's params, checked and run by step().")
      .def(py::init<std::string, py::dict, bool, py::dict>(), py::arg("rule"), py::arg("defaults"),
           py::arg("device_counters") = false, py::arg("options") = py::dict())
      .def(
          "step",
          [](Plan& plan, py::object optimizer, bool engine_only, py::object divisor, bool clears_grad,
             py::object grads) { return plan.step(optimizer, engine_only, divisor, clears_grad, grads); },
          py::arg("optimizer"), py::arg("engine_only") = false, py::arg("divisor") = py::none(),
          py::arg("clears_grad") = false, py::arg("grads") = py::none())
      .def_property_readonly("looks_once", &Plan::looks_once)
      .def("step_clipped", &Plan::step_clipped, py::arg("optimizer"), py::arg("max_norm"), py::arg("clears_grad"))
      .def_property("draws", &Plan::draws, &Plan::set_draws_done)
      .def_property("first_slot", &Plan::first_slot, &Plan::set_first_slot)
      .def("why_left", &Plan::why_left, py::arg("param"))
      .def("give_up", &Plan::give_up)
      .def_property_readonly("shares_grads", &Plan::shares_grads)
      .def("refresh", &Plan::refresh, py::arg("optimizer"))
      .def_property_readonly("captured", &Plan::captured)
      .def_property_readonly("skipped", &Plan::skipped)
      // A copied optimizer starts with a plan of its own.
      .def(py::pickle(
          [](const Plan& plan) {
            return py::make_tuple(plan.rule_name(), plan.defaults(), plan.device_counters(), plan.options());
          },
          [](const py::tuple& made) {
            return Plan(made[0].cast<std::string>(), made[1].cast<py::dict>(), made[2].cast<bool>(),
                        made[3].cast<py::dict>());
          }));
}

}  // namespace fusedopt
