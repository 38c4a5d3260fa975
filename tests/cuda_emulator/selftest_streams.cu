// Tests of the deferred mode, of what graphs hold, and of shared memory that nobody has written.
#include "selftest.h"

namespace {

__global__ void write(int* to, int value) {
  if (threadIdx.x == 0) *to = value;
}

__global__ void copy(const int* from, int* to) {
  if (threadIdx.x == 0) *to = *from;
}

template <class... Parameters, class... Given>
void launch_on(uintptr_t number, void (*kernel)(Parameters...), Given&&... given) {
  cudaLaunchConfig_t config{};
  config.gridDim = config.blockDim = dim3(1);
  config.stream = stream(number);
  check(cudaLaunchKernelEx(&config, kernel, std::forward<Given>(given)...) == cudaSuccess, "launched");
}

// A case's memory, and the order of its streams' work.
struct Deferred {
  static inline uint64_t seed = 0;
  int memory[2] = {1, 2};

  explicit Deferred(uintptr_t owner = 1) {
    cuda_emulator::defer(++seed);
    cuda_emulator::allocated(memory, sizeof(memory), stream(owner));
  }
  ~Deferred() { cuda_emulator::defer(0); }

  void expect_order() {
    const std::string disorder = cuda_emulator::drain();
    check(disorder.empty(), disorder.c_str());
  }
};

template <bool waits>
void across_streams() {
  Deferred its;
  launch_on(1, write, its.memory, 7);
  if (waits) cuda_emulator::wait_stream(stream(2), stream(1));
  launch_on(2, copy, its.memory, its.memory + 1);
  its.expect_order();
  check(its.memory[1] == 7, "the value");
}

template <bool waits>
void overwritten() {
  Deferred its;
  launch_on(2, copy, its.memory, its.memory + 1);
  if (waits) cuda_emulator::wait_stream(stream(1), stream(2));
  check(cudaMemsetAsync(its.memory, 0, sizeof(int), stream(1)) == cudaSuccess, "fill");
  its.expect_order();
  check(its.memory[0] == 0 && its.memory[1] == 1, "the values");
}

// The host waits for one stream, which makes what it gives others later come after that.
template <bool waits>
void by_way_of_the_host() {
  Deferred its;
  launch_on(1, write, its.memory, 7);
  if (waits) check(cudaStreamSynchronize(stream(1)) == cudaSuccess && its.memory[0] == 7, "waited");
  launch_on(2, copy, its.memory, its.memory + 1);
  its.expect_order();
}

template <bool waits>
void read_by_the_host() {
  for (int i = 0; i < 8; ++i) {
    Deferred its;
    launch_on(1, write, its.memory, 7);
    if (waits) cudaStreamSynchronize(stream(1));
    check(its.memory[0] == 7, "the host sees what the device has written");
  }
}

// Each block writes a place of its own, or reads what another writes, or all count in one place.
template <bool apart>
__global__ void write_by_block(int* to) {
  to[apart ? blockIdx.x : 0] = 1;
}
template <bool apart>
__global__ void read_by_block(int* to) {
  to[blockIdx.x] = to[apart ? blockIdx.x : 0] + 1;
}
__global__ void count_blocks(int* to) { atomicAdd(to, 1); }

template <class... Parameters>
void launch_two_blocks(void (*kernel)(Parameters...), Parameters... given) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(2);
  config.blockDim = dim3(1);
  config.stream = stream(1);
  check(cudaLaunchKernelEx(&config, kernel, given...) == cudaSuccess, "launched");
}

template <bool apart>
void blocks_write() {
  Deferred its;
  launch_two_blocks(write_by_block<apart>, +its.memory);
  launch_two_blocks(count_blocks, +its.memory);
  its.expect_order();
  check(its.memory[0] == 3, "the count");
}

template <bool apart>
void blocks_read() {
  Deferred its;
  launch_two_blocks(read_by_block<apart>, +its.memory);
  its.expect_order();
  check(its.memory[0] == 2 && its.memory[1] == 3, "the values");
}

// Memory of one stream, used on another and given back.
template <bool waits>
void given_back() {
  Deferred its(1);
  launch_on(2, copy, its.memory, its.memory + 1);
  if (waits) cuda_emulator::used_on(its.memory, stream(2));
  cuda_emulator::freed(its.memory);
  check(cuda_emulator::bytes_allocated() == 0, "given back");
  its.expect_order();
  check(its.memory[0] == -1, "the next owner writes it");
}

