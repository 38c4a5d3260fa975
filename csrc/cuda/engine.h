// The CUDA engine as csrc/host sees it: no torch, no CUDA headers. Compiled with nvcc it is engine.cu; without,
// absent.cpp.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "../adafactor/factored.h"

#pragma GCC visibility push(default)
namespace fusedopt::cuda {

// Whether this build has the engine, and what it is built for: "sm_80 sm_90", or why it is missing.
bool built();
const char* built_for();

// Why the kernels cannot run on a device, which the caller has made current, and what helps: its driver is older than
// what this build needs, or the build has none for it. Empty if they can, null if that cannot be found out now; until
// the thread's next call.
const char* obstacle(int device);

// How the sentence about an error begins after which params or states are not as they were.
constexpr const char* kPartlyWritten = "a part of this step has been written; load a checkpoint: ";

// What a param group contributes to a step.
struct Group {
  const Number* hypers;
  double sign;  // -1 to maximize
};

// What rows of one group with equal counters share: their scalars are prepared once.
struct Entry {
  int group;
  bool first;                    // their states were just made
  bool wide;                     // they compute in double
  Number counter[kMaxCounters];  // before the step; one in device memory is advanced there
};

// Of a rule with sums: what other processes add to those of some rows. Both are device memory, for each slot; a
// factored rule's sums are where its tensors say.
struct Exchange {
  const uint8_t* parts;  // 1: of the row others have parts
  double* totals;        // [slot][sum], which are zeros
  // Called once the sums of all rows are on their way there; what is put on the stream after it finds those of all
  // processes. Of a factored rule there are two of them. If it throws, nothing of the step has been written but
  // counters on the device, and a factored rule's states.
  std::function<void()> add_up, add_up_squares = {};
};

// One step of some of an optimizer's params, all on one device.
struct Step {
  const Rule* rule;
  const Row *first, *last;             // by ascending slots, no slot twice
  const Factored* factored = nullptr;  // of a rule that is: for each row what stands for it
  uint64_t rows_version = 0;           // equal for two steps: so are their rows; 0: unknown
  size_t slots;                        // of the optimizer
  std::vector<Group> groups;
  std::vector<Entry> entries;
  uint64_t key = 0;             // of its draws
  uint32_t first_slot = 0;      // among the params that draw
  double multiplier = 1;        // of every gradient
  Number grad_scale;            // if on the device, to divide the gradients by
  Number found_inf;             // if on the device, anything but zero there makes the step nothing
  uint32_t* skipped = nullptr;  // device memory that is told so; not null if found_inf is on the device
  const Exchange* exchange = nullptr;
};

// A device, which the caller has made current, and the stream that work is put on.
struct Place {
  int device;
  void* stream;  // a cudaStream_t
};

// Throws if a step of this rule cannot be put there: an earlier kernel failed, or the device is none that was built
// for. Returns whether the stream is being captured into a graph.
bool ready(const Place& place, const Rule& rule);

// Has leave(data) called once the graph that the stream is being captured into is gone, and so is all that was made of
// it, and what was launched of that has run. It may be called from any thread and must not call CUDA; also if this
// throws.
void hold_for_graph(const Place& place, void* data, void (*leave)(void*));

// Waits for a stream, also while another is being captured.
void synchronize(const Place& place);

// What the device knows of the steps on one stream, or of one captured graph.
class Table {
 public:
  Table();
  ~Table();
  Table(Table&&) noexcept;

  // The bytes of new device memory that the step needs; 0 if what bind() gave will do.
  size_t lacks(const Step& step);
  // Gives that memory, all zero, aligned to 16 bytes. It stays until the last launch has run.
  void bind(void* memory);

  // Brings the table up to date with `step`; for a stream that the launch is not put on.
  void send(const Step& step, const Place& place);
  // Sends the groups alone: the launches that were captured read them anew.
  void send_groups(const Step& step, const Place& place);
  // Puts the step on the stream: one kernel that advances counters, then one for each variant and mix of storages. If a
  // launch fails, the error says whether anything of the step has been written.
  void launch(const Step& step, const Place& place);

 private:
  void put_all(const Step& step, const Place& place, bool& wrote);

  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace fusedopt::cuda
#pragma GCC visibility pop
