// What a step waits for is memory: to compare a row it reads Python objects, tensors and storages, some forty lines
// that lie about. So they are noted once, and asked for while the rows before are compared.
#include "dtensor.h"
#include "roster.h"

namespace fusedopt {

namespace {

// The lines of memory that are read of a row, each once.
class Lines {
 public:
  static constexpr size_t kCounts = 16;  // bytes at the beginning of what is shared, which nobody reads here

  explicit Lines(std::vector<const char*>& all) : all_(all), first_(all.size()) {}

  void add(const void* from, size_t begin, size_t end) {
    if (!from) return;
    constexpr uintptr_t size = 64;
    const uintptr_t address = reinterpret_cast<uintptr_t>(from);
    for (uintptr_t at = (address + begin) / size * size; at < address + end; at += size) {
      const char* line = reinterpret_cast<const char*>(at);
      if (std::find(all_.begin() + first_, all_.end(), line) == all_.end()) all_.push_back(line);
    }
  }
  // All that a step may look at, behind what is counted.
  void add(const TensorImpl& tensor) {
    add(&tensor, kCounts, sizeof(TensorImpl));
    if (const void* storage = tensor.unsafe_storage().unsafeGetStorageImpl()) add(storage, kCounts, 64);
  }
  // Of one whose object a step begins with, the object as well; of a DTensor what this process has of it.
  void add(PyObject* object) {
    const DTensorSlots& slots = dtensor_slots();
    add(object, 0, sizeof(PyObject) + sizeof(at::Tensor));
    const Shard shard = shard_at_a_look(object);
    if (!shard.local) return add(*unpack(object).unsafeGetTensorImpl());
    for (const Py_ssize_t slot : {slots.local, slots.spec}) add(object, slot, slot + sizeof(PyObject*));
    add(shard.local);
  }

 private:
  std::vector<const char*>& all_;
  size_t first_;
};

}  // namespace

void Roster::note_lines() {
  lines_of_.assign(1, 0);
  lines_.clear();
  for (size_t i = 0; i < count_; ++i) {
    Lines lines(lines_);
    const Source& source = sources_[i];
    const Slot& slot = slots_[source.slot];
    const TensorImpl& grad = *grad_of(source.slot).unsafeGetTensorImpl();
    lines.add(slot.param);
    // Its gradient is found by the tensor itself, and that of a DTensor by another.
    const TensorImpl& param = *unpack(slot.param).unsafeGetTensorImpl();
    lines.add(&param, Lines::kCounts, 64);
    lines.add(param.autograd_meta(), 0, 64);
    if (slot.state) lines.add(slot.state, 0, 32);
    lines.add(&grad, Lines::kCounts, 64);
    if (source.sharded)
      lines.add(wrap(grad_of(source.slot)).ptr());
    else
      lines.add(grad);
    for (int k = 0; k < rule_->states; ++k)
      if (source.state[k]) lines.add(source.state_object[k]);
    for (int c = 0; c < rule_->counters; ++c) {
      lines.add(source.counter_object[c]);
      lines.add(source.count[c], 0, 1);
    }
    lines_of_.push_back(lines_.size());
  }
}

}  // namespace fusedopt
