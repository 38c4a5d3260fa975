// Tests of the emulator: `selftest CASE fibers|threads SEED...` runs one case once for each seed. Cases named after a
// bug have it planted, and must fail in the builds whose business it is to find it; the case before each is its twin
// without the bug.
#include "selftest.h"

#include <thread>

Backend backend = Backend::fibers;

namespace {

struct Record {
  uint3 thread, block;
  dim3 shape, grid;
};

__global__ void record(Record* records) {
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  __syncthreads();  // so that every thread is resumed at least once
  records[block * blockDim.x * blockDim.y * blockDim.z + thread] = {threadIdx, blockIdx, blockDim, gridDim};
}

void indices() {
  const dim3 grid(3, 2, 2), shape(5, 4, 3);
  std::vector<Record> records(12 * 60, Record{{9, 9, 9}, {9, 9, 9}, 9, 9});
  check(launch(grid, shape, record, records.data()) == cudaSuccess, "launched");
  const Record* r = records.data();
  for (uint3 b{0, 0, 0}; b.z < 2; b = b.x + 1 < 3   ? uint3{b.x + 1, b.y, b.z}
                                      : b.y + 1 < 2 ? uint3{0, b.y + 1, b.z}
                                                    : uint3{0, 0, b.z + 1})
    for (unsigned z = 0; z < 3; ++z)
      for (unsigned y = 0; y < 4; ++y)
        for (unsigned x = 0; x < 5; ++x, ++r) {
          check(r->thread.x == x && r->thread.y == y && r->thread.z == z, "thread index");
          check(r->block.x == b.x && r->block.y == b.y && r->block.z == b.z, "block index");
          check(r->shape.x == 5 && r->shape.y == 4 && r->shape.z == 3, "block shape");
          check(r->grid.x == 3 && r->grid.y == 2 && r->grid.z == 2, "grid shape");
        }
}

__global__ void __launch_bounds__(256) sum(const float* in, int n, float* out) {
  __shared__ float partial[256];
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  partial[threadIdx.x] = i < n ? __ldg(in + i) : 0;
  for (unsigned half = 128; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) partial[threadIdx.x] += partial[threadIdx.x + half];
  }
  if (threadIdx.x == 0) atomicAdd(out, partial[0]);
}

void reduction() {
  std::vector<float> in(700);
  float out = 0, expected = 0;
  for (size_t i = 0; i < in.size(); ++i) expected += in[i] = static_cast<float>(i);
  check(launch(3, 256, sum, in.data(), 700, &out) == cudaSuccess, "launched");
  check(out == expected, "sum");
}

// Two OS threads launch at once.
void launchers() {
  std::vector<float> in(256, 1.0f);
  const auto work = [&] {
    for (int i = 0; i < 5; ++i) {
      float out = 0;
      check(launch(1, 256, sum, in.data(), 256, &out) == cudaSuccess && out == 256, "sum");
    }
  };
  std::thread other(work);
  work();
  other.join();
  check(cuda_emulator::launches() == 10, "all of them");
}

// Both read what another thread of the block wrote: the reversal sees the error in any order, the shift only where a
// thread runs before its neighbour.
template <bool barrier, bool reverse>
__global__ void through_shared(const int* in, int* out) {
  __shared__ int shared[64];
  const unsigned i = threadIdx.x, other = reverse ? 63 - i : (i + 63) % 64;
  shared[i] = in[i];
  if (barrier) __syncthreads();
  out[i] = i == 0 && !reverse ? in[63] : shared[other];
}

template <bool barrier, bool reverse>
void exchange() {
  // The shared memory holds what the launch before left, so this one's numbers must be new.
  static int base = 0;
  base += 1000;
  std::vector<int> in(64), out(64);
  for (int i = 0; i < 64; ++i) in[i] = base + i;
  check(launch(1, 64, through_shared<barrier, reverse>, in.data(), out.data()) == cudaSuccess, "launched");
  for (int i = 0; i < 64; ++i) check(out[i] == in[reverse ? 63 - i : (i + 63) % 64], "the other thread's number");
}

// Lane 0 writes, the lanes of `mask` wait for each other, lane 2 reads: an order if the mask has both.
template <unsigned mask>
__global__ void through_warp(int* memory) {
  const unsigned own = mask >> threadIdx.x & 1 ? mask : ~mask;
  if (threadIdx.x == 0) memory[0] = 7;
  __syncwarp(own);
  if (threadIdx.x == 2) memory[1] = memory[0];
  __syncwarp(own);
}

