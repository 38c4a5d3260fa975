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
  const auto slot_of = [&](const Extent& extent) -> Slot& { return slots_[sources_[extent.index].slot]; };
  each_cluster(std::move(extents), [&](const std::vector<Extent>& cluster) {
    for (size_t k = 0; k < cluster.size(); ++k) {
      int& wave = slot_of(cluster[k]).wave;
      for (size_t j = 0; j < k; ++j) {
        const int earlier = slot_of(cluster[j]).wave;
        if (wave <= earlier && meet(cluster[j], cluster[k])) wave = earlier + 1;
      }
    }
  });
}

}  // namespace fusedopt
