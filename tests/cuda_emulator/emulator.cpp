// Launches, capture and replay, and what tests set and ask.
#include "emulator.h"

#include <pthread.h>

#include <cfenv>
#include <cstdio>

#include "state.h"

namespace cuda_emulator {

// Never destroyed, like the OS threads that use it.
Device& device() {
  static Device* const instance = [] {
    // A fork waits for kernels to end, so that the child finds everything in order.
    pthread_atfork([] { device().mutex.lock(); }, [] { device().mutex.unlock(); },
                   [] {
                     device().threads = new ThreadExecutor;
                     device().mutex.unlock();
                   });
    return new Device;
  }();
  return *instance;
}

Capture* find_capture(cudaStream_t stream) {
  for (Capture& capture : device().captures)
    if (capture.stream == stream) return &capture;
  return nullptr;
}

cudaError_t report(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

cudaError_t submit(cudaStream_t stream, Work work) {
  Capture* const capture = find_capture(stream);
  if (capture == nullptr) return device().streams.put(stream, std::move(work));
  if (capture->invalidated) return report(cudaErrorStreamCaptureInvalidated);
  capture->graph->work.push_back(std::move(work));
  return cudaSuccess;
}

cudaError_t refuse(bool needs_driver) {
  Device& my = device();
  if (my.failure.calls_before >= 0 && my.failure.calls_before-- == 0) return report(my.failure.error);
  if (needs_driver && my.settings.driver / 1000 < CUDART_VERSION / 1000) return report(cudaErrorInsufficientDriver);
  return cudaSuccess;
}

namespace {

cudaError_t run_kernel(const detail::Call& call, dim3 grid, dim3 shape) {
  Device& my = device();
  // The host's rounding mode and flushing of denormals are not the device's.
  std::fenv_t host;
  std::fegetenv(&host);
  std::fesetenv(FE_DFL_ENV);
  my.running = my.settings.backend == Backend::fibers ? static_cast<Executor*>(&my.fibers) : my.threads;
  my.block.set_kernel(call, grid, shape);
  my.shared.begin();
  const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
  if (my.shuffled) {
    my.order.resize(blocks);
    for (uint32_t i = 0; i < blocks; ++i) {
      const uint32_t other = my.random.below(i + 1);
      my.order[i] = my.order[other];
      my.order[other] = i;
    }
  }
  for (uint64_t i = 0; i < blocks && !my.block.failed(); ++i) {
    const uint64_t at = my.shuffled ? my.order[i] : i;
    my.block.start({static_cast<unsigned>(at % grid.x), static_cast<unsigned>(at / grid.x % grid.y),
                    static_cast<unsigned>(at / grid.x / grid.y)});
    my.streams.enter_block(at);
    my.running->run(my.block);
    my.shared.after_block(call.kernel);
  }
  my.running = nullptr;
  std::fesetenv(&host);
  const Fault& fault = my.block.fault();
  if (fault.error == cudaSuccess) return cudaSuccess;
  my.sticky = fault.error;
  my.message = fault.sentence;
  my.counters.barrier_errors += fault.meeting;
  std::fprintf(stderr, "cuda_emulator: %s\n", fault.sentence.c_str());
  return fault.error;
}

bool valid(const cudaLaunchConfig_t& config, const detail::Call& call) {
  constexpr size_t kMaxParameters = 32764;
  const dim3 grid = config.gridDim, shape = config.blockDim;
  const uint64_t threads = uint64_t{shape.x} * shape.y * shape.z;
  return grid.x > 0 && grid.y > 0 && grid.z > 0 && grid.x <= 0x7fffffffu && grid.y <= 0xffffu && grid.z <= 0xffffu &&
         threads > 0 && shape.x <= kMaxThreads && shape.y <= kMaxThreads && shape.z <= 64 && threads <= kMaxThreads &&
         call.bytes <= kMaxParameters && (config.numAttrs == 0 || config.attrs != nullptr) &&
         config.dynamicSmemBytes == 0;  // for want of `extern __shared__`
}

[[noreturn]] void die(const char* sentence) {
  std::fprintf(stderr, "cuda_emulator: %s\n", sentence);
  std::abort();
}

Executor& executor() {
  Executor* const running = device().running;
  if (running == nullptr) die("a device intrinsic that needs a running kernel was called outside of one");
  return *running;
}

}  // namespace

void set_backend(Backend backend) {
  const Lock lock(device().mutex);
  device().settings.backend = kThreadSanitizer ? Backend::threads : backend;
}

void set_seed(uint64_t seed) {
  const Lock lock(device().mutex);
  device().shuffled = seed != 0;
  device().random = Random(seed);
  device().fibers.set_seed(seed);
}

cudaError_t begin_capture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  const Lock lock(device().mutex);
  if (find_capture(stream) != nullptr) return report(cudaErrorInvalidValue);
  device().captures.push_back({stream, mode, std::this_thread::get_id(), false, std::make_shared<Graph>()});
  return cudaSuccess;
}

int end_capture(cudaStream_t stream) {
  const Lock lock(device().mutex);
  Capture* const capture = find_capture(stream);
  if (capture == nullptr) return -1;
  const bool invalidated = capture->invalidated;
  const int number = invalidated ? -1 : device().graphs_made++;
  if (!invalidated) device().graphs[number] = capture->graph;
  device().captures.erase(device().captures.begin() + (capture - device().captures.data()));
  return number;
}

cudaError_t replay(int graph, cudaStream_t stream) {
  const Lock lock(device().mutex);
  if (device().sticky != cudaSuccess) return device().sticky;
  const auto found = device().graphs.find(graph);
  if (found == device().graphs.end()) return report(cudaErrorInvalidValue);
  for (const Work& work : found->second->work)
    if (const cudaError_t error = device().streams.put(stream, work); error != cudaSuccess) return error;
  return cudaSuccess;
}

cudaError_t call_on(cudaStream_t stream, std::function<void()> function) {
  const Lock lock(device().mutex);
  return submit(stream, {[function = std::move(function)] {
                           function();
                           return cudaSuccess;
                         },
                         "a function of the host's"});
}

void destroy_graph(int graph) {
  const Lock lock(device().mutex);
  device().streams.wait_for_all();
  device().graphs.erase(graph);
}

void defer(uint64_t seed) {
  const Lock lock(device().mutex);
  device().streams.defer(seed);
}

void wait_stream(cudaStream_t later, cudaStream_t earlier) {
  const Lock lock(device().mutex);
  device().streams.order(later, device().streams.given(earlier));
}

std::string drain() {
  const Lock lock(device().mutex);
  device().streams.wait_for_all();
  return device().streams.disorder();
}

void allocated(const void* address, size_t bytes, cudaStream_t stream) {
  const Lock lock(device().mutex);
  device().streams.allocated(address, bytes, stream, find_capture(stream) != nullptr);
}

void freed(const void* address) {
  const Lock lock(device().mutex);
  device().streams.freed(address);
}

void used_on(const void* address, cudaStream_t stream) {
  const Lock lock(device().mutex);
  device().streams.used_on(address, stream);
}

size_t bytes_allocated() {
  const Lock lock(device().mutex);
  return device().streams.bytes();
}

size_t pinned_bytes() {
  const Lock lock(device().mutex);
  size_t bytes = 0;
  for (const auto& [memory, its] : device().pinned) bytes += its;
  return bytes;
}

void inject_error(cudaError_t error) {
  const Lock lock(device().mutex);
  device().sticky = error;
}

void clear_error() {
  const Lock lock(device().mutex);
  device().sticky = last_error = cudaSuccess;
}

void fail_call(int64_t n, cudaError_t error) {
  const Lock lock(device().mutex);
  device().failure = {n - 1, error};
}

bool failure_pending() {
  const Lock lock(device().mutex);
  return device().failure.calls_before >= 0;
}

void set_wait_hook(void (*hook)()) {
  const Lock lock(device().mutex);
  device().wait_hook = hook;
}

void set_kernel_image(bool present) {
  const Lock lock(device().mutex);
  device().settings.kernel_image = present;
}

void set_device_count(int count) {
  const Lock lock(device().mutex);
  device().settings.devices = count;
}

void set_driver_version(int version) {
  const Lock lock(device().mutex);
  device().settings.driver = version;
}

void set_compute_capability(int major, int minor) {
  const Lock lock(device().mutex);
  device().settings.major = major;
  device().settings.minor = minor;
}

void set_multiprocessor_count(int count) {
  const Lock lock(device().mutex);
  device().settings.multiprocessors = count;
}

int64_t launches() {
  const Lock lock(device().mutex);
  return device().counters.launches;
}

int64_t synchronizations() {
  const Lock lock(device().mutex);
  return device().counters.synchronizations;
}

int64_t barrier_errors() {
  const Lock lock(device().mutex);
  return device().counters.barrier_errors;
}

void reset_counters() {
  const Lock lock(device().mutex);
  device().counters = {};
}

std::string last_message() {
  const Lock lock(device().mutex);
  return device().message;
}

void reset() {
  set_seed(0);
  clear_error();
  capture_mode = cudaStreamCaptureModeGlobal;
  current_device = 0;
  const Lock lock(device().mutex);
  device().settings = {};
  device().failure = {};
  device().counters = {};
  device().message.clear();
  device().captures.clear();
  device().graphs.clear();
  device().objects.clear();
  device().events.clear();
  device().streams.defer(0);
}

namespace detail {

uint64_t meet(Meeting kind, unsigned mask, uint64_t value, unsigned source, Place place) {
  return executor().meet({kind, mask, value, source, place});
}

unsigned lane() { return Block::current() % kWarp; }

void misaligned(const void* address, size_t needed, Place place) {
  Executor& running = executor();
  char text[1024];
  std::snprintf(text, sizeof(text), "%s accesses %p (%s:%d), which is not a multiple of %zu",
                device().block.name(Block::current()).c_str(), address, place.file, place.line, needed);
  running.fail(cudaErrorMisalignedAddress, text);
  running.abandon();
  __builtin_unreachable();
}

cudaError_t launch(const cudaLaunchConfig_t& config, const Call& call) {
  const Lock lock(device().mutex);
  Device& my = device();
  if (const cudaError_t error = refuse(); error != cudaSuccess) return error;
  if (my.sticky != cudaSuccess) return my.sticky;
  if (my.settings.devices == 0) return report(cudaErrorNoDevice);
  if (!my.settings.kernel_image) return report(cudaErrorNoKernelImageForDevice);
  if (!valid(config, call)) return report(cudaErrorInvalidValue);
  const dim3 grid = config.gridDim, shape = config.blockDim;
  cudaError_t error;
  if (find_capture(config.stream) == nullptr && !my.streams.deferred()) {
    error = run_kernel(call, grid, shape);
  } else {
    const auto run = [call, grid, shape, arguments = call.copy(call.arguments)] {
      Call later = call;
      later.arguments = arguments.get();
      return run_kernel(later, grid, shape);
    };
    error = submit(config.stream, {run, std::string("a kernel ") + call.signature});
  }
  my.counters.launches += error != cudaErrorStreamCaptureInvalidated;
  return error;
}

}  // namespace detail

}  // namespace cuda_emulator
