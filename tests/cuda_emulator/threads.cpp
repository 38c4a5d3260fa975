// OS threads as the threads of a block. They are kept from block to block and sleep between.
#include "threads.h"

#include <cfenv>
#include <thread>

#include "sanitizers.h"

namespace cuda_emulator {

void ThreadExecutor::run(Block& block) {
  block_ = &block;
  const unsigned threads = block.threads();
  while (workers_.size() < threads) {
    const unsigned thread = static_cast<unsigned>(workers_.size());
    Worker& worker = workers_.emplace_back();
    std::thread([this, thread, &worker] { work(thread, worker); }).detach();
  }
  for (unsigned i = 0; i < threads; ++i) workers_[i].may_go.store(0, std::memory_order_release);
  {
    const Unseen unseen;
    std::unique_lock<std::mutex> lock(mutex_);
    running_ = threads;
    finished_ = 0;
    for (unsigned i = 0; i < threads; ++i) {
      workers_[i].released = true;
      workers_[i].wake.notify_one();
    }
    finish_.wait(lock, [&] { return finished_ == threads; });
  }
  for (unsigned i = 0; i < threads; ++i) workers_[i].arrived.load(std::memory_order_acquire);
}

void ThreadExecutor::wait(Worker& self, std::unique_lock<std::mutex>& lock) {
  self.wake.wait(lock, [&] { return self.released; });
  self.released = false;
}

void ThreadExecutor::work(unsigned thread, Worker& self) {
  std::fesetenv(FE_DFL_ENV);
  for (;;) {
    {
      const Unseen unseen;
      std::unique_lock<std::mutex> lock(mutex_);
      wait(self, lock);
    }
    self.may_go.load(std::memory_order_acquire);
    if (setjmp(self.start) == 0) {
      block_->enter(thread);
      block_->call();
    }
    self.arrived.store(0, std::memory_order_release);
    const Unseen unseen;
    const std::lock_guard<std::mutex> lock(mutex_);
    self.released = false;
    block_->exit(thread);
    --running_;
    settle();
    if (++finished_ == block_->threads()) finish_.notify_one();
  }
}

// Lets threads go on with the order that their meeting promises: after all that any of them did before it. Threads that
// have exited count as met at a barrier.
void ThreadExecutor::release(const Block::Released& threads, bool barrier) {
  if (threads.count == 0) return;
  running_ += threads.count;
  {
    const Seen seen;
    for (const unsigned i : threads) workers_[i].arrived.load(std::memory_order_acquire);
    for (unsigned i = 0; barrier && i < block_->threads(); ++i)
      if (block_->exited(i)) workers_[i].arrived.load(std::memory_order_acquire);
    for (const unsigned i : threads) workers_[i].may_go.store(0, std::memory_order_release);
  }
  for (const unsigned i : threads) {
    workers_[i].released = true;
    workers_[i].wake.notify_one();
  }
}

// After the calling thread stopped: sees to those that wait, if nothing else will.
void ThreadExecutor::settle() {
  if (running_ == 0 && !block_->failed()) release(block_->settle(), true);
  if (!block_->failed()) return;
  for (unsigned i = 0; i < block_->threads(); ++i) {
    if (block_->exited(i)) continue;
    workers_[i].released = true;
    workers_[i].wake.notify_one();
  }
}

uint64_t ThreadExecutor::meet(const Arrival& arrival) {
  const unsigned thread = Block::current();
  Worker& self = workers_[thread];
  self.arrived.store(0, std::memory_order_release);
  bool failed;
  uint64_t result;
  {
    const Unseen unseen;
    std::unique_lock<std::mutex> lock(mutex_);
    if (!block_->failed()) {
      --running_;
      release(block_->arrive(thread, arrival), false);
      settle();
      wait(self, lock);
    }
    failed = block_->failed();
    result = block_->result(thread);
  }
  if (failed) abandon();
  self.may_go.load(std::memory_order_acquire);
  return result;
}

void ThreadExecutor::fail(cudaError_t error, const std::string& sentence) {
  const Unseen unseen;
  const std::lock_guard<std::mutex> lock(mutex_);
  block_->fail(error, false, sentence);
  settle();
}

void ThreadExecutor::abandon() { std::longjmp(workers_[Block::current()].start, 1); }

}  // namespace cuda_emulator
