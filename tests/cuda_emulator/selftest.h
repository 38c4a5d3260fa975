// What the files of the emulator's own test share.
#pragma once

#include <cstdio>
#include <string>
#include <vector>

#include "emulator.h"

using cuda_emulator::Backend;

struct Case {
  const char* name;
  void (*run)();
};

// selftest_host.cu's: about launches as such, their limits, errors, capture, and the host around them.
extern const std::vector<Case> kHostCases;
// selftest_streams.cu's: the order of streams' work, and memory.
extern const std::vector<Case> kStreamCases;

extern Backend backend;

inline void check(bool holds, const char* what, cuda_emulator::Place place = {}) {
  if (holds) return;
  std::printf("%s:%d: not so: %s (last message: %s)\n", place.file, place.line, what,
              cuda_emulator::last_message().c_str());
  std::exit(1);
}

template <class... Parameters, class... Given>
cudaError_t launch(dim3 grid, dim3 block, void (*kernel)(Parameters...), Given&&... given) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  return cudaLaunchKernelEx(&config, kernel, std::forward<Given>(given)...);
}

inline cudaStream_t stream(uintptr_t number) { return reinterpret_cast<cudaStream_t>(number); }
