// How memory travels between a device and the host.
#include "transport.h"

#include <cuda_runtime_api.h>

#include "runtime.h"

namespace fusedopt::cuda {
namespace {

void checked(cudaError_t error) {
  if (error != cudaSuccess) fail(error, "params and gradients could not be copied between the device and the host");
}

}  // namespace

bool is_captured(const Place& place) { return capturing(place); }

struct Transport::State {
  int device = -1;
  cudaStream_t user = nullptr, in = nullptr, out = nullptr;
  // `fetched` and `sent` are of the buffers.
  cudaEvent_t given = nullptr, returned = nullptr, fetched[kBuffers] = {}, sent[kBuffers] = {};
  void* memory = nullptr;
  size_t bytes = 0;  // of a buffer

  static void make(cudaStream_t& stream) {
    if (!stream) checked(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  }
  static void make(cudaEvent_t& event) {
    if (!event) checked(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
  }
  void copy(const std::vector<Freight>& freights, int which, bool fetches) {
    char* const buffer = static_cast<char*>(memory) + which * bytes;
    for (const Freight& freight : freights) {
      char* const here = buffer + freight.offset;
      checked(fetches ? cudaMemcpyAsync(here, freight.device, freight.bytes, cudaMemcpyDeviceToHost, in)
                      : cudaMemcpyAsync(freight.device, here, freight.bytes, cudaMemcpyHostToDevice, out));
    }
  }
};

Transport::Transport() : state_(new State) {}

// What fails here fails where the process or the device is at its end.
Transport::~Transport() {
  State& my = *state_;
  if (my.device < 0) return;
  stop();
  if (my.memory) cudaFreeHost(my.memory);
  for (cudaEvent_t event : {my.given, my.returned, my.fetched[0], my.fetched[1], my.sent[0], my.sent[1]})
    if (event) cudaEventDestroy(event);
  for (cudaStream_t stream : {my.in, my.out})
    if (stream) cudaStreamDestroy(stream);
  cudaGetLastError();
}

void Transport::begin(const Place& place, size_t bytes) {
  State& my = *state_;
  check_earlier(cudaPeekAtLastError());
  use(place.device);
  my.device = place.device;
  my.user = static_cast<cudaStream_t>(place.stream);
  for (cudaStream_t* stream : {&my.in, &my.out}) State::make(*stream);
  for (cudaEvent_t* event : {&my.given, &my.returned}) State::make(*event);
  for (int b = 0; b < kBuffers; ++b) {
    State::make(my.fetched[b]);
    State::make(my.sent[b]);
  }
  if (bytes > my.bytes) {
    checked(cudaStreamSynchronize(my.out));
    if (my.memory) checked(cudaFreeHost(std::exchange(my.memory, nullptr)));
    my.bytes = 0;
    const size_t each = (bytes + 63) / 64 * 64;
    checked(cudaHostAlloc(&my.memory, kBuffers * each, cudaHostAllocDefault));
    my.bytes = each;
  }
  checked(cudaEventRecord(my.given, my.user));
  checked(cudaStreamWaitEvent(my.in, my.given, 0));
}

char* Transport::buffer(int which) const { return static_cast<char*>(state_->memory) + which * state_->bytes; }

void Transport::fetch(int which, const std::vector<Freight>& freights) {
  State& my = *state_;
  checked(cudaStreamWaitEvent(my.in, my.sent[which], 0));
  my.copy(freights, which, true);
  checked(cudaEventRecord(my.fetched[which], my.in));
}

void Transport::wait(int which) { checked(cudaEventSynchronize(state_->fetched[which])); }

// The host has waited for what was fetched, and with it for the user's stream.
void Transport::send(int which, const std::vector<Freight>& freights) {
  State& my = *state_;
  my.copy(freights, which, false);
  checked(cudaEventRecord(my.sent[which], my.out));
}

void Transport::end() {
  State& my = *state_;
  checked(cudaEventRecord(my.returned, my.out));
  checked(cudaStreamWaitEvent(my.user, my.returned, 0));
}

void Transport::stop() noexcept {
  for (cudaStream_t stream : {state_->in, state_->out})
    if (stream) cudaStreamSynchronize(stream);
  cudaGetLastError();
}

}  // namespace fusedopt::cuda