template <unsigned mask>
void warp_order() {
  int memory[2] = {};
  check(launch(1, 32, through_warp<mask>, memory) == cudaSuccess, "launched");
}

// Warp 0 writes, warp 1 reads.
template <bool barrier>
__global__ void through_block(int* memory) {
  if (threadIdx.x == 0) memory[0] = 7;
  __syncwarp();
  if (barrier) __syncthreads();
  if (threadIdx.x == 32) memory[1] = memory[0];
}

template <bool barrier>
void block_order() {
  int memory[2] = {};
  check(launch(1, 64, through_block<barrier>, memory) == cudaSuccess, "launched");
}

__global__ void vote(unsigned* out) {
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const unsigned third = __ballot_sync(~0u, lane % 3 == warp);
  const int any = __any_sync(~0u, lane == 40 - 8 * warp), all = __all_sync(~0u, lane < 31 + warp);
  out[threadIdx.x] = third ^ (any << 30) ^ (all << 31);
}

void votes() {
  std::vector<unsigned> out(64);
  check(launch(1, 64, vote, out.data()) == cudaSuccess, "launched");
  for (unsigned i = 0; i < 64; ++i)
    check(out[i] == (i < 32 ? 0x49249249u : 0x92492492u ^ 0xc0000000u ^ (1u << 30)), "votes");
}

__global__ void shuffle(int* ints, double* doubles) {
  const int lane = threadIdx.x;
  ints[lane] = __shfl_sync(~0u, lane, 35);
  ints[32 + lane] = __shfl_sync(~0u, lane, 3, 8);
  ints[64 + lane] = __shfl_down_sync(~0u, lane, 3);
  ints[96 + lane] = __shfl_down_sync(~0u, lane, 3, 8);
  doubles[lane] = __shfl_xor_sync(~0u, lane + 0.5, 5);
  doubles[32 + lane] = __shfl_xor_sync(~0u, lane + 0.5, 8, 8);
}

void shuffles() {
  int ints[128];
  double doubles[64];
  check(launch(1, 32, shuffle, ints, doubles) == cudaSuccess, "launched");
  for (int i = 0; i < 32; ++i) {
    check(ints[i] == 3 && ints[32 + i] == i / 8 * 8 + 3, "shfl");
    check(ints[64 + i] == (i + 3 < 32 ? i + 3 : i) && ints[96 + i] == (i % 8 + 3 < 8 ? i + 3 : i), "shfl_down");
    check(doubles[i] == (i ^ 5) + 0.5 && doubles[32 + i] == (i & 8 ? i ^ 8 : i) + 0.5, "shfl_xor");
  }
}

// The halves of a warp meet a different number of times, then half of the block is gone at a barrier.
__global__ void part(unsigned* out) {
  __shared__ unsigned shared[128];
  const unsigned lane = threadIdx.x % 32, mask = lane < 16 ? 0xffffu : 0xffff0000u;
  unsigned rounds = 0;
  for (unsigned i = 0; i < (lane < 16 ? 5 : 2); ++i) rounds += __popc(__ballot_sync(mask, lane % 2));
  shared[threadIdx.x] = rounds;
  if (threadIdx.x >= 64) return;
  __syncthreads();
  out[threadIdx.x] = shared[threadIdx.x + 64];
}

void parts() {
  std::vector<unsigned> out(64);
  check(launch(1, 128, part, out.data()) == cudaSuccess, "launched");
  for (unsigned i = 0; i < 64; ++i) check(out[i] == (i % 32 < 16 ? 40 : 16), "rounds");
}

__global__ void count(int* i, unsigned* u, unsigned long long* l, float* f, double* d) {
  atomicAdd(i, -1);
  atomicAdd(u, 2u);
  atomicAdd(l, 1ull << 33);
  atomicAdd(f, 0.5f);
  __syncthreads();
  atomicAdd(d, 0.25);
}

void atomics() {
  int i = 0;
  unsigned u = 0;
  unsigned long long l = 0;
  float f = 0;
  double d = 0;
  check(launch(2, 128, count, &i, &u, &l, &f, &d) == cudaSuccess, "launched");
  check(i == -256 && u == 512 && l == 256ull << 33 && f == 128 && d == 64, "sums");
}

template <int bytes>
struct Payload {
  int words[bytes / 4];
};

