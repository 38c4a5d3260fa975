// Random numbers for orders that a seed repeats, whatever the standard library.
#pragma once

#include <cstdint>

namespace cuda_emulator {

class Random {
 public:
  explicit Random(uint64_t seed = 0) : state_(seed) {}

  // Splitmix64, scaled instead of divided.
  unsigned below(unsigned end) {
    uint64_t x = state_ += 0x9e3779b97f4a7c15;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
    x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
    return static_cast<unsigned>((x >> 32) * end >> 32);
  }

 private:
  uint64_t state_;
};

}  // namespace cuda_emulator
