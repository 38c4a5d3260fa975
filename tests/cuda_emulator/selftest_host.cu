// Tests of the emulator that concern launches as such: their limits, errors, capture, and the host around them.
#include "selftest.h"

#include <sys/wait.h>
#include <unistd.h>

#include <cfenv>
#include <thread>

namespace {

__global__ void add(int* out, int value) {
  __syncthreads();
  if (threadIdx.x == 0) atomicAdd(out, value);
}

void expect_working() {
  int out = 0;
  check(launch(2, 64, add, &out, 3) == cudaSuccess && out == 6, "a launch works");
}

void limits() {
  int out = 0;
  check(launch(dim3(0, 1, 1), 32, add, &out, 1) == cudaErrorInvalidValue, "empty grid");
  check(launch(1, 0, add, &out, 1) == cudaErrorInvalidValue, "empty block");
  check(launch(1, 1025, add, &out, 1) == cudaErrorInvalidValue, "1025 threads");
  check(launch(1, dim3(32, 32, 2), add, &out, 1) == cudaErrorInvalidValue, "2048 threads");
  check(launch(1, dim3(1, 1, 65), add, &out, 1) == cudaErrorInvalidValue, "65 layers");
  check(launch(dim3(1, 65536, 1), 1, add, &out, 1) == cudaErrorInvalidValue, "65536 rows of blocks");
  check(out == 0 && cuda_emulator::launches() == 0, "none of them ran");
  check(cudaPeekAtLastError() == cudaErrorInvalidValue && cudaGetLastError() == cudaErrorInvalidValue, "reported");
  check(cudaPeekAtLastError() == cudaSuccess, "reported once");
  const int blocks = backend == Backend::fibers ? 70000 : 70;  // of OS threads, fewer are slow enough
  check(launch(1, 1024, add, &out, 1) == cudaSuccess && launch(blocks, 1, add, &out, 1) == cudaSuccess, "the largest");
  check(out == blocks + 1 && cuda_emulator::launches() == 2, "both ran");
}

void devices() {
  int n = -1;
  check(cudaGetDeviceCount(&n) == cudaSuccess && n == 1, "one device");
  check(cudaDeviceGetAttribute(&n, cudaDevAttrComputeCapabilityMajor, 0) == cudaSuccess && n == 9, "capability");
  check(cudaDriverGetVersion(&n) == cudaSuccess && n == 13000, "version");
  check(cudaSetDevice(1) == cudaErrorInvalidDevice && cudaGetDevice(&n) == cudaSuccess && n == 0, "no second one");
  cuda_emulator::set_device_count(2);
  check(cudaSetDevice(1) == cudaSuccess && cudaGetDevice(&n) == cudaSuccess && n == 1, "a second one");
  cuda_emulator::set_device_count(0);
  check(cudaGetDeviceCount(&n) == cudaErrorNoDevice && n == 0, "none");
  check(launch(1, 1, add, &n, 1) == cudaErrorNoDevice, "nothing to launch on");
  cuda_emulator::set_device_count(1);
  cudaFuncAttributes attributes;
  check(cudaFuncGetAttributes(&attributes, add) == cudaSuccess && attributes.binaryVersion == 90, "attributes");
  cuda_emulator::set_kernel_image(false);
  check(cudaFuncGetAttributes(&attributes, add) == cudaErrorNoKernelImageForDevice, "no image");
  cuda_emulator::set_driver_version(12090);
  check(cudaDriverGetVersion(&n) == cudaSuccess && n == 12090, "an older driver");
  check(cudaFuncGetAttributes(&attributes, add) == cudaErrorInsufficientDriver, "it is too old");
  check(cudaGetDevice(&n) == cudaErrorInsufficientDriver, "for anything");
  cuda_emulator::set_driver_version(13020);
  check(cudaGetDevice(&n) == cudaSuccess, "a newer one is not");
  check(launch(1, 1, add, &n, 1) == cudaErrorNoKernelImageForDevice, "no image to launch");
}

void errors() {
  int out = 0;
  cuda_emulator::inject_error(cudaErrorIllegalAddress);
  check(launch(1, 1, add, &out, 1) == cudaErrorIllegalAddress && out == 0, "the launch reports what was before it");
  check(cudaGetLastError() == cudaErrorIllegalAddress && cudaGetLastError() == cudaErrorIllegalAddress, "it sticks");
  check(cudaStreamSynchronize(nullptr) == cudaErrorIllegalAddress, "everywhere");
  check(std::string(cudaGetErrorName(cudaErrorIllegalAddress)) == "cudaErrorIllegalAddress", "name");
  check(std::string(cudaGetErrorString(cudaErrorIllegalAddress)) == "an illegal memory access was encountered", "text");
  cuda_emulator::clear_error();
  check(cudaGetLastError() == cudaSuccess, "cleared");
  expect_working();
}

void failures() {
  int out = 0, n = 0;
  cuda_emulator::fail_call(2);
  check(cudaGetDevice(&n) == cudaSuccess, "the first works");
  check(launch(1, 1, add, &out, 1) == cudaErrorMemoryAllocation && out == 0, "the second does not");
  check(!cuda_emulator::failure_pending(), "it has come");
  check(launch(1, 1, add, &out, 1) == cudaSuccess && out == 1, "the third does");
  check(cudaGetLastError() == cudaErrorMemoryAllocation && cudaGetLastError() == cudaSuccess, "reported once");
  cuda_emulator::fail_call(1, cudaErrorUnknown);
  cuda_emulator::fail_call(0);
  expect_working();
}

__global__ void load_odd(const unsigned short* in, int* out) {
  if (threadIdx.x == 5) *out = __ldcs(reinterpret_cast<const int*>(in + 1));
  __syncthreads();
  *out = 1;
}

void misaligned() {
  alignas(4) const unsigned short in[4] = {};
  int out = 0;
  check(launch(2, 64, load_odd, in, &out) == cudaErrorMisalignedAddress, "refused");
  check(out == 0, "no thread got past the barrier");
  check(launch(2, 64, load_odd, in, &out) == cudaErrorMisalignedAddress, "sticky");
  const std::string message = cuda_emulator::last_message();
  check(message.find("thread (5, 0, 0)") != std::string::npos, "the thread is named");
  check(message.find("selftest_host.cu") != std::string::npos, "the line is named");
  check(cuda_emulator::barrier_errors() == 0, "no meeting went wrong");
  cuda_emulator::clear_error();
  expect_working();
}

// How threads can miss each other.
enum Miss {
  kMeets,
  kHalfAtBarrier,
  kLaneExited,
  kLaneAbsent,
  kMasksDiffer,
  kKindsDiffer,
  kNotInMask,
  kSourceNotInMask,
  kTwoBarriers
};

__global__ void meet(int miss, int* out) {
  const unsigned lane = threadIdx.x % 32;
  const bool odd = lane >= 16;
  if (miss == kHalfAtBarrier && odd) __syncthreads();
  if (miss == kLaneExited && lane == 7) return;
  if (miss == kTwoBarriers && odd) __syncthreads();
  if (miss == kTwoBarriers && !odd) __syncthreads();
  if (miss == kKindsDiffer && odd) __any_sync(~0u, 1);
  const unsigned mask = miss == kMasksDiffer && odd ? 0xfffffff0u : miss == kNotInMask && lane == 3 ? ~8u : ~0u;
  if (miss == kSourceNotInMask) {
    if (lane > 0) __shfl_sync(~1u, 1, 0);
  } else {
    __ballot_sync(mask, 1);
  }
  __syncthreads();
  atomicAdd(out, 1);
}

void deadlocks() {
  const struct {
    int miss;
    unsigned threads;
    const char* sentence;
  } cases[] = {
      {kHalfAtBarrier, 64, "waits at __syncthreads"},
      {kLaneExited, 64, "has exited"},
      {kLaneAbsent, 48, "has no such thread"},
      {kMasksDiffer, 64, "0xfffffff0"},
      {kKindsDiffer, 64, "__any_sync"},
      {kNotInMask, 64, "leaves itself out"},
      {kSourceNotInMask, 64, "value of lane 0, which the mask leaves out"},
      {kTwoBarriers, 64, "waits at __syncthreads"},
  };
  int64_t seen = 0;
  for (const auto& entry : cases) {
    int out = 0;
    check(launch(3, entry.threads, meet, entry.miss, &out) == cudaErrorLaunchFailure, entry.sentence);
    check(cuda_emulator::barrier_errors() == ++seen, "counted");
    check(cuda_emulator::last_message().find(entry.sentence) != std::string::npos, entry.sentence);
    check(cudaGetLastError() == cudaErrorLaunchFailure, "sticky");
    cuda_emulator::clear_error();
    check(launch(3, 64, meet, int{kMeets}, &out) == cudaSuccess && out == 192, "the twin meets");
  }
}

void captures() {
  const cudaStream_t recorded = stream(1), other = stream(2);
  int out = 0, copy = 0;
  cudaLaunchConfig_t config{};
  config.stream = recorded;
  check(cuda_emulator::begin_capture(recorded) == cudaSuccess, "begun");
  cudaStreamCaptureStatus status;
  check(cudaStreamIsCapturing(recorded, &status) == cudaSuccess && status == cudaStreamCaptureStatusActive, "active");
  check(cudaStreamIsCapturing(other, &status) == cudaSuccess && status == cudaStreamCaptureStatusNone, "none");
  int value = 5;
  check(cudaMemsetAsync(&out, 1, 1, recorded) == cudaSuccess, "fill");
  check(cudaLaunchKernelEx(&config, add, &out, value) == cudaSuccess, "launch");
  check(cudaMemcpyAsync(&copy, &out, sizeof(int), cudaMemcpyDeviceToDevice, recorded) == cudaSuccess, "copy");
  value = 7;  // the recorded launch keeps its 5
  check(out == 0 && copy == 0 && cuda_emulator::launches() == 1, "recorded, not run");
  config.stream = other;
  check(cudaLaunchKernelEx(&config, add, &out, 100) == cudaSuccess && out == 100, "other streams run");
  const int graph = cuda_emulator::end_capture(recorded);
  out = 0;
  check(graph >= 0 && cuda_emulator::replay(graph) == cudaSuccess && out == 6 && copy == 6, "replayed");
  check(cuda_emulator::replay(graph) == cudaSuccess && copy == 6, "the fill is part of it");
  check(cuda_emulator::launches() == 2, "replays are no launches");
  check(cuda_emulator::replay(graph + 1) == cudaErrorInvalidValue, "no such graph");
}

void forbidden() {
  const cudaStream_t recorded = stream(1), other = stream(2);
  int out = 0;
  cudaLaunchConfig_t config{};
  config.stream = recorded;
  for (const cudaStream_t waited : {recorded, other}) {
    cuda_emulator::begin_capture(recorded);
    check(cudaStreamSynchronize(waited) == cudaErrorStreamCaptureUnsupported, "refused");
    cudaStreamCaptureStatus status;
    cudaStreamIsCapturing(recorded, &status);
    check(status == cudaStreamCaptureStatusInvalidated, "invalidated");
    check(cudaLaunchKernelEx(&config, add, &out, 1) == cudaErrorStreamCaptureInvalidated, "nothing more is recorded");
    check(cuda_emulator::end_capture(recorded) == -1 && out == 0, "no graph");
    cudaGetLastError();
  }
  cuda_emulator::begin_capture(recorded);
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  check(cudaThreadExchangeStreamCaptureMode(&mode) == cudaSuccess && mode == cudaStreamCaptureModeGlobal, "mode");
  check(cudaStreamSynchronize(other) == cudaSuccess, "allowed when relaxed");
  check(cudaThreadExchangeStreamCaptureMode(&mode) == cudaSuccess && mode == cudaStreamCaptureModeRelaxed, "mode");
  std::thread([&] { check(cudaStreamSynchronize(other) == cudaErrorStreamCaptureUnsupported, "threads too"); }).join();
  check(cuda_emulator::end_capture(recorded) == -1, "invalidated from another thread");
  check(cuda_emulator::synchronizations() == 4, "counted");
}

void forks() {
  expect_working();
  const pid_t child = fork();
  if (child == 0) {
    expect_working();
    std::_Exit(0);
  }
  int status = -1;
  check(waitpid(child, &status, 0) == child && status == 0, "the child works");
  expect_working();
}

__global__ void divide(float* out) { *out = out[1] / out[2]; }

// The host's rounding mode is not the device's, and survives a launch.
void environment() {
  float memory[3] = {0, 1, 3};
  std::fesetround(FE_UPWARD);
  check(launch(1, 1, divide, memory) == cudaSuccess, "launched");
  const int after = std::fegetround();
  std::fesetround(FE_TONEAREST);
  check(after == FE_UPWARD && memory[0] == 1.0f / 3.0f, "the device rounds to nearest, the host up");
}

}  // namespace

const std::vector<Case> kHostCases = {
    {"limits", limits},         {"devices", devices},         {"errors", errors},     {"failures", failures},
    {"misaligned", misaligned}, {"deadlocks", deadlocks},     {"captures", captures}, {"forbidden", forbidden},
    {"forks", forks},           {"environment", environment},
};