// What one thread does to the memory that the parameter came from, no other sees in its parameter.
template <int bytes>
__global__ void compare(const __grid_constant__ Payload<bytes> payload, Payload<bytes>* source, int* differences) {
  if (threadIdx.x == 0) source->words[bytes / 4 - 1] = -1;
  __syncthreads();
  for (int i = 0; i < bytes / 4; ++i)
    if (payload.words[i] != i) atomicAdd(differences, 1);
}

template <int bytes>
cudaError_t pass_payload() {
  const auto payload = std::make_unique<Payload<bytes>>();
  for (int i = 0; i < bytes / 4; ++i) payload->words[i] = i;
  int differences = 0;
  const cudaError_t error = launch(1, 32, compare<bytes>, *payload, payload.get(), &differences);
  check(differences == 0, "parameters as at launch");
  return error;
}

// 32,764 bytes may be passed; the two pointers take 16, and their alignment the rest.
void parameters() {
  check(pass_payload<32>() == cudaSuccess, "small parameter");
  check(pass_payload<32744>() == cudaSuccess, "largest parameter");
  check(pass_payload<32752>() == cudaErrorInvalidValue, "too large a parameter");
  check(cudaGetLastError() == cudaErrorInvalidValue && cudaGetLastError() == cudaSuccess, "reported once");
}

// One element too many.
template <bool overrun>
__global__ void fill(float* out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (overrun ? i <= n : i < n) out[i] = 1;
}

template <bool overrun>
void fill_heap() {
  std::vector<float> out(100);
  out.shrink_to_fit();
  check(launch(1, 128, fill<overrun>, out.data(), 100) == cudaSuccess, "launched");
}

template <bool intrinsic>
__global__ void load_vector(const unsigned* in, unsigned offset, unsigned* out) {
  const uint4* const vector = reinterpret_cast<const uint4*>(in + offset);
  const uint4 v = intrinsic ? __ldg(vector) : *vector;
  out[threadIdx.x] = v.x + v.y + v.z + v.w;
}

template <bool intrinsic, unsigned offset>
void vector_load() {
  alignas(16) unsigned in[8] = {1, 2, 3, 4, 5, 6, 7, 8};
  unsigned out[32];
  check(launch(1, 32, load_vector<intrinsic>, in, offset, out) == cudaSuccess, "launched");
  check(out[31] == 10 + 4 * offset, "sum");
}

struct alignas(32) EightWords {
  unsigned at[8];
};
__global__ void load_eight_words(const unsigned* in, unsigned offset, unsigned* out) {
  const EightWords words = __ldcs(reinterpret_cast<const EightWords*>(in + offset));
  out[threadIdx.x] = words.at[0] + words.at[7];
}

template <unsigned offset>
void wide_load() {
  alignas(32) unsigned in[16] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16};
  unsigned out[32];
  check(launch(1, 32, load_eight_words, in, offset, out) == cudaSuccess, "launched");
  check(out[31] == 9 + 2 * offset, "sum");
}

const std::vector<Case> kCases = {
    {"indices", indices},
    {"reduction", reduction},
    {"launchers", launchers},
    {"votes", votes},
    {"shuffles", shuffles},
    {"parts", parts},
    {"atomics", atomics},
    {"parameters", parameters},
    {"reversal", exchange<true, true>},
    {"reversal_without_barrier", exchange<false, true>},
    {"shift", exchange<true, false>},
    {"shift_without_barrier", exchange<false, false>},
    {"warp_order", warp_order<~0u>},
    {"warp_order_by_wrong_mask", warp_order<3>},
    {"block_order", block_order<true>},
    {"block_order_by_warps", block_order<false>},
    {"fill", fill_heap<false>},
    {"fill_too_far", fill_heap<true>},
    {"vector_load", vector_load<true, 4>},
    {"vector_load_misaligned", vector_load<true, 1>},
    {"wide_load", wide_load<8>},
    {"wide_load_misaligned", wide_load<4>},
    {"plain_vector_load", vector_load<false, 4>},
    {"plain_vector_load_misaligned", vector_load<false, 1>},
};

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4) return 2;
  backend = std::string(argv[2]) == "threads" ? Backend::threads : Backend::fibers;
  for (const auto* cases : {&kCases, &kHostCases, &kStreamCases}) {
    for (const Case& entry : *cases) {
      if (std::string(argv[1]) != entry.name) continue;
      for (int i = 3; i < argc; ++i) {
        cuda_emulator::reset();
        cuda_emulator::set_backend(backend);
        cuda_emulator::set_seed(std::stoull(argv[i]));
        entry.run();
      }
      return 0;
    }
  }
  return 2;
}
