// Executes the threads of a block as fibers: each has a stack of its own, and they take turns on the launching OS
// thread, changing only where one waits or exits. A thread that never waits costs no change at all: its stack goes
// straight on with the next thread.
#pragma once

#include <memory>
#include <vector>

#include "block.h"
#include "sanitizers.h"
#include "shuffle.h"

#if !defined(CUDA_EMULATOR_UCONTEXT) && !defined(__x86_64__) && !defined(__aarch64__)
#define CUDA_EMULATOR_UCONTEXT
#endif
#ifdef CUDA_EMULATOR_UCONTEXT
#include <ucontext.h>
#endif

namespace cuda_emulator {

// A stack and the point on it where its execution stands.
class Fiber {
 public:
  // Stands for the stack that the calling OS thread runs on anyway.
  Fiber() = default;
  // `number` staggers the stacks' ends: at equal offsets all of them would compete for the same few lines of the cache.
  explicit Fiber(unsigned number);
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // The next switch to it calls body(argument, *this), which never returns.
  void restart(void (*body)(void* argument, Fiber& self), void* argument);

  // Forgets what it was doing.
  void abandon();

  // Leaves the calling fiber, *this, to go on with another; returns when something switches back.
  // `for_good`: nothing will before restart().
  void switch_to(Fiber& other, bool for_good = false);

  unsigned thread = 0;  // of the block, that runs on it

 private:
  static void begin(Fiber* self);
  void arrive();

  char* memory_ = nullptr;
  size_t bytes_ = 0, stagger_ = 0;
  void (*body_)(void*, Fiber&) = nullptr;
  void* argument_ = nullptr;
  Fiber* previous_ = nullptr;
  StackInfo stack_;
#ifdef CUDA_EMULATOR_UCONTEXT
  ucontext_t context_;
#else
  void* top_ = nullptr;
#endif
};

// The threads that can run, in the order in which they became so or, if shuffled, in none.
class ReadyThreads {
 public:
  bool empty() const { return begin_ == end_; }
  void add(unsigned thread) { threads_[end_++ % kMaxThreads] = static_cast<uint16_t>(thread); }
  void clear() { begin_ = end_ = 0; }
  unsigned take(Random* shuffle);

 private:
  unsigned begin_ = 0, end_ = 0;
  std::array<uint16_t, kMaxThreads> threads_;
};

class FiberExecutor final : public Executor {
 public:
  // 0: threads run in order.
  void set_seed(uint64_t seed);

  void run(Block& block) override;
  uint64_t meet(const Arrival& arrival) override;
  void fail(cudaError_t error, const std::string& sentence) override;
  [[noreturn]] void abandon() override;

 private:
  static constexpr unsigned kNone = kMaxThreads;

  static void body(void* executor, Fiber& self);
  unsigned next();
  Fiber& idle_fiber();
  void leave(Fiber& self, unsigned next_thread, bool for_good);

  Block* block_ = nullptr;
  ReadyThreads ready_;
  Random random_;
  bool shuffled_ = false;
  Fiber host_;
  Fiber* running_ = nullptr;
  std::array<Fiber*, kMaxThreads> waiting_{};  // by thread: the fiber that it waits on
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Fiber*> idle_;
};

}  // namespace cuda_emulator
