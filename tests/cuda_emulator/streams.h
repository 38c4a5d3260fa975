// What streams have yet to do, in the deferred mode: the host runs ahead of them, and they do it in a random order that
// honours the promised one. Every access to memory that the emulator was told of is held to that: two of which one
// writes need an order between them, which blocks of one kernel never have, and memory that was given back may be
// written by whoever gets it next. Accesses are seen where access.cpp is told of them.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "cuda_runtime.h"
#include "shuffle.h"

namespace cuda_emulator {

struct Work {
  std::function<cudaError_t()> run;
  std::string name;
};

class Streams {
 public:
  // 0: a stream's work is done at once, and no accesses are looked at. Any other seed makes an order.
  void defer(uint64_t seed);
  bool deferred() const { return deferred_; }

  cudaError_t put(cudaStream_t stream, Work work);
  // How many of a stream's operations are known to come before.
  using Clock = std::map<cudaStream_t, uint64_t>;
  // All that a stream has been given, and what that comes after.
  Clock given(cudaStream_t stream) { return streams_[stream].last; }
  // What `later` is given from now on comes after that.
  void order(cudaStream_t later, const Clock& earlier) { join(streams_[later].last, earlier); }
  // The host waits, for one stream or for all.
  void wait_for(Clock given);
  void wait_for(cudaStream_t stream) { wait_for(given(stream)); }
  void wait_for_all();

  // Memory as torch's allocator has it: it belongs to a stream, and once given back to whoever asks there next. That of
  // a graph stays with the graph. Whoever gives it back leaves it as it is, readable, until the mode ends.
  void allocated(const void* address, size_t bytes, cudaStream_t stream, bool of_graph);
  void freed(const void* address);
  // It is nobody's any more.
  void forget(const void* address);
  // Giving it back waits for what this other stream has been given until then.
  void used_on(const void* address, cudaStream_t stream);
  size_t bytes() const;  // not given back

  // The kernel that runs goes on with another block.
  void enter_block(uint64_t number) { block_ = static_cast<int64_t>(number); }
  // The work that runs reads or writes there. Atomic accesses are in order among each other.
  void access(const void* address, size_t bytes, bool writes, bool atomic = false);

  // The first thing that nothing had put in order; empty if all was.
  const std::string& disorder() const { return disorder_; }

 private:
  struct Operation : Work {
    cudaStream_t stream;
    uint64_t number;  // in its stream
    uint64_t born;    // among all that the host has done
    Clock before;
  };
  struct Stream {
    std::deque<Operation> queue;
    uint64_t given = 0, done = 0;
    Clock last;
  };
  // Of an operation that has run.
  struct Done {
    std::string name;
    cudaStream_t stream;
    uint64_t number;
  };
  // Who has last written four bytes, and who of each stream has read them since; places in done_, -1: nobody. And in
  // which blocks of it.
  struct Cell {
    int writer = -1;
    bool by_atomic = false;
    int64_t writing = 0;
    std::vector<int> readers;
    int reader = -1;
    int64_t reading = 0;
  };
  struct Buffer {
    size_t bytes;
    cudaStream_t stream;
    bool of_graph;
    uint64_t freed = 0;  // when; 0: not yet
    Clock users;
    std::vector<Cell> cells;
  };

  static void join(Clock& clock, const Clock& other);
  Buffer* find(const void* address);
  bool ready(const Operation& operation) const;
  bool ordered(int done) const;
  void run_one();
  void complain(const char* does, int other, const char* did, const Buffer& buffer, size_t offset);
  void hold_to_blocks(Cell& cell, bool writes, bool atomic, const Buffer& buffer, size_t offset);

  bool deferred_ = false;
  Random random_;
  std::map<cudaStream_t, Stream> streams_;
  Clock host_;
  uint64_t now_ = 0;
  std::map<uintptr_t, Buffer> buffers_;
  std::pair<uintptr_t, Buffer*> latest_{0, nullptr};
  std::vector<Done> done_;
  const Operation* running_ = nullptr;
  int64_t block_ = 0;
  std::string disorder_;
};

}  // namespace cuda_emulator
