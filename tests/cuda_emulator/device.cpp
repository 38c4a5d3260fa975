// In the place of csrc/host/device.cpp: the CUDA engine steps all tensors, and host memory plays the device's. What
// cannot be told apart by looking is told by tests: whether tensors of one number count as device memory, and the
// current stream.
#include "../../csrc/host/device.h"

#include "emulator.h"

namespace fusedopt {

bool g_numbers_on_device = true;
void* g_stream = nullptr;

int device_index(const TensorImpl&) { return 0; }
c10::Device torch_device(int) { return at::kCPU; }
bool number_on_device(const TensorImpl&) { return g_numbers_on_device; }
bool plain(const TensorImpl& impl) { return impl.key_set() == g_plain_keys && served(0); }
void* current_stream(int) { return g_stream; }
at::Tensor zeros_on(int, int64_t bytes) {
  const at::Tensor memory = at::empty({bytes}, at::TensorOptions(at::kCPU).dtype(at::kByte));
  const cudaError_t error = cudaMemsetAsync(memory.mutable_data_ptr(), 0, bytes, static_cast<cudaStream_t>(g_stream));
  // As torch does.
  if (error != cudaSuccess)
    throw std::runtime_error(std::string("CUDA error: ") + cudaGetErrorName(cudaGetLastError()));
  return memory;
}
void use_on_stream(int, const at::Tensor& memory) {
  cuda_emulator::used_on(memory.const_data_ptr(), static_cast<cudaStream_t>(g_stream));
}

// As in the memory pool of a CUDA graph.
void keep_for_replays(bool captured, const at::Tensor& memory) {
  static std::vector<at::Tensor>& kept = *new std::vector<at::Tensor>();
  if (captured) kept.push_back(memory);
}

OnDevice::OnDevice(int) {}

OffCapture::OffCapture(int) : before_(g_stream) { g_stream = this; }
OffCapture::~OffCapture() { g_stream = before_; }

}  // namespace fusedopt
