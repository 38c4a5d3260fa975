// The CUDA runtime's host interface, as far as host.h declares it, on the emulated device; launches are in
// emulator.cpp.
#include <algorithm>

#include "state.h"

using namespace cuda_emulator;

namespace {

// Whether it keeps the calling thread from a call that might wait for the captured work.
bool forbids(const Capture& capture) {
  if (capture_mode == cudaStreamCaptureModeRelaxed || capture.mode == cudaStreamCaptureModeRelaxed) return false;
  if (capture.owner == std::this_thread::get_id()) return true;
  return capture_mode == cudaStreamCaptureModeGlobal && capture.mode == cudaStreamCaptureModeGlobal;
}

struct ErrorText {
  cudaError_t error;
  const char* name;
  const char* text;
};

constexpr ErrorText kErrors[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInitializationError, "cudaErrorInitializationError", "initialization error"},
    {cudaErrorInvalidConfiguration, "cudaErrorInvalidConfiguration", "invalid configuration argument"},
    {cudaErrorInsufficientDriver, "cudaErrorInsufficientDriver",
     "CUDA driver version is insufficient for CUDA runtime version"},
    {cudaErrorInvalidDeviceFunction, "cudaErrorInvalidDeviceFunction", "invalid device function"},
    {cudaErrorNoDevice, "cudaErrorNoDevice", "no CUDA-capable device is detected"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorNoKernelImageForDevice, "cudaErrorNoKernelImageForDevice",
     "no kernel image is available for execution on the device"},
    {cudaErrorJitCompilerNotFound, "cudaErrorJitCompilerNotFound", "PTX JIT compiler library not found"},
    {cudaErrorUnsupportedPtxVersion, "cudaErrorUnsupportedPtxVersion",
     "the provided PTX was compiled with an unsupported toolchain."},
    {cudaErrorIllegalAddress, "cudaErrorIllegalAddress", "an illegal memory access was encountered"},
    {cudaErrorLaunchOutOfResources, "cudaErrorLaunchOutOfResources", "too many resources requested for launch"},
    {cudaErrorMisalignedAddress, "cudaErrorMisalignedAddress", "misaligned address"},
    {cudaErrorLaunchFailure, "cudaErrorLaunchFailure", "unspecified launch failure"},
    {cudaErrorNotSupported, "cudaErrorNotSupported", "operation not supported"},
    {cudaErrorStreamCaptureUnsupported, "cudaErrorStreamCaptureUnsupported",
     "operation not permitted when stream is capturing"},
    {cudaErrorStreamCaptureInvalidated, "cudaErrorStreamCaptureInvalidated",
     "operation failed due to a previous error during capture"},
    {cudaErrorUnknown, "cudaErrorUnknown", "unknown error"},
};

const ErrorText& find(cudaError_t error) {
  static constexpr ErrorText kUnnamed = {cudaErrorUnknown, "unrecognized error code", "unrecognized error code"};
  for (const ErrorText& entry : kErrors)
    if (entry.error == error) return entry;
  return kUnnamed;
}

}  // namespace

const char* cudaGetErrorName(cudaError_t error) { return find(error).name; }
const char* cudaGetErrorString(cudaError_t error) { return find(error).text; }

cudaError_t cudaPeekAtLastError() {
  const Lock lock(device().mutex);
  return device().sticky != cudaSuccess ? device().sticky : last_error;
}

cudaError_t cudaGetLastError() {
  const cudaError_t error = cudaPeekAtLastError();
  last_error = cudaSuccess;
  return error;
}

cudaError_t cudaDriverGetVersion(int* version) {
  const Lock lock(device().mutex);
  if (const cudaError_t error = refuse(/*needs_driver=*/false); error != cudaSuccess) return error;
  if (version == nullptr) return report(cudaErrorInvalidValue);
  *version = device().settings.driver;
  return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int* version) {
  if (version == nullptr) return report(cudaErrorInvalidValue);
  *version = CUDART_VERSION;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int* count) {
  const Lock lock(device().mutex);
  if (const cudaError_t error = refuse(); error != cudaSuccess) return error;
  if (count == nullptr) return report(cudaErrorInvalidValue);
  *count = device().settings.devices;
  return *count == 0 ? report(cudaErrorNoDevice) : cudaSuccess;
}

