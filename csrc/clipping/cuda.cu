// How a norm is measured and gradients are scaled on a stream.
#define FUSEDOPT_NAMESPACE fusedopt_cuda
#include "engines.h"

#include "../cuda/runtime.h"
#include "kernels.cuh"

namespace fusedopt::cuda {
namespace {

using fusedopt_cuda::DenseGrads;
using fusedopt_cuda::MeasureArguments;
using fusedopt_cuda::ScaleArguments;
using fusedopt_cuda::StridedGrad;

// Entries of 24 bytes beside some 40 of other arguments, in the 32,764 bytes that a launch carries.
using ManyGrads = DenseGrads<1360>;
static_assert(sizeof(MeasureArguments<ManyGrads>) <= 32764);

// Calls launch(gradients, index of their first chunk) until all entries have had their turn.
template <class F>
void put_dense(const NormEntry* first, const NormEntry* last, F&& launch) {
  constexpr uint32_t kCapacity = sizeof(ManyGrads::entry) / sizeof(ManyGrads::Entry);
  // A chunk's index within a launch has 32 bits.
  constexpr int64_t kMostChunks = int64_t{1} << 31;
  ManyGrads grads;
  grads.count = grads.chunks = 0;
  int64_t before = 0;
  const auto flush = [&] {
    if (grads.count > 0) launch(grads, before);
    grads.count = grads.chunks = 0;
  };
  for (const NormEntry* entry = first; entry < last; ++entry) {
    const int64_t begin = entry->chunks_end - entry->chunks();
    // Chunks of strided gradients in between belong to other launches.
    if (entry->layout || grads.count == kCapacity || grads.chunks + entry->chunks() > kMostChunks) flush();
    if (entry->layout) continue;
    if (grads.count == 0) before = begin;
    grads.entry[grads.count++] = {entry->data, entry->numel, grads.chunks, entry->dtype, entry->complex};
    grads.chunks += static_cast<uint32_t>(entry->chunks());
  }
  flush();
}

template <class F>
void put_all(const NormEntry* first, const NormEntry* last, F&& launch) {
  put_dense(first, last, launch);
  for (const NormEntry* entry = first; entry < last; ++entry)
    if (entry->layout)
      launch(StridedGrad{static_cast<uint32_t>(entry->chunks()), *entry, *entry->layout},
             entry->chunks_end - entry->chunks());
}

template <class Grads>
cudaError_t bring_for() {
  return bring(fusedopt_cuda::norm_squares<Grads>, fusedopt_cuda::norm_terms<Grads>, fusedopt_cuda::norm_scale<Grads>);
}

}  // namespace

bool ready_for_norm(const Place& place) {
  static Brought brought;
  const bool captured = capturing(place);
  brought.to(place.device, [] {
    for (const cudaError_t error :
         {bring_for<ManyGrads>(), bring_for<StridedGrad>(), bring(fusedopt_cuda::norm_fold, fusedopt_cuda::norm_clip)})
      if (error != cudaSuccess) return error;
    return cudaSuccess;
  });
  return captured;
}

int64_t norm_scratch(int64_t chunks) {
  int64_t words = 1;
  for (int64_t level = chunks; level > 1; level = folded(level)) words += level;
  return words;
}

void measure(const NormEntry* first, const NormEntry* last, const NormOrder& order, double* scratch,
             const Place& place) {
  use(place.device);
  int64_t count = last[-1].chunks_end;
  double* sums = count > 1 ? scratch + 1 : scratch;
  put_all(first, last, [&](const auto& grads, int64_t before) {
    using Grads = std::decay_t<decltype(grads)>;
    const MeasureArguments<Grads> arguments = {order, sums + before, grads};
    put_chunks(grads.chunks, place,
               order.term == Term::square ? fusedopt_cuda::norm_squares<Grads> : fusedopt_cuda::norm_terms<Grads>,
               arguments);
  });
  while (count > 1) {
    const int64_t left = folded(count);
    double* out = left > 1 ? sums + count : scratch;
    put(place, static_cast<uint32_t>(left), kAccumulators, fusedopt_cuda::norm_fold, sums, count,
        order.term == Term::largest, out);
    sums = out;
    count = left;
  }
}

void clip(const double* total, const Number& scale, const ClipRequest& request, const ClipOutput& out,
          const Place& place) {
  use(place.device);
  const fusedopt_cuda::ClipArguments arguments = {total,   scale.value, {scale.device, scale.dtype},
                                                  request, out.norm,    out.numbers};
  put(place, 1, 1, fusedopt_cuda::norm_clip, arguments);
}

void scale(const NormEntry* first, const NormEntry* last, const Number& coefficient, const Place& place) {
  use(place.device);
  put_together([&](bool& wrote) {
    put_all(first, last, [&](const auto& grads, int64_t) {
      using Grads = std::decay_t<decltype(grads)>;
      const ScaleArguments<Grads> arguments = {coefficient.value, {coefficient.device, coefficient.dtype}, grads};
      put_chunks(grads.chunks, place, fusedopt_cuda::norm_scale<Grads>, arguments);
      wrote = true;
    });
  });
}

}  // namespace fusedopt::cuda
