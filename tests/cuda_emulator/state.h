// The emulated device as the emulator's own files share it.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "block.h"
#include "cuda_runtime_api.h"
#include "emulator.h"
#include "fibers.h"
#include "shared.h"
#include "shuffle.h"
#include "streams.h"
#include "threads.h"

namespace cuda_emulator {

// What graphs hold, until the last of them is gone.
struct UserObject {
  void* pointer;
  cudaHostFn_t destroy;
};

struct Graph {
  std::vector<Work> work;
  std::vector<std::shared_ptr<UserObject>> objects;
};

struct Capture {
  cudaStream_t stream;
  cudaStreamCaptureMode mode;
  std::thread::id owner;
  bool invalidated;
  std::shared_ptr<Graph> graph;
};

// One call of the runtime that is to fail.
struct Failure {
  int64_t calls_before = -1;  // it, or -1: none
  cudaError_t error = cudaSuccess;
};

struct Settings {
  Backend backend = kThreadSanitizer ? Backend::threads : Backend::fibers;
  int devices = 1, major = 9, minor = 0, multiprocessors = 4, driver = CUDART_VERSION;
  bool kernel_image = true;
};

struct Counters {
  int64_t launches = 0, synchronizations = 0, barrier_errors = 0;
};

struct Device {
  std::mutex mutex;  // for all of it; held while kernels run
  Settings settings;
  Counters counters;
  Failure failure;
  cudaError_t sticky = cudaSuccess;
  std::string message;
  std::vector<Capture> captures;
  std::map<int, std::shared_ptr<Graph>> graphs;
  int graphs_made = 0;                               // so that no number comes twice
  std::vector<std::shared_ptr<UserObject>> objects;  // that the host holds
  Streams streams;
  uintptr_t streams_made = 0, events_made = 0;   // beside those that tests have numbers for
  std::map<const void*, size_t> pinned;          // bytes of the host's memory
  std::map<cudaEvent_t, Streams::Clock> events;  // what they have been recorded after
  void (*wait_hook)() = nullptr;
  SharedMemory shared;
  bool shuffled = false;
  Random random;
  std::vector<uint32_t> order;
  Block block;
  FiberExecutor fibers;
  // Leaves its workers behind in a fork's parent, so the child replaces it.
  ThreadExecutor* threads = new ThreadExecutor;
  Executor* running = nullptr;  // null between kernels
};

// As in CUDA, these belong to the calling OS thread.
inline thread_local cudaError_t last_error = cudaSuccess;
inline thread_local cudaStreamCaptureMode capture_mode = cudaStreamCaptureModeGlobal;
inline thread_local int current_device = 0;

using Lock = std::lock_guard<std::mutex>;

Device& device();

// Null: the stream is not being captured.
Capture* find_capture(cudaStream_t stream);

// Keeps the error for cudaGetLastError(), and gives it back.
cudaError_t report(cudaError_t error);

// What begins every call of the runtime that can fail: the error that the call is to give back at once, if any.
cudaError_t refuse(bool needs_driver = true);

// Gives the work to the stream, or records it if the stream is being captured.
cudaError_t submit(cudaStream_t stream, Work work);

}  // namespace cuda_emulator
