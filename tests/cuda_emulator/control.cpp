// The emulator's controls as a Python module, in the shared object that holds the emulated engine.
#include <pybind11/pybind11.h>

#include "emulator.h"

namespace py = pybind11;

namespace fusedopt {
// device.cpp's.
extern bool g_numbers_on_device;
extern void* g_stream;
}  // namespace fusedopt

namespace {
cudaStream_t stream(uintptr_t number) { return reinterpret_cast<cudaStream_t>(number); }
}  // namespace

PYBIND11_MODULE(_emulator, m) {
  using namespace cuda_emulator;
  m.def("numbers_on_device", [](bool on_device) { fusedopt::g_numbers_on_device = on_device; });
  m.def("use_stream", [](uintptr_t number) { fusedopt::g_stream = stream(number); });
  m.def("set_seed", &set_seed);
  m.def("use_threads", [](bool threads) { set_backend(threads ? Backend::threads : Backend::fibers); });
  m.def("begin_capture", [](uintptr_t number) { begin_capture(stream(number)); });
  m.def("end_capture", [](uintptr_t number) { return end_capture(stream(number)); });
  m.def("replay", [](int graph) {
    if (replay(graph) != cudaSuccess) throw std::runtime_error("replay failed: " + last_message());
  });
  m.def("inject_error", [](int error) { inject_error(static_cast<cudaError_t>(error)); });
  m.def("clear_error", &clear_error);
  m.def("fail_call", [](int64_t n) { fail_call(n); });
  m.def("failure_pending", &failure_pending);
  m.def("set_kernel_image", &set_kernel_image);
  m.def("set_driver_version", &set_driver_version);
  m.def("launches", &launches);
  m.def("synchronizations", &synchronizations);
  m.def("reset_counters", &reset_counters);
  m.def("reset", [] {
    reset();
    fusedopt::g_numbers_on_device = true;
    fusedopt::g_stream = nullptr;
  });
}