template <bool kept>
void replayed() {
  Deferred its(1);
  cuda_emulator::begin_capture(stream(2));
  launch_on(2, copy, its.memory, its.memory + 1);
  const int graph = cuda_emulator::end_capture(stream(2));
  if (!kept) cuda_emulator::freed(its.memory);
  cuda_emulator::drain();
  check(cuda_emulator::replay(graph, stream(3)) == cudaSuccess, "replayed");
  its.expect_order();
}

void held_by_graphs() {
  static int destroyed = 0;
  destroyed = 0;
  cudaUserObject_t object;
  cudaGraph_t graph;
  cudaStreamCaptureStatus status;
  const auto count = [](void* counter) { ++*static_cast<int*>(counter); };
  const auto make = [&] { return cudaUserObjectCreate(&object, &destroyed, count, 1, cudaUserObjectNoDestructorSync); };
  check(make() == cudaSuccess && cudaUserObjectRelease(object) == cudaSuccess && destroyed == 1, "released");
  check(cudaStreamGetCaptureInfo(stream(1), &status) == cudaSuccess && status == cudaStreamCaptureStatusNone, "none");
  cuda_emulator::begin_capture(stream(1));
  check(cudaStreamGetCaptureInfo(stream(1), &status, nullptr, &graph) == cudaSuccess, "info");
  check(make() == cudaSuccess && cudaGraphRetainUserObject(graph, object) == cudaErrorInvalidValue, "moved only");
  check(cudaGraphRetainUserObject(graph, object, 1, cudaGraphUserObjectMove) == cudaSuccess, "held");
  const int number = cuda_emulator::end_capture(stream(1));
  check(cuda_emulator::replay(number) == cudaSuccess && destroyed == 1, "held while the graph is there");
  cuda_emulator::destroy_graph(number);
  check(destroyed == 2 && cuda_emulator::replay(number) == cudaErrorInvalidValue, "given back with it");
  cudaGetLastError();
  cuda_emulator::begin_capture(stream(1));
  check(cudaStreamGetCaptureInfo(stream(1), &status, nullptr, &graph) == cudaSuccess, "info");
  check(make() == cudaSuccess && cudaGraphRetainUserObject(graph, object, 1, cudaGraphUserObjectMove) == cudaSuccess,
        "held");
  cudaStreamSynchronize(stream(1));
  check(cuda_emulator::end_capture(stream(1)) == -1 && destroyed == 3, "given back with a capture that failed");
  cudaGetLastError();
}

// Threads add to what lies in shared memory.
template <bool sets_zero>
__global__ void add_up(float* out) {
  __shared__ float sum[2];
  if (sets_zero && threadIdx.x < 2) sum[threadIdx.x] = 0;
  __syncthreads();
  atomicAdd(sum + 1, 1.0f);
  __syncthreads();
  if (threadIdx.x == 0) out[blockIdx.x] = sum[1];
}

template <bool sets_zero>
void shared_memory() {
  float out[3] = {};
  for (int i = 0; i < 3; ++i) {
    check(launch(3, 64, add_up<sets_zero>, out) == cudaSuccess, "launched");
    for (const float sum : out) check(sum == 64, "each block begins anew");
  }
}

}  // namespace

const std::vector<Case> kStreamCases = {
    {"across_streams", across_streams<true>},
    {"across_streams_unordered", across_streams<false>},
    {"overwritten", overwritten<true>},
    {"overwritten_unordered", overwritten<false>},
    {"by_way_of_the_host", by_way_of_the_host<true>},
    {"by_way_of_the_host_unordered", by_way_of_the_host<false>},
    {"read_by_the_host", read_by_the_host<true>},
    {"read_by_the_host_too_early", read_by_the_host<false>},
    {"blocks_write", blocks_write<true>},
    {"blocks_write_one_place", blocks_write<false>},
    {"blocks_read", blocks_read<true>},
    {"blocks_read_of_another", blocks_read<false>},
    {"given_back", given_back<true>},
    {"given_back_too_early", given_back<false>},
    {"replayed", replayed<true>},
    {"replayed_without_its_memory", replayed<false>},
    {"held_by_graphs", held_by_graphs},
    {"shared_memory", shared_memory<true>},
    {"shared_memory_unset", shared_memory<false>},
};
