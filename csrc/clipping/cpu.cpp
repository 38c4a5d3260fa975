#define FUSEDOPT_NAMESPACE fusedopt_host
#include "engines.h"

#include <algorithm>
#include <vector>

#include "../cpu/engine.h"
#include "../cpu/parallel.h"
#include "clip.h"

namespace fusedopt::cpu {
namespace {

// Calls f(entry, first chunk, last chunk) for each thread's share of all chunks. Each element is touched `passes`
// times.
template <class F>
void share_chunks(const NormEntry* first, const NormEntry* last, int passes, int threads, F&& f) {
  if (first == last) return;
  int64_t elements = 0;
  for (const NormEntry* entry = first; entry < last; ++entry) elements += entry->numel;
  // kTeamSaves counts the elements of an update, which touches its operands some seven times.
  const int64_t work = elements * passes / 7, chunks = last[-1].chunks_end;
  parallel(work, threads, [&](int thread, int of) {
    const int64_t from = chunks * thread / of, to = chunks * (thread + 1) / of;
    const NormEntry* entry =
        std::upper_bound(first, last, from, [](int64_t chunk, const NormEntry& one) { return chunk < one.chunks_end; });
    for (; entry < last; ++entry) {
      const int64_t begin = entry->chunks_end - entry->chunks();
      if (begin >= to) break;
      f(*entry, std::max(from, begin) - begin, std::min(to, entry->chunks_end) - begin);
    }
  });
}

}  // namespace

double measure(const NormEntry* first, const NormEntry* last, const NormOrder& order, int threads) {
  std::vector<double> sums(first == last ? 0 : last[-1].chunks_end);
  const NormKernels& kernels = chosen_isa().norm();
  share_chunks(first, last, 1, threads, [&](const NormEntry& entry, int64_t from, int64_t to) {
    kernels.measure(entry, order, from, to, sums.data() + entry.chunks_end - entry.chunks() + from);
  });
  return kernels.fold(sums.data(), static_cast<int64_t>(sums.size()), order.term == Term::largest);
}

void scale(const NormEntry* first, const NormEntry* last, double coefficient, int threads) {
  const NormKernels& kernels = chosen_isa().norm();
  share_chunks(first, last, 2, threads, [&](const NormEntry& entry, int64_t from, int64_t to) {
    kernels.scale(entry, from * kChunk, std::min(to * kChunk, entry.numel), coefficient);
  });
}

Clipped clip(double total, double scale, const ClipRequest& request) {
  const fusedopt_host::Clip result = fusedopt_host::clip(total, scale, request);
  return {result.norm, result.coefficient, result.divisor};
}

}  // namespace fusedopt::cpu
