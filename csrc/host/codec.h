// States in codes, a whole one at a time: for checkpoints, and for params that have come to lie otherwise. What a code
// is and means is said in precision.h.
#pragma once

#include "options.h"

namespace fusedopt {

// What is written and read here lies on the host; tensors of a device are copied there and back, which checkpoints do
// in any case.
struct Coded {
  at::Tensor codes, scales;
};

// Rounded to nearest, in the order of the model's memory, on the device of `value`.
Coded encode_state(const at::Tensor& value, Dtype code, const at::Tensor& model);
// All its numbers the same, as new states are.
Coded encode_constant(double value, Dtype code, const at::Tensor& model);
// In float32, with the shape and the strides of the model, on the device of the codes. `order`: that of the model's
// dimensions when the codes were made.
at::Tensor decode_state(const at::Tensor& codes, const at::Tensor& scales, const at::Tensor& model,
                        c10::IntArrayRef order);

}  // namespace fusedopt