cudaError_t cudaGetDevice(int* ordinal) {
  const Lock lock(device().mutex);
  if (const cudaError_t error = refuse(); error != cudaSuccess) return error;
  if (ordinal == nullptr) return report(cudaErrorInvalidValue);
  if (device().settings.devices == 0) return report(cudaErrorNoDevice);
  *ordinal = current_device;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int ordinal) {
  const Lock lock(device().mutex);
  if (const cudaError_t error = refuse(); error != cudaSuccess) return error;
  if (device().settings.devices == 0) return report(cudaErrorNoDevice);
  if (ordinal < 0 || ordinal >= device().settings.devices) return report(cudaErrorInvalidDevice);
  current_device = ordinal;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int ordinal) {
  const Lock lock(device().mutex);
  if (const cudaError_t error = refuse(); error != cudaSuccess) return error;
  const Settings& settings = device().settings;
  if (value == nullptr) return report(cudaErrorInvalidValue);
  if (ordinal < 0 || ordinal >= settings.devices) return report(cudaErrorInvalidDevice);
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = settings.multiprocessors;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      *value = settings.major;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = settings.minor;
      return cudaSuccess;
  }
  return report(cudaErrorInvalidValue);
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  const Lock lock(device().mutex);
  if (const cudaError_t error = refuse(); error != cudaSuccess) return error;
  if (device().sticky != cudaSuccess) return device().sticky;
  if (bytes == 0) return cudaSuccess;
  if (to == nullptr || from == nullptr || kind < cudaMemcpyHostToHost || kind > cudaMemcpyDefault)
    return report(cudaErrorInvalidValue);
  return submit(stream, {[=] {
                           device().streams.access(from, bytes, false);
                           device().streams.access(to, bytes, true);
                           std::memmove(to, from, bytes);
                           return cudaSuccess;
                         },
                         "a copy"});
}

cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  const Lock lock(device().mutex);
  if (const cudaError_t error = refuse(); error != cudaSuccess) return error;
  if (device().sticky != cudaSuccess) return device().sticky;
  if (bytes == 0) return cudaSuccess;
  if (to == nullptr) return report(cudaErrorInvalidValue);
  return submit(stream, {[=] {
                           device().streams.access(to, bytes, true);
                           std::memset(to, value, bytes);
                           return cudaSuccess;
                         },
                         "a fill"});
}

cudaError_t cudaHostAlloc(void** memory, size_t bytes, unsigned flags) {
  const Lock lock(device().mutex);
  if (const cudaError_t error = refuse(); error != cudaSuccess) return error;
  if (memory == nullptr || bytes == 0 || flags != cudaHostAllocDefault) return report(cudaErrorInvalidValue);
  constexpr size_t kPage = 4096;
  *memory = std::aligned_alloc(kPage, (bytes + kPage - 1) / kPage * kPage);
  device().pinned[*memory] = bytes;
  if (device().streams.deferred()) device().streams.allocated(*memory, bytes, nullptr, /*of_graph=*/false);
  return cudaSuccess;
}

// The runtime waits for the device first.
cudaError_t cudaFreeHost(void* memory) {
  const Lock lock(device().mutex);
  if (const cudaError_t error = refuse(); error != cudaSuccess) return error;
  device().streams.wait_for_all();
  device().streams.forget(memory);
  device().pinned.erase(memory);
  std::free(memory);
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  const Lock lock(device().mutex);
  if (const cudaError_t error = refuse(); error != cudaSuccess) return error;
  if (stream == nullptr || flags != cudaStreamNonBlocking) return report(cudaErrorInvalidValue);
  constexpr uintptr_t kFirst = 1'000'000;
  *stream = reinterpret_cast<cudaStream_t>(kFirst + device().streams_made++);
  return cudaSuccess;
}

// What it has been given is done all the same.
cudaError_t cudaStreamDestroy(cudaStream_t) {
  const Lock lock(device().mutex);
  return refuse();
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  const Lock lock(device().mutex);
  if (const cudaError_t error = refuse(); error != cudaSuccess) return error;
  if (event == nullptr || flags != cudaEventDisableTiming) return report(cudaErrorInvalidValue);
  *event = reinterpret_cast<cudaEvent_t>(++device().events_made);
  device().events[*event] = {};
  return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  const Lock lock(device().mutex);
  if (const cudaError_t error = refuse(); error != cudaSuccess) return error;
  return device().events.erase(event) == 1 ? cudaSuccess : report(cudaErrorInvalidValue);
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  const Lock lock(device().mutex);
  if (const cudaError_t error = refuse(); error != cudaSuccess) return error;
  if (device().sticky != cudaSuccess) return device().sticky;
  const auto found = device().events.find(event);
  if (found == device().events.end()) return report(cudaErrorInvalidValue);
  found->second = device().streams.given(stream);
  return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags) {
  const Lock lock(device().mutex);
  if (const cudaError_t error = refuse(); error != cudaSuccess) return error;
  if (device().sticky != cudaSuccess) return device().sticky;
  const auto found = device().events.find(event);
  if (found == device().events.end() || flags != 0) return report(cudaErrorInvalidValue);
  device().streams.order(stream, found->second);
  return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  if (device().wait_hook != nullptr) device().wait_hook();
  const Lock lock(device().mutex);
  if (const cudaError_t error = refuse(); error != cudaSuccess) return error;
  ++device().counters.synchronizations;
  if (device().sticky != cudaSuccess) return device().sticky;
  const auto found = device().events.find(event);
  if (found == device().events.end()) return report(cudaErrorInvalidValue);
  device().streams.wait_for(found->second);
  return device().sticky;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  if (device().wait_hook != nullptr) device().wait_hook();
  const Lock lock(device().mutex);
  if (const cudaError_t error = refuse(); error != cudaSuccess) return error;
  ++device().counters.synchronizations;
  if (device().sticky != cudaSuccess) return device().sticky;
  bool refused = false;
  for (Capture& capture : device().captures) {
    if (capture.stream != stream && !forbids(capture)) continue;
    capture.invalidated = refused = true;
  }
  if (refused) return report(cudaErrorStreamCaptureUnsupported);
  device().streams.wait_for(stream);
  return device().sticky;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  const Lock lock(device().mutex);
  if (const cudaError_t error = refuse(); error != cudaSuccess) return error;
  if (device().sticky != cudaSuccess) return device().sticky;
  if (status == nullptr) return report(cudaErrorInvalidValue);
  const Capture* const capture = find_capture(stream);
  *status = capture == nullptr     ? cudaStreamCaptureStatusNone
            : capture->invalidated ? cudaStreamCaptureStatusInvalidated
                                   : cudaStreamCaptureStatusActive;
  return cudaSuccess;
}

cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, cudaStreamCaptureStatus* status, unsigned long long* id,
                                     cudaGraph_t* graph) {
  const cudaError_t error = cudaStreamIsCapturing(stream, status);
  if (error != cudaSuccess || *status != cudaStreamCaptureStatusActive) return error;
  const Lock lock(device().mutex);
  Graph* const its = find_capture(stream)->graph.get();
  if (graph != nullptr) *graph = reinterpret_cast<cudaGraph_t>(its);
  if (id != nullptr) *id = reinterpret_cast<uintptr_t>(its);
  return cudaSuccess;
}

cudaError_t cudaUserObjectCreate(cudaUserObject_t* object, void* pointer, cudaHostFn_t destroy, unsigned references,
                                 unsigned flags) {
  const Lock lock(device().mutex);
  if (const cudaError_t error = refuse(); error != cudaSuccess) return error;
  if (object == nullptr || destroy == nullptr || references != 1 || flags != cudaUserObjectNoDestructorSync)
    return report(cudaErrorInvalidValue);
  std::shared_ptr<UserObject> made(new UserObject{pointer, destroy}, [](UserObject* its) {
    its->destroy(its->pointer);
    delete its;
  });
  *object = reinterpret_cast<cudaUserObject_t>(made.get());
  device().objects.push_back(std::move(made));
  return cudaSuccess;
}

cudaError_t cudaGraphRetainUserObject(cudaGraph_t graph, cudaUserObject_t object, unsigned count, unsigned flags) {
  const Lock lock(device().mutex);
  if (const cudaError_t error = refuse(); error != cudaSuccess) return error;
  auto& objects = device().objects;
  const auto found = std::find_if(objects.begin(), objects.end(), [&](const std::shared_ptr<UserObject>& its) {
    return reinterpret_cast<cudaUserObject_t>(its.get()) == object;
  });
  if (graph == nullptr || found == objects.end() || count != 1 || flags != cudaGraphUserObjectMove)
    return report(cudaErrorInvalidValue);
  reinterpret_cast<Graph*>(graph)->objects.push_back(std::move(*found));
  objects.erase(found);
  return cudaSuccess;
}

cudaError_t cudaUserObjectRelease(cudaUserObject_t object, unsigned count) {
  const Lock lock(device().mutex);
  if (const cudaError_t error = refuse(); error != cudaSuccess) return error;
  auto& objects = device().objects;
  const auto found = std::find_if(objects.begin(), objects.end(), [&](const std::shared_ptr<UserObject>& its) {
    return reinterpret_cast<cudaUserObject_t>(its.get()) == object;
  });
  if (found == objects.end() || count != 1) return report(cudaErrorInvalidValue);
  objects.erase(found);
  return cudaSuccess;
}

cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  const Lock lock(device().mutex);
  if (const cudaError_t error = refuse(); error != cudaSuccess) return error;
  if (mode == nullptr) return report(cudaErrorInvalidValue);
  std::swap(*mode, capture_mode);
  return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* kernel) {
  const Lock lock(device().mutex);
  if (const cudaError_t error = refuse(); error != cudaSuccess) return error;
  if (device().sticky != cudaSuccess) return device().sticky;
  if (attributes == nullptr) return report(cudaErrorInvalidValue);
  if (kernel == nullptr) return report(cudaErrorInvalidDeviceFunction);
  if (!device().settings.kernel_image) return report(cudaErrorNoKernelImageForDevice);
  const int architecture = device().settings.major * 10 + device().settings.minor;
  *attributes = {0, 0, 0, static_cast<int>(kMaxThreads), 32, architecture, architecture};
  return cudaSuccess;
}
