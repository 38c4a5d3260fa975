// What a plan does while other Python threads may run. Included by plan.h alone.
#pragma once

#include "shards.h"

namespace fusedopt {

// Calls f while other Python threads may run, if that is worth it; what they could free is held.
template <class F>
void Plan::without_gil(int64_t work, F&& f) {
  if (work < kReleaseGil) return f();
  std::vector<c10::intrusive_ptr<TensorImpl>> held;
  const auto hold = [&](TensorImpl* impl) {
    if (impl) held.push_back(c10::intrusive_ptr<TensorImpl>::reclaim_copy(impl));
  };
  for (size_t i = 0; i < count_; ++i) {
    hold(sources_[i].param);
    if (sources_[i].sharded) whole(sources_[i], hold);
    hold(sources_[i].grad);
    for (TensorImpl* state : sources_[i].state) hold(state);
    for (TensorImpl* counter : sources_[i].counter) hold(counter);
    for (TensorImpl* tensor : sources_[i].attached) hold(tensor);
  }
  struct Busy {
    bool& flag;
    explicit Busy(bool& flag) : flag(flag) { flag = true; }
    ~Busy() { flag = false; }
  } const busy(busy_);
  fusedopt::without_gil(work, f);
}

}  // namespace fusedopt
