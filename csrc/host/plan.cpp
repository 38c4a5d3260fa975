// A step: what is looked at, refused and made before the first pass writes.
#include "plan.h"

#include "../rules/rule.h"
#include "new_entries.h"

namespace fusedopt {

// Looks at every device that the step will use. Throws if it cannot take place there.
void Plan::make_ready(const py::object& optimizer) {
  capturing_ = false;
  bool on_host = false;
  for (const Pass& pass : roster_.passes()) {
    on_host = on_host || pass.device == kHost;
    if (pass.from != kHost) {
      const OnDevice guard(pass.from);
      capturing_ = cuda::is_captured({pass.from, current_stream(pass.from)}) || capturing_;
    }
    if (pass.device == kHost || pass.wave > 0) continue;
    const OnDevice guard(pass.device);
    const cuda::Place place = {pass.device, current_stream(pass.device)};
    capturing_ = cuda::ready(place, rule()) || capturing_;
    if (roster_.products()) cuda::ready(place, *roster_.products()->after);
  }
  if (!capturing_) return;

  for (const Pass& pass : roster_.passes())
    if (pass.from != kHost)
      throw std::runtime_error(
          "offload='cpu' steps params on the host, and a replay of a CUDA graph does nothing there; step outside of "
          "the capture");
  if (families_.owe_sums())
    throw std::runtime_error(
        "a step of tensors of which this process has shards, and whose rule needs the whole of them, waits for other "
        "processes, and cannot be captured into a CUDA graph; step outside of the capture");
  for (const Group& group : roster_.groups())
    if (group.refuses_capture)
      throw std::runtime_error("Attempting CUDA graph capture of step() for an instance of " +
                               std::string(py::str(py::type::of(optimizer).attr("__name__"))) +
                               " but param_groups' capturable is False: construct it with capturable=True");
  bool draws = false;
  for (int g = 0; g < static_cast<int>(roster_.groups().size()); ++g) draws = draws || roster_.options_of(g).draws();
  if (draws)
    throw std::runtime_error(
        "rounding='stochastic', and a state_dtype of 16 bits, draw anew in each step, which a replay of a CUDA graph "
        "cannot; step outside the capture");
  if (on_host) throw std::runtime_error("a step that also updates params on the CPU cannot be captured");
  for (const size_t i : roster_.new_states())
    roster_.fail(roster_.source(i),
                 "it has no state yet, which a replay would make anew each time; take one step before the capture");
  for (size_t i = 0; i < roster_.count(); ++i)
    for (int c = 0; c < rule().counters; ++c)
      if (!roster_.source(i).before[c].device)
        roster_.fail(roster_.source(i),
                     std::string("its state '") + rule().counter_names[c] +
                         "' is on the CPU, where a graph cannot advance it; take one step before the capture");
  for (const Group& group : roster_.groups())
    for (int i = 0; rule().joint && i < rule().hypers; ++i)
      if (rule().scopes[i] == Scope::kept && !group.hypers[i].device)
        throw std::runtime_error("param_groups' '" + std::string(py::str(roster_.names().hypers[i].key)) +
                                 "' is on the CPU, where a graph cannot advance it; take one step before the capture");
}

// Whether the host must know found_inf and what gradients are divided by: to step params on the CPU or leave some to
// torch, and to make no states in a step that is none. Not in steady state.
bool Plan::host_needs_scaling(bool leftover) const {
  bool host = leftover || (!roster_.new_states().empty() && !capturing_);
  for (const Pass& pass : roster_.passes()) host = host || pass.device == kHost;
  for (size_t i = 0; rule().indexed && i < roster_.count(); ++i)
    host = host || roster_.counts_in_python(roster_.source(i));
  return host;
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
  roster_.find_rules(rule_name_);
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
      plan.roster_.release();
    }
  } const release{*this};
  // Under a dispatch mode torch steps all params, and a number may be one that must not be read.
  PyObject* scale = c10::impl::TorchDispatchModeTLS::any_modes_set() ? nullptr
                    : divisor.is_none()                              ? attribute(known.grad_scale)
                                                                     : divisor.ptr();
  scaling_.read(attribute(known.found_inf), scale);
  if (scaling_.skips()) return py::none();
  shares_grads_ = false;

  // A subclass may make them properties.
  const auto member = [&](const Ref& name) {
    PyObject* found = attribute(name);
    return found ? borrow(found) : Ref(optimizer.attr(name));
  };
  const Ref state = member(known.state);
  if (!PyDict_Check(state.ptr())) throw py::type_error("optimizer.state is not a dict");
  const Ref groups = member(known.param_groups);
  const bool listed_anew = roster_.read(groups.ptr(), state.ptr(), grads);
  looks_once_ = looks_once_ || listed_anew;
  families_.find(roster_);
  if (clipping) norm_.find(roster_, options_);
  struct Together {
    Plan& plan;
    bool done = false;
    ~Together() {
      // Who hears of it by the norm does not come to the sums.
      if (!done && plan.norm_.owed())
        plan.norm_.refuse(plan.roster_);
      else if (!done)
        plan.give_up();
      plan.families_.settle();
      plan.norm_.settle();
    }
  } together{*this};

  // All that can be refused is refused here; after it only memory can be lacking.
  py::list leftover = roster_.collect(clears_grad);
  // What is stepped here is cleared there.
  const auto offloaded = [](const Pass& pass) { return pass.from != kHost; };
  const auto& passes = roster_.passes();
  // What backward(create_graph=True) leaves would keep its graph if it were cleared where it lies, and the next one's
  // would come on top of it: it has to be another tensor.
  const auto in_graph = [&] {
    for (size_t slot = 0; slot < roster_.slots().size(); ++slot) {
      const at::Tensor& grad = roster_.grad_of(static_cast<int>(slot));
      if (grad.defined() && grad.requires_grad()) return true;
    }
    return false;
  };
  if (clears_grad && (rule().indexed || std::any_of(passes.begin(), passes.end(), offloaded) ||
                      roster_.grads_overlap() || in_graph())) {
    shares_grads_ = true;
    leftover = roster_.collect(false);
  }
  families_.check(roster_);
  if (listed_anew || (roster_.count() == 0 && leftover.empty())) roster_.refuse_replaced();
  if (clipping && !(leftover.empty() && clip(*clipping))) {
    together.done = true;
    return py::none();
  }
  if (rule().joint) roster_.check_one_pass();
  make_ready(optimizer);
  if (host_needs_scaling(!leftover.empty())) scaling_.fetch();
  const bool skipped = scaling_.skips();
  together.done = skipped || (!leftover.empty() && !engine_only);
  if (skipped) return py::none();
  if (together.done) return leftover;
  if (!leftover.empty() && roster_.has_options()) roster_.refuse_leftover(leftover);
  roster_.move_counters(scaling_.known_there_alone());
  NewEntries new_entries(state.ptr());
  roster_.make_states(new_entries, scaling_.known_there_alone());
  if (roster_.has_options()) {
    const Ref decay = member(known.ema_decay);
    work_.step.key = stream(roster_.options().seed, draws_);
    work_.step.first_slot = first_slot_;
    roster_.set_draws(work_.step.key, first_slot_, decay.is_none() ? 0 : to_number(decay.ptr(), "ema_decay").value);
  }
  run();
  together.done = true;
  if (roster_.count() > 0) ++draws_;
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
            return std::make_unique<Plan>(made[0].cast<std::string>(), made[1].cast<py::dict>(), made[2].cast<bool>(),
                                          made[3].cast<py::dict>());
          }));
}

}  // namespace fusedopt
