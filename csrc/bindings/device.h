// Where tensors are: which devices have an engine, their streams and their memory. Included by bindings.cpp, after
// torch.
#pragma once

#include <vector>

#include "../cuda/engine.h"
#include "tensor.h"

namespace fusedopt {

// The CPU's index among devices; CUDA's count from 0.
constexpr int kHost = -1;

#ifdef FUSEDOPT_EMULATOR

// Built for the emulator, the CUDA engine steps all tensors, and host memory plays the device's. What cannot be told
// apart by looking is told by tests: whether tensors of one number count as device memory, and the current stream.
extern bool g_numbers_on_device;
extern void* g_stream;

// Whether copies to a device need pinned memory in order not to wait for it.
constexpr bool kPinned = false;
inline int device_index(const TensorImpl&) { return 0; }
inline bool plain(const TensorImpl& impl) { return impl.key_set() == g_plain_keys; }
inline bool number_on_device(const TensorImpl&) { return g_numbers_on_device; }
inline c10::Device torch_device(int) { return at::kCPU; }
inline void* current_stream(int) { return g_stream; }

struct OnDevice {
  explicit OnDevice(int) {}
};

// What a captured step has allocated stays for its replays, as it does in the memory pool of a CUDA graph.
inline void keep_for_replays(bool captured, const at::Tensor& memory) {
  static std::vector<at::Tensor>& kept = *new std::vector<at::Tensor>();
  if (captured) kept.push_back(memory);
}

// While it lives, what is allocated does not belong to the graph being captured.
class OffCapture {
 public:
  explicit OffCapture(int) : before_(g_stream) { g_stream = this; }
  ~OffCapture() { g_stream = before_; }

 private:
  void* before_;
};

#else

constexpr bool kPinned = true;
inline int device_index(const TensorImpl& impl) { return impl.is_cuda() ? impl.device().index() : kHost; }

inline bool plain(const TensorImpl& impl) {
  if (impl.key_set() == g_plain_keys) return true;
  if (!impl.is_cuda() || !cuda::built()) return false;
  static const c10::DispatchKeySet cuda_keys = [] {
    const c10::InferenceMode off(false);
    return at::empty({0}, at::TensorOptions(at::kCUDA).dtype(at::kFloat)).key_set();
  }();
  return impl.key_set() == cuda_keys;
}

inline bool number_on_device(const TensorImpl& impl) { return cuda::built() && impl.is_cuda(); }
inline c10::Device torch_device(int index) {
  return index == kHost ? c10::Device(at::kCPU) : c10::Device(at::kCUDA, static_cast<c10::DeviceIndex>(index));
}

inline void* current_stream(int index) {
  static const py::object& raw = *new py::object(py::module_::import("torch._C").attr("_cuda_getCurrentRawStream"));
  return reinterpret_cast<void*>(raw(index).cast<uintptr_t>());
}

// The graph's memory pool keeps it.
inline void keep_for_replays(bool, const at::Tensor&) {}

// Makes a device current while it lives.
class OnDevice {
 public:
  explicit OnDevice(int index) : guard_(torch_device(index)) {}

 private:
  c10::DeviceGuard guard_;
};

class OffCapture {
 public:
  explicit OffCapture(int index)
      : guard_(c10::impl::VirtualGuardImpl(at::kCUDA).getStreamFromGlobalPool(torch_device(index))) {}

 private:
  c10::StreamGuard guard_;
};

#endif

inline bool number_on_device(const at::Tensor& tensor) { return number_on_device(*tensor.unsafeGetTensorImpl()); }

}  // namespace fusedopt
