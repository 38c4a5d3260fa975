// The emulator's controls as a Python module, in the shared object that holds the emulated engine.
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <pybind11/pybind11.h>

#include <atomic>
#include <memory>
#include <vector>

#include "emulator.h"

namespace py = pybind11;

namespace fusedopt {
// device.cpp's.
extern bool g_numbers_on_device;
extern void* g_stream;
}  // namespace fusedopt

namespace {

bool g_tracked = false;
std::atomic<int> g_waits_with_gil{0};

// torch's memory on the CPU, which plays the device's: in the deferred mode the emulator is told of all of it, and what
// is freed stays until the mode ends.
class TrackedMemory final : public c10::Allocator {
 public:
  static void install() {
    static TrackedMemory* const ours = [] {
      auto* allocator = new TrackedMemory(c10::GetCPUAllocator());
      c10::SetCPUAllocator(allocator, /*priority=*/255);
      return allocator;
    }();
    (void)ours;
  }
  static void give_back() {
    for (Block* block : freed()) delete block;
    freed().clear();
  }

  c10::DataPtr allocate(size_t bytes) override {
    c10::DataPtr data = torchs_->allocate(bytes);
    if (!g_tracked || bytes == 0) return data;
    void* const memory = data.get();
    cuda_emulator::allocated(memory, bytes, static_cast<cudaStream_t>(fusedopt::g_stream));
    return {memory, new Block{std::move(data)}, &release, c10::DeviceType::CPU};
  }
  // Of what is allocated while nothing is tracked, as what asks for it in tests is.
  c10::DeleterFnPtr raw_deleter() const override { return torchs_->raw_deleter(); }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }

 private:
  struct Block {
    c10::DataPtr data;
  };

  explicit TrackedMemory(c10::Allocator* torchs) : torchs_(torchs) {}

  static std::vector<Block*>& freed() {
    static auto& blocks = *new std::vector<Block*>;
    return blocks;
  }
  static void release(void* context) {
    Block* const block = static_cast<Block*>(context);
    if (!g_tracked) {
      delete block;
      return;
    }
    cuda_emulator::freed(block->data.get());
    freed().push_back(block);
  }

  c10::Allocator* torchs_;
};

cudaStream_t stream(uintptr_t number) { return reinterpret_cast<cudaStream_t>(number); }
}  // namespace

PYBIND11_MODULE(_emulator, m) {
  using namespace cuda_emulator;
  set_wait_hook([] { g_waits_with_gil += PyGILState_Check(); });
  m.def("numbers_on_device", [](bool on_device) { fusedopt::g_numbers_on_device = on_device; });
  m.def("use_stream", [](uintptr_t number) { fusedopt::g_stream = stream(number); });
  m.def("set_seed", &set_seed);
  m.def("use_threads", [](bool threads) { set_backend(threads ? Backend::threads : Backend::fibers); });
  m.def("begin_capture", [](uintptr_t number) { begin_capture(stream(number)); });
  m.def("end_capture", [](uintptr_t number) { return end_capture(stream(number)); });
  m.def(
      "replay",
      [](int graph, uintptr_t number) {
        if (replay(graph, stream(number)) != cudaSuccess) throw std::runtime_error("replay failed: " + last_message());
      },
      py::arg("graph"), py::arg("stream") = 0);
  m.def("destroy_graph", &destroy_graph);
  m.def("capturing", [] {
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    return cudaStreamIsCapturing(static_cast<cudaStream_t>(fusedopt::g_stream), &status) == cudaSuccess &&
           status == cudaStreamCaptureStatusActive;
  });
  // What torch's operations are in a graph: something that a stream does between two kernels.
  m.def("put", [](const py::function& function) {
    const std::shared_ptr<py::function> held(new py::function(function), [](py::function* gone) {
      const py::gil_scoped_acquire acquire;
      delete gone;
    });
    const auto call = [held] {
      const py::gil_scoped_acquire acquire;
      (*held)();
    };
    if (call_on(static_cast<cudaStream_t>(fusedopt::g_stream), call) != cudaSuccess)
      throw std::runtime_error("put failed: " + last_message());
  });
  m.def("defer", [](uint64_t seed) {
    TrackedMemory::install();
    defer(seed);
    g_tracked = seed != 0;
  });
  m.def("wait_stream", [](uintptr_t later, uintptr_t earlier) { wait_stream(stream(later), stream(earlier)); });
  // Whether the host may wait for a stream now; a capture that forbids it has failed then.
  m.def("synchronize", [](uintptr_t number) {
    const cudaError_t error = cudaStreamSynchronize(stream(number));
    cudaGetLastError();
    return error == cudaSuccess;
  });
  m.def("drain", &drain);
  m.def("bytes_allocated", &bytes_allocated);
  m.def("pinned_bytes", &pinned_bytes);
  m.def("inject_error", [](int error) { inject_error(static_cast<cudaError_t>(error)); });
  m.def("clear_error", &clear_error);
  m.def("fail_call", [](int64_t n) { fail_call(n); });
  m.def("failure_pending", &failure_pending);
  m.def("set_kernel_image", &set_kernel_image);
  m.def("set_driver_version", &set_driver_version);
  // How often a thread has begun to wait while it kept all other Python threads from running.
  m.def("waits_with_gil", [] { return g_waits_with_gil.load(); });
  m.def("launches", &launches);
  m.def("synchronizations", &synchronizations);
  m.def("reset_counters", &reset_counters);
  m.def("reset", [] {
    reset();
    g_tracked = false;
    TrackedMemory::give_back();
    fusedopt::g_numbers_on_device = true;
    fusedopt::g_stream = nullptr;
  });
}
