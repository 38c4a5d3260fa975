// The block that runs: what its threads execute, and their meetings at barriers and warp collectives. It only keeps the
// books; who executes the threads (fibers.h, threads.h) asks it which of them may go on.
#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "cuda_runtime.h"

namespace cuda_emulator {

constexpr unsigned kMaxThreads = 1024;
constexpr unsigned kWarp = warpSize;

// What stopped a kernel.
struct Fault {
  cudaError_t error = cudaSuccess;
  bool meeting = false;  // threads did not meet as they must
  std::string sentence;
};

// What a thread brings to a meeting.
struct Arrival {
  detail::Meeting kind;
  unsigned mask;
  uint64_t value;
  unsigned source;  // the lane whose value it wants
  Place place;
};

class Block {
 public:
  // The threads that may go on, in the order of their numbers.
  struct Released {
    unsigned count = 0;
    std::array<uint16_t, kMaxThreads> threads;

    void add(unsigned thread) { threads[count++] = static_cast<uint16_t>(thread); }
    const uint16_t* begin() const { return threads.data(); }
    const uint16_t* end() const { return threads.data() + count; }
  };

  void set_kernel(const detail::Call& call, dim3 grid, dim3 shape);
  void start(uint3 index);

  unsigned threads() const { return threads_; }
  void call() const { call_.run(call_.kernel, call_.arguments); }

  // Makes the calling OS thread see itself as a thread of this block; the second is enough where the first was called
  // for the same block before.
  void enter(unsigned thread) const;
  void become(unsigned thread) const;
  static unsigned current();

  // A thread comes to a meeting, which may complete it.
  const Released& arrive(unsigned thread, const Arrival& arrival);
  void exit(unsigned thread);

  // No thread can run: all wait or have exited. Opens the barrier, or finds that they wait for ever.
  const Released& settle();

  uint64_t result(unsigned thread) const { return seats_[thread].arrival.value; }
  bool exited(unsigned thread) const { return seats_[thread].state == State::exited; }

  // The first fault counts; what follows may be its consequence.
  void fail(cudaError_t error, bool meeting, const std::string& sentence);
  bool failed() const { return fault_.error != cudaSuccess; }
  const Fault& fault() const { return fault_; }

  std::string name(unsigned thread) const;

 private:
  enum class State : uint8_t { running, barrier, collective, exited };

  struct Seat {
    State state;
    Arrival arrival;
  };

  void complete(unsigned first, const Arrival& arrival);
  void open_barrier();
  void explain_deadlock();
  std::string whereabouts(unsigned thread) const;

  detail::Call call_{};
  dim3 grid_, shape_{0, 0, 0};
  uint3 index_{};
  unsigned threads_ = 0, at_barrier_ = 0, exited_ = 0;
  std::array<uint3, kMaxThreads> indices_;
  std::array<unsigned, kMaxThreads / kWarp> waiting_;  // by warp: the lanes at a collective
  std::array<Seat, kMaxThreads> seats_;
  Released released_;
  Fault fault_;
};

// Executes the threads of blocks, one block at a time.
class Executor {
 public:
  virtual ~Executor() = default;

  // Returns when all threads have exited or the block has failed.
  virtual void run(Block& block) = 0;

  // The calling thread of the block waits until its meeting is complete, and gets what the meeting gives it.
  virtual uint64_t meet(const Arrival& arrival) = 0;

  // The calling thread of the block has made the kernel fail, and must leave it by abandon(): nothing on its stack is
  // destroyed then, so this is two calls.
  virtual void fail(cudaError_t error, const std::string& sentence) = 0;
  [[noreturn]] virtual void abandon() = 0;
};

}  // namespace cuda_emulator
