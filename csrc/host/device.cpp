#include "device.h"

#include "../cuda/engine.h"

namespace fusedopt {

int device_index(const TensorImpl& impl) { return impl.is_cuda() ? impl.device().index() : kHost; }

c10::Device torch_device(int index) {
  return index == kHost ? c10::Device(at::kCPU) : c10::Device(at::kCUDA, static_cast<c10::DeviceIndex>(index));
}

bool number_on_device(const TensorImpl& impl) { return cuda::built() && impl.is_cuda(); }

bool plain(const TensorImpl& impl) {
  if (impl.key_set() == g_plain_keys) return true;
  if (!impl.is_cuda() || !cuda::built()) return false;
  static const c10::DispatchKeySet cuda_keys = [] {
    const c10::InferenceMode off(false);
    return at::empty({0}, at::TensorOptions(at::kCUDA).dtype(at::kFloat)).key_set();
  }();
  return impl.key_set() == cuda_keys && served(impl.device().index());
}

void* current_stream(int index) {
  static const py::object& raw = *new py::object(py::module_::import("torch._C").attr("_cuda_getCurrentRawStream"));
  return reinterpret_cast<void*>(raw(index).cast<uintptr_t>());
}

at::Tensor zeros_on(int index, int64_t bytes) {
  return at::zeros({bytes}, at::TensorOptions(torch_device(index)).dtype(at::kByte));
}

void use_on_stream(int index, const at::Tensor& memory) {
  const c10::impl::VirtualGuardImpl guard(at::kCUDA);
  guard.recordDataPtrOnStream(memory.storage().data_ptr(), guard.getStream(torch_device(index)));
}

// The graph's memory pool keeps it.
void keep_for_replays(bool, const at::Tensor&) {}

OnDevice::OnDevice(int index) { guard_.emplace(torch_device(index)); }

OffCapture::OffCapture(int index) {
  guard_.emplace(c10::impl::VirtualGuardImpl(at::kCUDA).getStreamFromGlobalPool(torch_device(index)));
}
OffCapture::~OffCapture() = default;

}  // namespace fusedopt
