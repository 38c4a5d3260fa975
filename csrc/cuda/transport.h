// Memory of a device on its way to the host and back: by two streams beside the one that computes, through two buffers
// of pinned memory, so that the host can work on one while the other is filled.
#pragma once

#include "engine.h"

#pragma GCC visibility push(default)
namespace fusedopt::cuda {

// Whether the stream is being captured into a graph. Throws if an earlier kernel failed.
bool is_captured(const Place& place);

// Bytes of the device's and their place in a buffer.
struct Freight {
  void* device;
  size_t offset, bytes;
};

class Transport {
 public:
  static constexpr int kBuffers = 2;

  Transport();
  ~Transport();
  Transport(const Transport&) = delete;

  // What is fetched from now on, through buffers of so many bytes, comes after what the place's stream has been given.
  void begin(const Place& place, size_t bytes);
  // A buffer's memory, aligned to 64 bytes.
  char* buffer(int which) const;
  // Copies to a buffer, once it has been sent.
  void fetch(int which, const std::vector<Freight>& freights);
  // Waits until that is done.
  void wait(int which);
  // Copies from a buffer.
  void send(int which, const std::vector<Freight>& freights);
  // What the stream is given from now on comes after all that has been sent.
  void end();
  // Waits for whatever is under way. Does not throw.
  void stop() noexcept;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace fusedopt::cuda
#pragma GCC visibility pop
