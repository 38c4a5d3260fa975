// The Python module.
#include "../cpu/engine.h"
#include "../cuda/engine.h"
#include "bind.h"
#include "device.h"

namespace fusedopt {
namespace {

float* float_data(const py::object& tensor, int64_t numel) {
  if (!THPVariable_Check(tensor.ptr())) throw py::type_error("adam_traffic takes four tensors");
  const at::Tensor& t = unpack(tensor.ptr());
  if (t.scalar_type() != at::kFloat || !t.is_contiguous() || t.numel() != numel || !t.is_cpu())
    throw py::value_error("adam_traffic takes four contiguous float32 CPU tensors of one size");
  return t.mutable_data_ptr<float>();
}

// Whether something is called with a param's gradient after it has been accumulated and its own hooks have run: what
// averages gradients over processes does that.
bool awaited(const py::object& param) {
  if (!THPVariable_Check(param.ptr())) throw py::type_error("awaited takes a tensor");
  const auto accumulates = torch::autograd::impl::try_get_grad_accumulator(unpack(param.ptr()));
  return accumulates && !accumulates->post_hooks().empty();
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "The compiled half of fusedopt.";
  // fusedopt/_extension.py also finds it in the file, where another torch keeps that from being loaded.
  m.attr("built_for") = "fusedopt is built for torch " FUSEDOPT_TORCH;
  // torch's errors carry a C++ stack in what(); a user needs the sentence.
  py::register_exception_translator([](std::exception_ptr error) {
    try {
      if (error) std::rethrow_exception(error);
    } catch (const c10::Error& e) {
      PyErr_SetString(PyExc_RuntimeError, e.what_without_backtrace());
    }
  });

  bind_plan(m);
  bind_lbfgs(m);
  bind_clipping(m);
  bind_codec(m);
  bind_rules(m);

  m.def("profiling", [] { return at::hasCallbacks(); }, "Whether a profiler or observer listens to record_function.");
  m.def("awaited", &awaited, py::arg("param"),
        "Whether something reads a param's gradient after it has been accumulated and its hooks have run.");
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
  m.def("chosen_isa", [] { return std::make_pair(cpu::chosen_isa().name, cpu::choice_reason()); });
  m.def("use_isa", &cpu::use_isa, py::arg("name"));
  m.def("multiplies_bfloat16", &cpu::multiplies_bfloat16);
  m.def("cuda_built", &cuda::built);
  m.def("cuda_built_for", &cuda::built_for);
  m.def("cuda_obstacle", &obstacle_on, py::arg("device"),
        "Why CUDA kernels cannot run on a device; empty if they can.");
  m.def("take_obstacle", &take_obstacle, "What a user has to be told of a device that has no kernels; once.");
  m.def("adam_traffic", [](py::object p, py::object g, py::object m, py::object v) {
    const int64_t n = unpack(p.ptr()).numel();
    cpu::adam_traffic(float_data(p, n), float_data(g, n), float_data(m, n), float_data(v, n), n, at::get_num_threads());
  });
}

}  // namespace fusedopt
