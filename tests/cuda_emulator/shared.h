// The shared memory of kernels: static variables, which the compiler puts into sections of their own.
#pragma once

#include <cstddef>
#include <map>
#include <set>
#include <vector>

namespace cuda_emulator {

// A block finds its shared memory full of NaNs (or -1), and not of what the block before it has left there.
class SharedMemory {
 public:
  // Before the first block of all, and after every one.
  void begin();
  void after_block(const void* kernel);

 private:
  struct Variable {
    unsigned char* begin;
    size_t bytes;
  };
  struct Kernel {
    int looked = 0;
    std::set<size_t> variables;  // of which it is known to write
  };

  static std::vector<Variable> find();

  bool begun_ = false;
  std::vector<Variable> variables_;
  std::map<const void*, Kernel> kernels_;
};

}  // namespace cuda_emulator
