// What the sanitized tests of both engines share: rules with all their variants, mixes of storages, and operands in
// heap buffers of exactly their size, so that the first byte beyond one is an error.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "../../csrc/cpu/engine.h"
#include "../../csrc/rules/rule.h"

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

// Random finite numbers, of a storage type: of either sign, over many magnitudes, so that rounding differs in most of
// their bits; or all near 1 and positive, as states are that roots are taken of.
inline Bytes random_operand(std::mt19937& random, Dtype dtype, int64_t elements, bool signed_ = false) {
  Bytes bytes(elements * element_size(dtype));
  for (int64_t i = 0; i < elements; ++i) {
    float value = std::uniform_real_distribution<float>(0.25f, 2.0f)(random);
    if (signed_) {
      // One after the other: compilers differ in the order of a call's arguments.
      const bool negative = random() % 2 == 0;
      value = std::ldexp(negative ? -value : value, static_cast<int>(random() % 17) - 8);
    }
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    const uint32_t exponent = (bits >> 23 & 0xff) - 112;
    const uint16_t half =
        dtype == Dtype::bf16 ? bits >> 16 : (bits >> 16 & 0x8000) | exponent << 10 | (bits >> 13 & 0x3ff);
    const double wide = value;
    const void* source = dtype == Dtype::f32   ? static_cast<const void*>(&value)
                         : dtype == Dtype::f64 ? static_cast<const void*>(&wide)
                                               : &half;
    std::memcpy(bytes.data.get() + i * element_size(dtype), source, element_size(dtype));
  }
  return bytes;
}

inline bool is_nan(Dtype dtype, const unsigned char* at) {
  uint64_t bits = 0;
  std::memcpy(&bits, at, element_size(dtype));
  switch (dtype) {
    case Dtype::f64:
      return (bits & ~(uint64_t{1} << 63)) > 0x7ff0000000000000;
    case Dtype::f32:
      return (bits & 0x7fffffff) > 0x7f800000;
    default:
      return (bits & 0x7fff) > (dtype == Dtype::bf16 ? 0x7f80 : 0x7c00);
  }
}

