// Params that share memory: they step one after the other, as in a loop over the list.
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

}  // namespace fusedopt
