// The Python module, and the only file that includes torch.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/view_as_real.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <ATen/record_function.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/autograd/python_variable.h>

namespace py = pybind11;

#include "bindings/factored.h"
#include "bindings/history.h"
#include "bindings/norm.h"
#include "bindings/plugin.h"

namespace fusedopt {
namespace {

float* float_data(const py::object& tensor, int64_t numel) {
  if (!THPVariable_Check(tensor.ptr())) throw py::type_error("adam_traffic takes four tensors");
  const at::Tensor& t = unpack(tensor.ptr());
  if (t.scalar_type() != at::kFloat || !t.is_contiguous() || t.numel() != numel || !t.is_cpu())
    throw py::value_error("adam_traffic takes four contiguous float32 CPU tensors of one size");
  return t.mutable_data_ptr<float>();
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "The compiled half of fusedopt.";
  // torch's errors carry a C++ stack in what(); a user needs the sentence.
  py::register_exception_translator([](std::exception_ptr error) {
    try {
      if (error) std::rethrow_exception(error);
    } catch (const c10::Error& e) {
      PyErr_SetString(PyExc_RuntimeError, e.what_without_backtrace());
    }
  });

  py::class_<Plan>(m, "Plan", py::module_local(), "A rule bound to one optimizer's params, checked and run by step().")
      .def(py::init<std::string, py::dict, bool, py::dict>(), py::arg("rule"), py::arg("defaults"),
           py::arg("device_counters") = false, py::arg("options") = py::dict())
      .def("step", &Plan::step, py::arg("optimizer"), py::arg("engine_only") = false, py::arg("divisor") = py::none(),
           py::arg("clears_grad") = false)
      .def_property("draws", &Plan::draws, &Plan::set_draws_done)
      .def_property("first_slot", &Plan::first_slot, &Plan::set_first_slot)
      .def_property_readonly("shares_grads", &Plan::shares_grads)
      .def("refresh", &Plan::refresh, py::arg("optimizer"))
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

  history::bind(m);
  bind_norm(m);

  m.def("profiling", [] { return at::hasCallbacks(); }, "Whether a profiler or observer listens to record_function.");
  m.def("built_isas", [] {
    std::vector<std::string> names;
    for (const cpu::Isa& isa : cpu::built_isas()) names.emplace_back(isa.name);
    return names;
  });
  m.def("supported_isas", [] {
    std::vector<std::string> names;
    for (const cpu::Isa& isa : cpu::built_isas())
      if (isa.supported) names.emplace_back(isa.name);
    return names;
  });
  m.def("chosen_isa", [] { return std::make_pair(std::string(cpu::chosen_isa().name), cpu::choice_reason()); });
  m.def("use_isa", &cpu::use_isa, py::arg("name"));
  m.def("multiplies_bfloat16", &cpu::multiplies_bfloat16);
  m.def("cuda_built", &cuda::built);
  m.def("cuda_built_for", &cuda::built_for);
  m.def("rules", [] {
    int count = 0;
    const Rule* rules = cpu::chosen_isa().rules(count);
    py::dict result;
    for (int i = 0; i < count; ++i) result[rules[i].name] = describe(rules[i]);
    result[cpu::factored_rule().name] = describe(cpu::factored_rule());
    return result;
  });
  m.def("load_rule", &load_rule, py::arg("path"));
  m.def(
      "counters",
      [](const std::string& name) {
        const Rule* rule = cpu::find_rule(name);
        if (!rule) throw py::value_error("no rule is named '" + name + "'");
        return std::vector<std::string>(rule->counter_names, rule->counter_names + rule->counters);
      },
      py::arg("rule"), "The per-param counters of any rule, one from a shared object included.");
  m.def(
      "states",
      [](const std::string& name) {
        const Rule* rule = cpu::find_rule(name);
        if (!rule) throw py::value_error("no rule is named '" + name + "'");
        return kinds_of(*rule);
      },
      py::arg("rule"), "The names of any rule's states and their kinds, one from a shared object included.");
  m.def("adam_traffic", [](py::object p, py::object g, py::object m, py::object v) {
    const int64_t n = unpack(p.ptr()).numel();
    cpu::adam_traffic(float_data(p, n), float_data(g, n), float_data(m, n), float_data(v, n), n, at::get_num_threads());
  });
}

}  // namespace fusedopt
