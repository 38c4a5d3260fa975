// Where tensors are: which devices have an engine, their streams and their memory. device.cpp says it of a machine;
// for the CUDA engine's emulator, which takes host memory for a device's, tests/cuda_emulator/device.cpp does.
#pragma once

#include "tensor.h"

namespace fusedopt {

// The CPU's index among devices; CUDA's count from 0.
constexpr int kHost = -1;

int device_index(const TensorImpl& impl);
c10::Device torch_device(int index);
// Whether a tensor of one number lies where only a kernel can read it.
bool number_on_device(const TensorImpl& impl);
inline bool number_on_device(const at::Tensor& tensor) { return number_on_device(*tensor.unsafeGetTensorImpl()); }

// Whether an engine takes a tensor: it is an ordinary one, on the CPU or on a device.
bool plain(const TensorImpl& impl);

// Whether the CUDA engine's kernels run on a device. Where they do not, tensors are torch's to step.
bool served(int device);
// Why not; empty where they do.
std::string obstacle_on(int device);
// The same of the first device that was found so, once.
std::string take_obstacle();

void* current_stream(int index);
// So many bytes of zeros, which the current stream makes.
at::Tensor zeros_on(int index, int64_t bytes);
// Has the allocator know that the current stream uses memory of another.
void use_on_stream(int index, const at::Tensor& memory);
// What a captured step has allocated stays for its replays.
void keep_for_replays(bool captured, const at::Tensor& memory);

// Makes a device current while it lives.
class OnDevice {
 public:
  explicit OnDevice(int index);

 private:
  std::optional<c10::DeviceGuard> guard_;
};

// While it lives, what is allocated does not belong to the graph being captured.
class OffCapture {
 public:
  explicit OffCapture(int index);
  ~OffCapture();
  OffCapture(const OffCapture&) = delete;

 private:
  std::optional<c10::StreamGuard> guard_;
  void* before_ = nullptr;
};

}  // namespace fusedopt
