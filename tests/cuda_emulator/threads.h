// Executes each thread of a block as an OS thread. ThreadSanitizer is to see between them the order that CUDA promises
// and no other, so the lock that guards the books is hidden from it, and the promised order is told by clocks: atomics
// that a thread stores to where it arrives, and loads from where it may go on.
#pragma once

#include <atomic>
#include <condition_variable>
#include <csetjmp>
#include <deque>
#include <mutex>

#include "block.h"

namespace cuda_emulator {

// Must never be destroyed: its workers are there as long as the process.
class ThreadExecutor final : public Executor {
 public:
  void run(Block& block) override;
  uint64_t meet(const Arrival& arrival) override;
  void fail(cudaError_t error, const std::string& sentence) override;
  [[noreturn]] void abandon() override;

 private:
  struct Worker {
    std::condition_variable wake;
    bool released = false;
    std::atomic<unsigned> arrived{0}, may_go{0};  // clocks; their values mean nothing
    std::jmp_buf start;
  };

  void work(unsigned thread, Worker& self);
  void release(const Block::Released& threads, bool barrier);
  void settle();
  static void wait(Worker& self, std::unique_lock<std::mutex>& lock);

  std::deque<Worker> workers_;
  std::mutex mutex_;
  std::condition_variable finish_;
  Block* block_ = nullptr;
  unsigned running_ = 0, finished_ = 0;
};

}  // namespace cuda_emulator
