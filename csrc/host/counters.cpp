// Counters: where they are, and what a step makes of them.
#include "roster.h"

namespace fusedopt {

// Whether a param's counters belong on its device: where torch has them there, where the host cannot know whether a
// step takes place, where sums decide on them, and where one of them is there already, since loading a checkpoint moves
// all but `step`.
bool Roster::counts_on_device(const Source& source, bool device_decides) const {
  if (source.device == kHost || counts_in_python(source)) return false;
  bool one =
      device_decides || device_counters_ || rule_->remembers || groups_[slots_[source.slot].group].device_counters;
  for (int c = 0; c < rule_->counters; ++c) one = one || source.before[c].device;
  return one;
}

void Roster::move_counters(bool device_decides) {
  bool wanted = device_decides || device_counters_ || rule_->counters > 1;
  for (const Group& group : groups_) wanted = wanted || group.device_counters;
  if (!wanted || rule_->counters == 0) return;
  std::vector<std::tuple<size_t, int, at::Tensor>> moved;
  for (size_t i = 0; i < count_; ++i) {
    const Source& source = sources_[i];
    if (source.first || !counts_on_device(source, device_decides)) continue;
    for (int c = 0; c < rule_->counters; ++c) {
      if (source.before[c].device) continue;
      const at::Tensor counter = source.counter[c]
                                     ? tensor_of(source.counter[c])
                                     : at::full({}, source.before[c].value, at::TensorOptions(at::kFloat));
      moved.emplace_back(i, c, counter.to(torch_device(source.device)));
    }
  }
  for (const auto& [i, c, counter] : moved) {
    Source& source = sources_[i];
    const Ref value = wrap(counter);
    if (PyDict_SetItem(slots_[source.slot].state, keys_[rule_->states + c].name.ptr(), value.ptr()) != 0)
      throw py::error_already_set();
    source.counter[c] = counter.unsafeGetTensorImpl();
    source.count[c] = data_of(*source.counter[c]);
    source.before[c] = {0, source.count[c], is_double(*source.counter[c]) ? Dtype::f64 : Dtype::f32};
  }
}

// Gives a counter that is a Python number its next value, in all rows of a param that is listed twice.
void Roster::count_in_python(size_t i, int c, double value) {
  const Slot& slot = slots_[sources_[i].slot];
  const Ref dict = slot.state ? borrow(slot.state) : Ref(borrow(state_of_all_)[borrow(slot.param)]);
  dict[keys_[rule_->states + c].name] = py::int_(static_cast<int64_t>(value));
  for (size_t k = i; k < count_; ++k)
    if (slots_[sources_[k].slot].param == slot.param)
      sources_[k].counter_object[c] = PyDict_GetItem(dict.ptr(), keys_[rule_->states + c].name.ptr());
}

void Roster::count(size_t i, int c, double value) {
  const Source& source = sources_[i];
  if (!source.counter[c])
    count_in_python(i, c, value);
  else if (is_double(*source.counter[c]))
    *static_cast<double*>(source.count[c]) = value;
  else
    *static_cast<float*>(source.count[c]) = static_cast<float>(value);
}

}  // namespace fusedopt
