// The emulated device as tests see it: how it runs blocks, what it pretends to lack, stream capture, and what it saw.
// All of it holds for the whole process; each function may be called from any thread.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "cuda_runtime.h"

namespace cuda_emulator {

// fibers: the threads of a block take turns on the launching OS thread, fast and in an order that the seed repeats.
// threads: each is an OS thread, so that ThreadSanitizer sees every access that no barrier orders. A build with
// ThreadSanitizer has only the second.
enum class Backend { fibers, threads };

void set_backend(Backend backend);

// 0: blocks and threads run in the order of their indices. Any other seed shuffles the blocks of a launch and, with
// fibers, picks the next thread at random wherever one waits or exits.
void set_seed(uint64_t seed);

// Between these two, launches, copies and fills on the stream are recorded instead of run. end_capture returns the
// graph's number, or -1 if a call that capture forbids has invalidated it (or if nothing was being captured).
cudaError_t begin_capture(cudaStream_t stream, cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal);
int end_capture(cudaStream_t stream);
cudaError_t replay(int graph, cudaStream_t stream = nullptr);
// What the graph held is given back, once all streams are done.
void destroy_graph(int graph);

// Has the stream call a function, as cudaLaunchHostFunc() does.
cudaError_t call_on(cudaStream_t stream, std::function<void()> function);

// The deferred mode of streams.h, with fibers, until reset(); 0 ends it.
void defer(uint64_t seed);
// As cudaStreamWaitEvent() on an event recorded just now.
void wait_stream(cudaStream_t later, cudaStream_t earlier);
// All streams do what they have been given. Returns what nothing had put in order, or an empty string.
std::string drain();
// Memory, as streams.h has it, that whoever calls this makes and keeps until the mode ends.
void allocated(const void* address, size_t bytes, cudaStream_t stream);
void freed(const void* address);
void used_on(const void* address, cudaStream_t stream);
size_t bytes_allocated();
// Of the host's memory that is pinned.
size_t pinned_bytes();

// From now on whatever may report an earlier kernel's fault reports this, until clear_error() (as after a real fault).
void inject_error(cudaError_t error);
void clear_error();

// The n-th call of the runtime from now on, counted from 1, fails with this error and does nothing; the next works
// again. 0: none does. Calls that only ask for errors are not counted.
void fail_call(int64_t n, cudaError_t error = cudaErrorMemoryAllocation);
// Whether that call has yet to come.
bool failure_pending();

// Is called by a thread that is about to wait for a stream; null: nothing is.
void set_wait_hook(void (*hook)());

// false: no kernel was compiled for the device.
void set_kernel_image(bool present);
void set_device_count(int count);
// As cudaDriverGetVersion() has it. One older than the runtime's major version makes every other call fail.
void set_driver_version(int version);
void set_compute_capability(int major, int minor);
void set_multiprocessor_count(int count);

// Since reset_counters(): launches run or recorded, but not replayed; waits for a stream, also refused ones; kernels
// that failed because threads of a block did not meet as they must.
int64_t launches();
int64_t synchronizations();
int64_t barrier_errors();
void reset_counters();

// The sentence about the last kernel that failed; empty if none has.
std::string last_message();

// Everything above as in a fresh process; graphs and running captures are dropped.
void reset();

}  // namespace cuda_emulator
