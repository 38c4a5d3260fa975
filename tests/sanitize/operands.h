// What the sanitized tests of both engines share: rules with all their variants, mixes of storages, and operands in
// heap buffers of exactly their size, so that the first byte beyond one is an error.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "../../csrc/step.h"

namespace operands {

using fusedopt::Dtype;

struct Bytes {
  std::unique_ptr<unsigned char[]> data;
  size_t size;

  explicit Bytes(size_t n) : data(new unsigned char[n]), size(n) {}
  bool operator==(const Bytes& other) const {
    return size == other.size && std::memcmp(data.get(), other.data.get(), size) == 0;
  }
};

// The elements that memory holds from the first of a walk to its last.
inline int64_t span(int dims, const int64_t* size, const int64_t* stride) {
  int64_t last = 0;
  for (int d = 0; d < dims; ++d) {
    if (size[d] == 0) return 0;
    last += (size[d] - 1) * stride[d];
  }
  return last + 1;
}

// Random finite numbers near 1 in a storage type.
inline Bytes random_operand(std::mt19937& random, Dtype dtype, int64_t elements) {
  Bytes bytes(elements * element_size(dtype));
  for (int64_t i = 0; i < elements; ++i) {
    const float value = std::uniform_real_distribution<float>(0.25f, 2.0f)(random);
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    const uint16_t half = dtype == Dtype::bf16 ? bits >> 16 : 0x3000 + (bits >> 13) % 0x0fff;
    const double wide = value;
    const void* source = dtype == Dtype::f32   ? static_cast<const void*>(&value)
                         : dtype == Dtype::f64 ? static_cast<const void*>(&wide)
                                               : &half;
    std::memcpy(bytes.data.get() + i * element_size(dtype), source, element_size(dtype));
  }
  return bytes;
}

struct Mix {
  Dtype param, grad, state;

  Dtype of(int operand) const {
    return operand == fusedopt::kParam ? param : operand == fusedopt::kGrad ? grad : state;
  }
};

inline const std::vector<Mix> kMixes = {
    {Dtype::f32, Dtype::f32, Dtype::f32},    {Dtype::f64, Dtype::f64, Dtype::f64},
    {Dtype::bf16, Dtype::bf16, Dtype::bf16}, {Dtype::f16, Dtype::f16, Dtype::f16},
    {Dtype::bf16, Dtype::bf16, Dtype::f32},  {Dtype::f32, Dtype::bf16, Dtype::f32},
    {Dtype::f64, Dtype::f32, Dtype::bf16},   {Dtype::f16, Dtype::f32, Dtype::f64},
};

struct Variant {
  std::string rule;
  std::vector<double> hypers;
};

inline const std::vector<Variant> kVariants = {
    {"sgd", {0.1, 0, 0, 0.01, 0}},
    {"sgd", {0.1, 0.9, 0.1, 0.01, 0}},
    {"sgd", {0.1, 0.9, 0, 0, 1}},
    {"adam", {0.1, 0.9, 0.999, 1e-8, 0.1, 0, 1}},
    {"adam", {0.1, 0.9, 0.999, 1e-8, 0.1, 1, 0}},
    {"rmsprop", {0.1, 0.9, 1e-8, 0, 0, 0}},
    {"rmsprop", {0.1, 0.9, 1e-8, 0.1, 0.9, 0}},
    {"rmsprop", {0.1, 0.9, 1e-8, 0, 0, 1}},
    {"rmsprop", {0.1, 0.9, 1e-8, 0, 0.9, 1}},
};

}  // namespace operands
