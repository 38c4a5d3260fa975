// What a plan does while other Python threads may run. Included by plan.h alone.
#pragma once

#include "shards.h"

namespace fusedopt {

// What other Python threads could free.
inline Plan::Held Plan::hold_all() const {
  Held held;
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
  return held;
}

// Calls f while other Python threads may run, if that is worth it. What they could free is held until the end, or for
// as long as `keep` lives.
template <class F>
void Plan::without_gil(int64_t work, F&& f, Held* keep) {
  if (work < kReleaseGil) return f();
  Held held = hold_all();
  struct Busy {
    bool& flag;
    explicit Busy(bool& flag) : flag(flag) { flag = true; }
    ~Busy() { flag = false; }
  } const busy(busy_);
  fusedopt::without_gil(work, f);
  if (keep) *keep = std::move(held);
}

}  // namespace fusedopt
