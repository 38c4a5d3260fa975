#include "streams.h"

#include <algorithm>

namespace cuda_emulator {

namespace {
constexpr size_t kCell = 4;
std::string name_of(cudaStream_t stream) { return "stream " + std::to_string(reinterpret_cast<uintptr_t>(stream)); }
}  // namespace

void Streams::defer(uint64_t seed) {
  *this = Streams();
  deferred_ = seed != 0;
  random_ = Random(seed);
}

void Streams::join(Clock& clock, const Clock& other) {
  for (const auto& [stream, number] : other) clock[stream] = std::max(clock[stream], number);
}

cudaError_t Streams::put(cudaStream_t stream, Work work) {
  if (!deferred_) return work.run();
  Stream& its = streams_[stream];
  join(its.last, host_);
  its.last[stream] = ++its.given;
  its.queue.push_back({std::move(work), stream, its.given, ++now_, its.last});
  // Now and then a stream is quick.
  while (random_.below(4) == 0) run_one();
  return cudaSuccess;
}

bool Streams::ready(const Operation& operation) const {
  return std::all_of(operation.before.begin(), operation.before.end(), [&](const auto& entry) {
    const auto found = streams_.find(entry.first);
    return entry.first == operation.stream || found == streams_.end() || found->second.done >= entry.second;
  });
}

// The next operation of a stream that is ready; does nothing if all have been run.
void Streams::run_one() {
  std::vector<Stream*> able;
  for (auto& [stream, its] : streams_)
    if (!its.queue.empty() && ready(its.queue.front())) able.push_back(&its);
  if (able.empty()) return;
  Stream& its = *able[random_.below(static_cast<unsigned>(able.size()))];
  const Operation operation = std::move(its.queue.front());
  its.queue.pop_front();
  done_.push_back({operation.name, operation.stream, operation.number});
  running_ = &operation;
  block_ = 0;
  operation.run();
  running_ = nullptr;
  its.done = operation.number;
}

void Streams::wait_for(Clock given) {
  for (const auto& [stream, number] : given)
    while (streams_[stream].done < number) run_one();
  join(host_, given);
}

void Streams::wait_for_all() {
  for (auto& entry : streams_) wait_for(entry.second.last);
}

void Streams::allocated(const void* address, size_t bytes, cudaStream_t stream, bool of_graph) {
  const uintptr_t at = reinterpret_cast<uintptr_t>(address);
  Buffer buffer = {bytes, stream, of_graph, 0, {}, {}};
  buffer.cells.resize((bytes + kCell - 1) / kCell);
  latest_ = {0, nullptr};
  buffers_[at] = std::move(buffer);
}

void Streams::freed(const void* address) {
  const auto found = buffers_.find(reinterpret_cast<uintptr_t>(address));
  if (found == buffers_.end()) return;
  Buffer& buffer = found->second;
  if (buffer.of_graph) return;
  join(streams_[buffer.stream].last, buffer.users);
  char* const memory = static_cast<char*>(const_cast<void*>(address));
  put(buffer.stream, {[this, memory, bytes = buffer.bytes] {
                        access(memory, bytes, true);
                        std::memset(memory, 0xff, bytes);
                        return cudaSuccess;
                      },
                      "the next owner of freed memory"});
  buffer.freed = ++now_;
}

void Streams::forget(const void* address) {
  latest_ = {0, nullptr};
  buffers_.erase(reinterpret_cast<uintptr_t>(address));
}

void Streams::used_on(const void* address, cudaStream_t stream) {
  if (Buffer* buffer = find(address)) join(buffer->users, streams_[stream].last);
}

size_t Streams::bytes() const {
  size_t all = 0;
  for (const auto& entry : buffers_) all += entry.second.freed ? 0 : entry.second.bytes;
  return all;
}

Streams::Buffer* Streams::find(const void* address) {
  const uintptr_t at = reinterpret_cast<uintptr_t>(address);
  if (latest_.second && at - latest_.first < latest_.second->bytes) return latest_.second;
  auto next = buffers_.upper_bound(at);
  if (next == buffers_.begin()) return nullptr;
  --next;
  if (at - next->first >= next->second.bytes) return nullptr;
  latest_ = {next->first, &next->second};
  return &next->second;
}

bool Streams::ordered(int done) const {
  const Done& other = done_[done];
  if (other.stream == running_->stream) return true;
  const auto found = running_->before.find(other.stream);
  return found != running_->before.end() && found->second >= other.number;
}

void Streams::complain(const char* does, int other, const char* did, const Buffer& buffer, size_t offset) {
  if (!disorder_.empty()) return;
  disorder_ = running_->name + " on " + name_of(running_->stream) + " " + does + " byte " + std::to_string(offset) +
              " of " + std::to_string(buffer.bytes);
  if (other < 0)
    disorder_ += ", which had been freed before it was put there";
  else
    disorder_ += ", which " + done_[other].name + " on " + name_of(done_[other].stream) + " " + did +
                 ", and nothing orders the two";
}

// Two blocks, of which nobody knows which comes first.
void Streams::hold_to_blocks(Cell& cell, bool writes, bool atomic, const Buffer& buffer, size_t offset) {
  constexpr int64_t kSeveral = -1;
  const int self = static_cast<int>(done_.size()) - 1;
  const char* const does = writes ? "writes" : "reads";
  if (cell.writer == self && cell.writing != block_ && !(atomic && cell.by_atomic))
    complain(does, self, "writes in another block", buffer, offset);
  if (!writes) {
    if (atomic) return;
    cell.reading = cell.reader == self && cell.reading != block_ ? kSeveral : block_;
    cell.reader = self;
    return;
  }
  if (cell.reader == self && cell.reading != block_) complain(does, self, "reads in another block", buffer, offset);
  cell.writing = block_;
  cell.by_atomic = atomic;
}

void Streams::access(const void* address, size_t bytes, bool writes, bool atomic) {
  if (running_ == nullptr) return;
  Buffer* const buffer = find(address);
  if (buffer == nullptr || bytes == 0) return;
  const size_t first = reinterpret_cast<uintptr_t>(address) - latest_.first;
  const char* const does = writes ? "writes" : "reads";
  const int self = static_cast<int>(done_.size()) - 1;
  if (buffer->freed && running_->born > buffer->freed) complain(does, -1, "", *buffer, first);
  const size_t last = std::min(buffer->bytes, first + bytes) - 1;
  for (size_t at = first / kCell; at <= last / kCell; ++at) {
    Cell& cell = buffer->cells[at];
    hold_to_blocks(cell, writes, atomic, *buffer, at * kCell);
    if (cell.writer >= 0 && !ordered(cell.writer)) complain(does, cell.writer, "writes", *buffer, at * kCell);
    if (!writes) {
      const auto mine = std::find_if(cell.readers.begin(), cell.readers.end(),
                                     [&](int reader) { return done_[reader].stream == running_->stream; });
      if (mine == cell.readers.end())
        cell.readers.push_back(self);
      else
        *mine = self;
      continue;
    }
    for (const int reader : cell.readers)
      if (!ordered(reader)) complain(does, reader, "reads", *buffer, at * kCell);
    cell.readers.clear();
    cell.writer = self;
  }
}

}  // namespace cuda_emulator
