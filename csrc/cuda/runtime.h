// How the launchers speak with the CUDA runtime: errors as sentences, the current device, launches.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "engine.h"
#include "table.h"

namespace fusedopt::cuda {

// Throws `what` and the error's name, and has this runtime forget the error: it is a copy that nobody else speaks with,
// and would report it again at every later step. An error that no step could survive comes back by itself.
template <class Error = std::runtime_error>
[[noreturn]] void fail(cudaError_t error, const std::string& what) {
  cudaGetLastError();
  throw Error(what + ": " + cudaGetErrorName(error) + " (" + cudaGetErrorString(error) + ")");
}

// Errors of kernels arrive late, at whatever call comes next.
inline void check_earlier(cudaError_t error) {
  if (error != cudaSuccess)
    fail(error,
         "an earlier CUDA kernel or call failed, and this step wrote nothing; CUDA_LAUNCH_BLOCKING=1 shows which one");
}

// What an error means that comes of asking for a kernel.
inline std::string no_kernels_for(int device) {
  int major = 0, minor = 0;
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  const std::string capability = std::to_string(major) + "." + std::to_string(minor);
  return "device cuda:" + std::to_string(device) + " has compute capability " + capability +
         ", and this build of fusedopt holds " + built_for() +
         "; build it again with TORCH_CUDA_ARCH_LIST=" + capability;
}

// The caller has made the device current for the driver; this runtime, which is a copy of its own, is told as well.
inline void use(int device) {
  int now = 0;
  check_earlier(cudaGetDevice(&now));
  if (now != device) check_earlier(cudaSetDevice(device));
}

// While it lives, this thread may do what a capture elsewhere in the process forbids: it knows what it does.
class Relaxed {
 public:
  Relaxed() { check_earlier(cudaThreadExchangeStreamCaptureMode(&mode_)); }
  ~Relaxed() {
    if (cudaThreadExchangeStreamCaptureMode(&mode_) != cudaSuccess) cudaGetLastError();
  }
  Relaxed(const Relaxed&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

// Whether the stream is being captured into a graph. Throws if an earlier kernel failed, or the capture has.
inline bool capturing(const Place& place) {
  check_earlier(cudaPeekAtLastError());
  use(place.device);
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check_earlier(cudaStreamIsCapturing(static_cast<cudaStream_t>(place.stream), &status));
  if (status == cudaStreamCaptureStatusInvalidated)
    throw std::runtime_error(
        "the capture that this step is part of has failed at something before it, and this step wrote nothing; end the "
        "capture, whose error says at what");
  return status == cudaStreamCaptureStatusActive;
}

// Brings kernels to the current device, which a capture may forbid at a first launch.
template <class... Kernels>
cudaError_t bring(Kernels*... kernels) {
  cudaFuncAttributes attributes;
  cudaError_t error = cudaSuccess;
  ((error = error == cudaSuccess && kernels ? cudaFuncGetAttributes(&attributes, kernels) : error), ...);
  return error;
}

// What has been brought to which devices.
class Brought {
 public:
  // Calls bring(), unless it has been there for the device; throws if there is no kernel for it.
  template <class F>
  void to(int device, F&& bring) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (std::find(devices_.begin(), devices_.end(), device) != devices_.end()) return;
    cudaError_t error;
    {
      const Relaxed relaxed;
      error = bring();
    }
    if (error != cudaSuccess) fail(error, no_kernels_for(device));
    devices_.push_back(device);
  }

 private:
  std::mutex mutex_;
  std::vector<int> devices_;
};

struct LaunchFailed : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Puts the kernels of one job on a stream. put_all(wrote) sets `wrote` as soon as one of them writes what the user
// sees; what a device has been told cannot be taken back, so the error of a later one tells of it.
template <class F>
void put_together(F&& put_all) {
  bool wrote = false;
  try {
    put_all(wrote);
  } catch (const LaunchFailed& error) {
    if (!wrote) throw;
    throw std::runtime_error(kPartlyWritten + std::string(error.what()));
  }
}

// Puts on the stream what start(config) launches.
template <class F>
void put(const Place& place, uint32_t blocks, unsigned threads, F&& start) {
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(threads);
  config.stream = static_cast<cudaStream_t>(place.stream);
  const cudaError_t error = start(config);
  if (error != cudaSuccess) fail<LaunchFailed>(error, "a kernel of this step could not be launched");
}
template <class... Parameters, class... Arguments>
void put(const Place& place, uint32_t blocks, unsigned threads, void (*kernel)(Parameters...),
         const Arguments&... arguments) {
  put(place, blocks, threads,
      [&](const cudaLaunchConfig_t& config) { return cudaLaunchKernelEx(&config, kernel, arguments...); });
}
// A kernel of which a warp takes a chunk.
template <class... Parameters, class... Arguments>
void put_chunks(int64_t chunks, const Place& place, void (*kernel)(Parameters...), const Arguments&... arguments) {
  put(place, static_cast<uint32_t>((chunks + kWarps - 1) / kWarps), kWarps * kLanes, kernel, arguments...);
}

}  // namespace fusedopt::cuda
