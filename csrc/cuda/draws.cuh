// What the elements of a row draw, wherever they are in the whole of which it may be a part.
#pragma once

#include <cuda_runtime.h>

#include "../precision.h"

namespace FUSEDOPT_NAMESPACE {

// It divides, and parts of tensors alone need it.
__device__ __noinline__ inline int64_t number_in_whole(const fusedopt::Numbering& numbering, int64_t e) {
  return number_of(numbering, e);
}

// The draws of a row's elements.
struct AnyDraws {
  uint64_t key;
  const fusedopt::Numbering* numbering;  // null: the row is no part

  __device__ uint32_t operator()(int64_t e) const { return draw(key, numbering ? number_in_whole(*numbering, e) : e); }
};

}  // namespace FUSEDOPT_NAMESPACE
