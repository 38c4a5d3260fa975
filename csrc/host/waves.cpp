// Operands that share memory: params step one after the other, as in a loop over the list, and a gradient may not lie
// across its param.
#include "overlap.h"
#include "roster.h"

namespace fusedopt {

// Says which params wait for another. Which do is the same until a param lies elsewhere.
void Roster::find_waves() {
  std::vector<Extent> extents;
  extents.reserve(count_);
  for (size_t i = 0; i < count_; ++i) {
    const Source& source = sources_[i];
    slots_[source.slot].wave = slots_[source.slot].listed;
    if (source.param->numel() > 0) extents.push_back(extent_of(*source.param, i));
  }
  take_turns(std::move(extents), [&](size_t i) -> int& { return slots_[sources_[i].slot].wave; });
}

// Refuses what torch refuses. Dense operands that are far from each other need no closer look.
void Roster::check_apart(Row& row, const Source& source, const void* param) const {
  constexpr int64_t kLargest = 8;
  const auto apart = reinterpret_cast<intptr_t>(row.grad) - reinterpret_cast<intptr_t>(param);
  if (!row.layout && std::abs(apart) >= row.numel * kLargest) return;
  if (!crosses(extent_from(param, *source.param), extent_from(row.grad, *source.grad))) return;
  row.grad = nullptr;  // so that it is another when it is met again
  fail(source, "its gradient shares memory with the param, element for other element; clone() the gradient");
}

}  // namespace fusedopt
