// Which tensors have elements in common.
#pragma once

#include "tensor.h"

namespace fusedopt {

// Where a tensor's elements lie, and which of a list it is.
struct Extent {
  const TensorImpl* tensor;
  const char *begin, *end;
  size_t index;
};

// Of one whose first element lies there.
inline Extent extent_from(const void* data, const TensorImpl& tensor, size_t index = 0) {
  int64_t last = 0;
  for (size_t d = 0; d < tensor.sizes().size(); ++d) last += (tensor.sizes()[d] - 1) * tensor.strides()[d];
  const char* begin = static_cast<const char*>(data);
  return {&tensor, begin, begin + (last + 1) * tensor.dtype().itemsize(), index};
}
inline Extent extent_of(const TensorImpl& tensor, size_t index) { return extent_from(data_of(tensor), tensor, index); }

// What two tensors' elements can be apart in one dimension: any of `least` to `most` strides.
struct Reach {
  int64_t stride, least, most;
};

// Whether a sum of the terms can be `apart`. The terms come largest stride first, so few of them are open at a time;
// where that takes too many `looks`, yes.
inline bool can_be(int64_t apart, const Reach* term, const Reach* end, int& looks) {
  if (--looks < 0) return true;
  if (term == end) return apart == 0;
  int64_t least = 0, most = 0;  // of what is to come
  for (const Reach* other = term + 1; other != end; ++other) {
    least += other->stride * other->least;
    most += other->stride * other->most;
  }
  const auto floor = [&](int64_t value) { return value / term->stride - (value % term->stride < 0); };
  const int64_t last = std::min(term->most, floor(apart - least));
  for (int64_t k = std::max(term->least, -floor(most - apart)); k <= last; ++k)
    if (can_be(apart - k * term->stride, term + 1, end, looks)) return true;
  return false;
}

// Whether two tensors have an element in common. Columns of one matrix have none, though each begins before others end.
inline bool meet(const Extent& one, const Extent& other) {
  if (one.end <= other.begin || other.end <= one.begin) return false;
  const TensorImpl &a = *one.tensor, &b = *other.tensor;
  const int64_t size = static_cast<int64_t>(a.dtype().itemsize());
  if (a.dtype() != b.dtype() || (other.begin - one.begin) % size != 0) return true;
  std::vector<Reach> terms;
  const auto term = [&](int64_t stride) -> Reach& {
    for (Reach& known : terms)
      if (known.stride == stride) return known;
    return terms.emplace_back(Reach{stride, 0, 0});
  };
  for (size_t d = 0; d < a.sizes().size(); ++d)
    if (a.sizes()[d] > 1 && a.strides()[d] > 0) term(a.strides()[d]).most += a.sizes()[d] - 1;
  for (size_t d = 0; d < b.sizes().size(); ++d)
    if (b.sizes()[d] > 1 && b.strides()[d] > 0) term(b.strides()[d]).least -= b.sizes()[d] - 1;
  std::sort(terms.begin(), terms.end(), [](const Reach& x, const Reach& y) { return x.stride > y.stride; });
  int looks = 1000;
  return can_be((other.begin - one.begin) / size, terms.data(), terms.data() + terms.size(), looks);
}

// Whether they share elements otherwise than one by one: who goes over both and writes the one would read of the other
// what has been written.
inline bool crosses(const Extent& one, const Extent& other) {
  const bool alike = one.begin == other.begin && one.tensor->dtype() == other.tensor->dtype() &&
                     equal(one.tensor->strides(), other.tensor->strides());
  return !alike && meet(one, other);
}

// Calls f with those of the extents, in the order of the list, that lie among each other: all that can meet.
template <class F>
void each_cluster(std::vector<Extent> extents, F&& f) {
  std::sort(extents.begin(), extents.end(), [](const Extent& a, const Extent& b) { return a.begin < b.begin; });
  for (size_t k = 0; k < extents.size();) {
    size_t next = k + 1;
    const char* end = extents[k].end;
    for (; next < extents.size() && extents[next].begin < end; ++next) end = std::max(end, extents[next].end);
    if (next - k > 1) {
      std::vector<Extent> cluster(extents.begin() + k, extents.begin() + next);
      std::sort(cluster.begin(), cluster.end(), [](const Extent& a, const Extent& b) { return a.index < b.index; });
      f(cluster);
    }
    k = next;
  }
}

// Has each wait for those before it in the list that it has elements in common with: turn(index) is the number of its
// turn, and to begin with the least that it may be.
template <class F>
void take_turns(std::vector<Extent> extents, F&& turn) {
  each_cluster(std::move(extents), [&](const std::vector<Extent>& cluster) {
    for (size_t k = 0; k < cluster.size(); ++k) {
      int& its = turn(cluster[k].index);
      for (size_t j = 0; j < k; ++j) {
        const int earlier = turn(cluster[j].index);
        if (its <= earlier && meet(cluster[j], cluster[k])) its = earlier + 1;
      }
    }
  });
}

}  // namespace fusedopt
