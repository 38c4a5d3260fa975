// The meetings of a block's threads: which of them are complete, what they give, and why the others never will be.
#include "block.h"

#include <cstdarg>
#include <cstdio>

namespace cuda_emulator {

namespace {

thread_local unsigned current_thread __attribute__((tls_model("initial-exec"))) = 0;

const char* name_of(detail::Meeting kind) {
  constexpr const char* names[] = {"__syncthreads", "__syncwarp",  "__ballot_sync",    "__any_sync",
                                   "__all_sync",    "__shfl_sync", "__shfl_down_sync", "__shfl_xor_sync"};
  return names[static_cast<unsigned>(kind)];
}

bool is_shuffle(detail::Meeting kind) { return kind >= detail::Meeting::shfl; }

[[gnu::format(printf, 1, 2)]] std::string format(const char* pattern, ...) {
  char text[1024];
  va_list arguments;
  va_start(arguments, pattern);
  std::vsnprintf(text, sizeof(text), pattern, arguments);
  va_end(arguments);
  return text;
}

bool same(Place a, Place b) { return a.line == b.line && (a.file == b.file || std::strcmp(a.file, b.file) == 0); }

std::string describe(const Arrival& arrival) {
  std::string text = format("%s (%s:%d)", name_of(arrival.kind), arrival.place.file, arrival.place.line);
  if (arrival.kind != detail::Meeting::syncthreads) text += format(" with mask 0x%08x", arrival.mask);
  return text;
}

}  // namespace

void Block::set_kernel(const detail::Call& call, dim3 grid, dim3 shape) {
  call_ = call;
  grid_ = grid;
  fault_ = {};
  if (shape.x == shape_.x && shape.y == shape_.y && shape.z == shape_.z) return;
  shape_ = shape;
  threads_ = 0;
  for (unsigned z = 0; z < shape.z; ++z)
    for (unsigned y = 0; y < shape.y; ++y)
      for (unsigned x = 0; x < shape.x; ++x) indices_[threads_++] = {x, y, z};
}

void Block::start(uint3 index) {
  index_ = index;
  at_barrier_ = exited_ = 0;
  waiting_.fill(0);
  for (unsigned i = 0; i < threads_; ++i) seats_[i].state = State::running;
}

void Block::enter(unsigned thread) const {
  gridDim = grid_;
  blockDim = shape_;
  blockIdx = index_;
  become(thread);
}

void Block::become(unsigned thread) const {
  threadIdx = indices_[thread];
  current_thread = thread;
}

unsigned Block::current() { return current_thread; }

const Block::Released& Block::arrive(unsigned thread, const Arrival& arrival) {
  released_.count = 0;
  Seat& seat = seats_[thread];
  seat.arrival = arrival;
  if (arrival.kind == detail::Meeting::syncthreads) {
    seat.state = State::barrier;
    ++at_barrier_;
    return released_;
  }
  seat.state = State::collective;
  const unsigned warp = thread / kWarp, self = 1u << thread % kWarp;
  if ((arrival.mask & self) == 0)
    fail(cudaErrorLaunchFailure, true, name(thread) + " calls " + describe(arrival) + ", which leaves itself out");
  waiting_[warp] |= self;
  if (!failed() && (waiting_[warp] & arrival.mask) == arrival.mask) complete(warp * kWarp, arrival);
  return released_;
}

// All lanes of the mask wait at some collective; if it is one and the same, they leave it together.
void Block::complete(unsigned first, const Arrival& arrival) {
  uint64_t brought[kWarp], votes = 0;
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    if ((arrival.mask >> lane & 1) == 0) continue;
    const Arrival& other = seats_[first + lane].arrival;
    if (other.mask != arrival.mask || other.kind != arrival.kind) return;
    brought[lane] = other.value;
    votes |= static_cast<uint64_t>(other.value != 0) << lane;
  }
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    if ((arrival.mask >> lane & 1) == 0) continue;
    Seat& seat = seats_[first + lane];
    const unsigned source = seat.arrival.source;
    if ((arrival.mask >> source & 1) == 0)
      fail(cudaErrorLaunchFailure, true,
           name(first + lane) + " calls " + describe(seat.arrival) + " for the value of lane " +
               std::to_string(source) + ", which the mask leaves out");
    else
      seat.arrival.value = is_shuffle(arrival.kind) ? brought[source] : votes;
    seat.state = State::running;
    released_.add(first + lane);
  }
  waiting_[first / kWarp] &= ~arrival.mask;
}

void Block::exit(unsigned thread) {
  seats_[thread].state = State::exited;
  ++exited_;
}

const Block::Released& Block::settle() {
  released_.count = 0;
  if (exited_ == threads_) return released_;
  if (at_barrier_ + exited_ == threads_)
    open_barrier();
  else
    explain_deadlock();
  return released_;
}

void Block::open_barrier() {
  for (unsigned i = 0; i < threads_; ++i)
    if (seats_[i].state == State::barrier) released_.add(i);
  const Arrival& first = seats_[*released_.begin()].arrival;
  for (const unsigned i : released_) {
    const Arrival& other = seats_[i].arrival;
    // CUDA allows a barrier under a condition only if all threads of the block take the same way.
    if (!same(other.place, first.place)) {
      fail(cudaErrorLaunchFailure, true,
           name(*released_.begin()) + " waits at " + describe(first) + ", but " + whereabouts(i));
      return;
    }
    seats_[i].state = State::running;
  }
  at_barrier_ = 0;
}

void Block::explain_deadlock() {
  unsigned waiter = 0;
  while (seats_[waiter].state != State::collective) ++waiter;
  const Arrival& arrival = seats_[waiter].arrival;
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    const unsigned other = waiter / kWarp * kWarp + lane;
    if ((arrival.mask >> lane & 1) == 0) continue;
    const bool met = other < threads_ && seats_[other].state == State::collective &&
                     seats_[other].arrival.kind == arrival.kind && seats_[other].arrival.mask == arrival.mask;
    if (met) continue;
    fail(cudaErrorLaunchFailure, true,
         name(waiter) + " waits for ever at " + describe(arrival) + " for lane " + std::to_string(lane) + ": " +
             whereabouts(other));
    return;
  }
}

std::string Block::whereabouts(unsigned thread) const {
  if (thread >= threads_) return "the block has no such thread";
  const Seat& seat = seats_[thread];
  return name(thread) + (seat.state == State::exited ? " has exited" : " waits at " + describe(seat.arrival));
}

std::string Block::name(unsigned thread) const {
  const uint3 index = indices_[thread];
  return format("thread (%u, %u, %u) of block (%u, %u, %u)", index.x, index.y, index.z, index_.x, index_.y, index_.z);
}

void Block::fail(cudaError_t error, bool meeting, const std::string& sentence) {
  if (!failed()) fault_ = {error, meeting, sentence};
}

}  // namespace cuda_emulator
