// How the launchers speak with the CUDA runtime: errors as sentences, the current device, launches.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "engine.h"

namespace fusedopt::cuda {

[[noreturn]] inline void fail(cudaError_t error, const std::string& what) {
  throw std::runtime_error(what + ": " + cudaGetErrorName(error) + " (" + cudaGetErrorString(error) + ")");
}

// Errors of kernels arrive late, at whatever call comes next.
inline void check_earlier(cudaError_t error) {
  if (error != cudaSuccess)
    fail(error,
         "an earlier CUDA kernel or call failed, and this step wrote nothing; CUDA_LAUNCH_BLOCKING=1 shows which one");
}

// The caller has made the device current for the driver; this runtime, which is a copy of its own, is told as well.
inline void use(int device) {
  int now = 0;
  check_earlier(cudaGetDevice(&now));
  if (now != device) check_earlier(cudaSetDevice(device));
}

// Whether the stream is being captured into a graph. Throws if an earlier kernel failed, or if this build has none of
// these kernels for the device. They are brought there, which a capture may forbid at a first launch.
template <class... Kernels>
bool ready_with(const Place& place, Kernels*... kernels) {
  check_earlier(cudaPeekAtLastError());
  use(place.device);
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check_earlier(cudaStreamIsCapturing(static_cast<cudaStream_t>(place.stream), &status));
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  cudaThreadExchangeStreamCaptureMode(&mode);
  cudaFuncAttributes attributes;
  cudaError_t error = cudaSuccess;
  ((error = error == cudaSuccess ? cudaFuncGetAttributes(&attributes, kernels) : error), ...);
  cudaThreadExchangeStreamCaptureMode(&mode);
  if (error != cudaSuccess) {
    cudaGetLastError();
    fail(error, "this build of fusedopt holds " + built_for() +
                    " and has no kernel for device cuda:" + std::to_string(place.device));
  }
  return status == cudaStreamCaptureStatusActive;
}

// Whether a launch carries 32,764 bytes of parameters, and not only 4 KiB.
inline bool large_parameters() {
  static const bool large = [] {
    int driver = 0;
    return cudaDriverGetVersion(&driver) == cudaSuccess && driver >= 12010 && CUDART_VERSION >= 12010;
  }();
  return large;
}

// Puts on the stream what start(config) launches.
template <class F>
void put(const Place& place, uint32_t blocks, unsigned threads, F&& start) {
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(threads);
  config.stream = static_cast<cudaStream_t>(place.stream);
  const cudaError_t error = start(config);
  if (error != cudaSuccess) {
    cudaGetLastError();
    fail(error, "a kernel of this step could not be launched");
  }
}
template <class... Parameters, class... Arguments>
void put(const Place& place, uint32_t blocks, unsigned threads, void (*kernel)(Parameters...),
         const Arguments&... arguments) {
  put(place, blocks, threads,
      [&](const cudaLaunchConfig_t& config) { return cudaLaunchKernelEx(&config, kernel, arguments...); });
}

}  // namespace fusedopt::cuda