// The same bits; NaNs are alike, for processors differ in what they put into them.
inline bool alike(const Bytes& a, const Bytes& b, Dtype dtype) {
  if (a == b) return true;
  for (size_t i = 0; i < a.size; i += element_size(dtype)) {
    const unsigned char *x = a.data.get() + i, *y = b.data.get() + i;
    if (std::memcmp(x, y, element_size(dtype)) != 0 && !(is_nan(dtype, x) && is_nan(dtype, y))) return false;
  }
  return true;
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

// Of every rule every variant, and what else changes which of its terms there are.
inline const std::vector<Variant> kVariants = {
    {"sgd", {0.1, 0, 0, 0.01, 0, 0}},
    {"sgd", {0.1, 0.9, 0.1, 0.01, 0, 0}},
    {"sgd", {0.1, 0.9, 0, 0.01, 1, 1}},
    {"adam", {0.1, 0.9, 0.999, 1e-8, 0.1, 0, 1, 1, 0}},
    {"adam", {0.1, 0.9, 0.999, 1e-8, 0.1, 1, 0, 0, 0}},
    {"adam", {0.1, 0.9, 0.999, 1e-8, 0.1, 0, 1, 1, 1}},
    {"adam", {0.1, 0.9, 0.999, 1e-8, 0.1, 1, 0, 0, 1}},
    {"rmsprop", {0.1, 0.9, 1e-8, 0, 0, 0, 0, 0, 0, 0}},
    {"rmsprop", {0.1, 0.9, 1e-8, 0.1, 0.9, 0, 0, 0, 0, 0}},
    {"rmsprop", {0.1, 0.9, 1e-3, 0.1, 0, 1, 1, 1, 0, 1}},
    {"rmsprop", {0.1, 0.9, 1e-3, 0.1, 0.9, 1, 1, 1, 1, 1}},
    {"adagrad", {0.1, 0.1, 1e-6, 0.1, 0.25}},
    {"adadelta", {0.5, 0.7, 1e-4, 0.1}},
    {"adamax", {0.1, 0.6, 0.8, 1e-6, 0.1}},
    {"nadam", {0.1, 0.8, 0.9, 1e-6, 0.1, 0.3, 0}},
    {"nadam", {0.1, 0.9, 0.999, 1e-8, 0.1, 0.004, 1}},
    {"radam", {0.1, 0.8, 0.7, 1e-6, 0.1, 0}},
    {"radam", {0.1, 0.9, 0.999, 1e-8, 0.1, 1}},
    {"asgd", {0.1, 0.1, 0.6, 1, 0.02}},
    {"rprop", {0.1, 0.3, 1.7, 1e-3, 0.2}},
    {"lion", {0.1, 0.6, 0.8, 0.1, 0}},
    {"lion", {0.1, 0.6, 0.8, 0.1, 1}},
    {"adan", {0.1, 0.7, 0.6, 0.8, 1e-6, 0.1, 0, 0}},
    {"adan", {0.1, 0.98, 0.92, 0.99, 1e-8, 0.1, 1, 0}},
    {"adan", {0.1, 0.98, 0.92, 0.99, 1e-8, 0.1, 1, 1}},
    {"ademamix", {0.1, 0.9, 0.999, 0.9999, 5, -1, -1, 1e-8, 0.1}},
    {"ademamix", {0.1, 0.6, 0.8, 0.98, 3, 4, 7, 1e-6, 0}},
    {"adopt", {0.1, 0.9, 0.9999, 1e-6, 0.25, 0.1, 0}},
    {"adopt", {0.1, 0.7, 0.8, 1e-4, -1, 0.1, 1}},
    {"adam_atan2", {0.1, 0.9, 0.99, 0.1, 1.27, 1}},
    {"nadamw", {0.1, 0.9, 0.999, 1e-8, 0.1}},
    {"laprop", {0.1, 0.9, 0.999, 1e-15, 0.1}},
    {"adabelief", {0.1, 0.9, 0.999, 1e-16, 0.1, 0, 1, 0, 1, 1}},
    {"adabelief", {0.1, 0.6, 0.8, 1e-6, 0.1, 1, 0, 0, 0, 0}},
    {"stable_adamw", {0.1, 0.9, 0.99, 1e-6, 0.1}},
    {"adamw_schedule_free", {0.1, 0.9, 0.999, 1e-8, 0.1, 3, 0, 2}},
    {"radam_schedule_free", {0.1, 0.9, 0.7, 1e-8, 0.1, 1, 1, 0}},
    {"sgd_schedule_free", {0.1, 0.9, 0.1, 3, 0, 2}},
    {"lamb", {0.1, 0.9, 0.999, 1e-6, 0.1, 1, 1, 0, 0, 0, -1, 0}},
    {"lamb", {0.1, 0.6, 0.8, 1e-4, 0, 0, 0, 1, 1, 0, -1, 0}},
    {"lamb", {0.1, 0.6, 0.8, 1e-4, 0.1, 1, 1, 0, 0, 1, 2, 0}},
    {"lamb", {0.1, 0.6, 0.8, 1e-4, 0.1, 1, 1, 0, 0, 0, -1, 1}},
    {"mars", {0.1, 0.9, 0.99, 1e-8, 0.1, 0.025}},
    {"novograd", {0.1, 0.95, 0.98, 1e-8, 0, 0, 0}},
    {"novograd", {0.1, 0.6, 0.8, 1e-4, 0.1, 1, 0}},
    {"novograd", {0.1, 0.6, 0.8, 1e-4, 0.1, 0, 1}},
    {"prodigy", {0.1, 0.9, 0.999, -1, 1e-8, 0.1, 1e-3, 1e-3, 1e-3, 0, 1, 0, 1.2, 0, 1, 0}},
    {"prodigy", {0.1, 0.9, 0.999, -1, 1e-6, 0.1, 1e-3, 1e-3, 1e-3, 0, 1, 0, 1.2, 0, 0, 1}},
    {"lars", {0.5, 0, 0, 0, 0, 0.02, 1e-8, 0, 1}},
    {"lars", {0.5, 0.9, 0.3, 0.1, 0, 0.02, 1e-6, 1, 0}},
    {"lars", {0.5, 0.7, 0, 0.1, 1, 0.02, 1e-8, 0, 0}},
    {"sophia", {0.1, 0.6, 0.8, 0.5, 1, 0.1, 0}},
    {"sophia", {0.1, 0.6, 0.8, 0.5, 1, 0.1, 1}},
    {"sparse_adam", {0.1, 0.9, 0.999, 1e-8}},
    {"muon_momentum", {0.95, 1}},
    {"muon_update", {0.1, 0.2, 0.1}},
};

// The sums of rows by their slots, with nothing for those that have none.
inline std::vector<double> by_slot(const fusedopt::Rule& rule, const std::vector<fusedopt::Row>& rows,
                                   const std::vector<fusedopt::cpu::ChunkSums>& sums) {
  std::vector<double> made(rows.empty() ? 0 : (rows.back().slot + 1) * rule.sums);
  for (size_t i = 0; i < rows.size(); ++i)
    if (sums[i].chunks > 0) std::copy_n(sums[i].sums, rule.sums, made.data() + rows[i].slot * rule.sums);
  return made;
}

}  // namespace operands
