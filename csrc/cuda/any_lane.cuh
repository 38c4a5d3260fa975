// A lane's eight elements of a tile, in registers: every loop over them is unrolled.
#pragma once

#include "any_row.cuh"

namespace FUSEDOPT_NAMESPACE {

// Elements of a row that a warp takes at a time, one block of codes, and what a lane has of them.
constexpr int kAnyTile = fusedopt::kCodeBlock;
constexpr int kShare = kAnyTile / kLanes;

struct Share {
  int64_t begin;  // the tile's first element in the row
  int n;          // its elements

  // Neighbouring lanes have neighbouring elements.
  __device__ int element(int j) const { return j * kLanes + static_cast<int>(threadIdx.x) % kLanes; }
};

// A lane's numbers of one operand, and their bits as they are stored: of storages of four bytes at most.
template <class T>
struct Numbers {
  T at[kShare];
};
struct Raw {
  uint32_t word[kShare];
};

template <class Stored>
__device__ Stored from_word(uint32_t word) {
  if constexpr (sizeof(Stored) == sizeof(uint16_t))
    return bit_cast<Stored>(static_cast<uint16_t>(word));
  else
    return bit_cast<Stored>(word);
}
template <class Stored>
__device__ uint32_t to_word(Stored x) {
  if constexpr (sizeof(Stored) == sizeof(uint16_t))
    return bit_cast<uint16_t>(x);
  else
    return bit_cast<uint32_t>(x);
}

__device__ inline bool in_registers(Dtype dtype) {
  return dtype == Dtype::f32 || dtype == Dtype::bf16 || dtype == Dtype::f16 || fusedopt::is_coded(dtype);
}
template <class F>
__device__ void with_word(Dtype dtype, F&& f) {
  if (dtype == Dtype::f32) return f(float());
  if (dtype == Dtype::bf16) return f(bf16());
  f(f16());
}

template <class F>
__device__ void each_word(char* data, Dtype dtype, const Share& share, F&& f) {
  if (dtype == Dtype::f32) {
    auto* const at = reinterpret_cast<unsigned*>(data) + share.begin + share.element(0);
#pragma unroll
    for (int j = 0; j < kShare; ++j) f(at + j * kLanes, j);
  } else {
    auto* const at = reinterpret_cast<unsigned short*>(data) + share.begin + share.element(0);
#pragma unroll
    for (int j = 0; j < kShare; ++j) f(at + j * kLanes, j);
  }
}
__device__ inline void fetch(const AnyOperand& operand, const Share& share, Raw& raw) {
  each_word(operand.data, operand.dtype, share, [&](auto* at, int j) { raw.word[j] = __ldcg(at); });
}
__device__ inline void put(const AnyOperand& operand, const Share& share, const Raw& raw) {
  each_word(operand.data, operand.dtype, share, [&](auto* at, int j) { __stcg(at, raw.word[j]); });
}

__device__ inline void decode_all(Dtype dtype, const Raw& raw, float* to) {
  with_word(dtype, [&](auto type) {
#pragma unroll
    for (int j = 0; j < kShare; ++j) to[j] = decode(from_word<decltype(type)>(raw.word[j]));
  });
}
__device__ inline void encode_all(Dtype dtype, const float* from, Raw& raw) {
  with_word(dtype, [&](auto type) {
#pragma unroll
    for (int j = 0; j < kShare; ++j) {
      decltype(type) x;
      encode(from[j], x);
      raw.word[j] = to_word(x);
    }
  });
}
// To bfloat16. `first`: the number of a lane's first element.
__device__ __noinline__ inline Raw encode_by_chance(const Numbers<float> numbers, const AnyDraws draws, int64_t first) {
  Raw raw;
#pragma unroll
  for (int j = 0; j < kShare; ++j) {
    bf16 x;
    encode_by_chance(numbers.at[j], draws(first + j * kLanes), x);
    raw.word[j] = to_word(x);
  }
  return raw;
}
__device__ inline void encode_all(Dtype dtype, const Share& share, const float* from, bool by_chance,
                                  const AnyDraws& draws, Raw& raw) {
  if (!by_chance || dtype == Dtype::f32) return encode_all(dtype, from, raw);
  Numbers<float> numbers;
  memcpy(numbers.at, from, sizeof(numbers));
  raw = encode_by_chance(numbers, draws, share.begin + share.element(0));
}

// A lane's share of a tile, as write_back.h wants it. What it writes is put into memory after that.
struct AnyPart {
  const AnyRow& row;
  const Share& share;
  Raw &param, &partner, &average, &grad;

  template <Access access, class F>
  __device__ void each(Operand which, F&& f) const {
    with_word(row.operand(which).dtype, [&](auto type) { each_of<access, decltype(type)>(which, f); });
  }
  template <Access access, class Stored, class F>
  __device__ void each_of(Operand which, F&& f) const {
    Raw& raw = raw_of(which);
#pragma unroll
    for (int j = 0; j < kShare; ++j) {
      Stored x = {};
      if (access != Access::writes) x = from_word<Stored>(raw.word[j]);
      f(x, j);
      if (access != Access::reads) raw.word[j] = to_word(x);
    }
  }
  __device__ float* reload(float* p) const {
    decode_all(row.row->dtypes[0], param, p);
    return p;
  }
  __device__ void store(const float* p) const { store_as(fusedopt::kParam, p); }
  __device__ void store_as(Operand which, const float* p) const {
    encode_all(row.operand(which).dtype, p, raw_of(which));
  }
  __device__ void store_by_chance(const float* p) const {
    encode_all(row.row->dtypes[0], share, p, true, row.draws_of(fusedopt::kParam), param);
  }

 private:
  __device__ Raw& raw_of(Operand which) const {
    return which == fusedopt::kParam     ? param
           : which == fusedopt::kPartner ? partner
           : which == fusedopt::kAverage ? average
                                         : grad;
  }
};

// States in codes. What a lane's words hold are its own elements, and blocks are whole: zeros lie beyond the row's
// end.

struct AnyCodes {
  uint32_t* words;  // of the lane
  float* scale;
  Dtype dtype;

  __device__ AnyCodes(const AnyRow& row, int k, const Share& share) : dtype(row.row->dtypes[2 + k]) {
    // Slices that are looked up are whole blocks.
    const bool looked_up = row.layout && row.layout[1] != 0;
    const int64_t block = (looked_up ? row.state(k).offset(share.begin) : share.begin) / kAnyTile;
    const int words_of_block = fusedopt::code_bytes(dtype) / static_cast<int>(sizeof(uint32_t));
    words = static_cast<uint32_t*>(row.row->state[k]) + block * words_of_block + threadIdx.x % kLanes;
    scale = row.extras->scales[k] + block;
  }
};

// A lane's words of a block, then its scale.
constexpr int kMostWords = Code<8, true>::kWords / kLanes;
__device__ inline void fetch_codes(const AnyCodes& codes, Raw& raw) {
  raw.word[0] = __ldcg(codes.words);
  if (fusedopt::code_bytes(codes.dtype) == fusedopt::kCodeBlock) raw.word[1] = __ldcg(codes.words + kLanes);
  raw.word[kMostWords] = to_word(*codes.scale);
}

__device__ __noinline__ inline Numbers<float> decode_codes(Dtype dtype, const Raw raw) {
  Numbers<float> numbers;
  const float scale = from_word<float>(raw.word[kMostWords]);
  with_code(dtype, [&](auto code) {
    using C = decltype(code);
    constexpr int kWords = C::kWords / kLanes;
#pragma unroll
    for (int w = 0; w < kWords; ++w)
      each_place<C>(
          [&](auto place) { numbers.at[place * kWords + w] = decode<C, decltype(place)::value>(raw.word[w], scale); });
  });
  return numbers;
}

// The bits of the largest magnitude that all lanes have, or of some number that is not finite where there is one.
__device__ inline uint32_t largest_magnitude(const Numbers<float>& numbers) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  float mine = 0;
#pragma unroll
  for (int j = 0; j < kShare; ++j) asm("max.NaN.f32 %0, %1, %2;" : "=f"(mine) : "f"(mine), "f"(fabsf(numbers.at[j])));
  return __reduce_max_sync(~0u, bit_cast<uint32_t>(mine));
#else
  uint32_t largest = 0;
  for (const float x : numbers.at) largest = max(largest, magnitude_of(x));
  for (int lanes = kLanes / 2; lanes > 0; lanes /= 2) largest = max(largest, __shfl_xor_sync(~0u, largest, lanes));
  return largest;
#endif
}

// All lanes of a warp come here together, with zeros for elements beyond the row's end. `first`: as above.
__device__ __noinline__ inline void store_codes(const AnyCodes codes, const Numbers<float> numbers, bool by_chance,
                                                const AnyDraws draws, int64_t first) {
  uint32_t chance[kShare];
#pragma unroll
  for (int j = 0; j < kShare; ++j) chance[j] = by_chance ? draws(first + j * kLanes) : kNearest;
  const uint32_t largest = largest_magnitude(numbers);
  with_code(codes.dtype, [&](auto code) {
    using C = decltype(code);
    constexpr int kWords = C::kWords / kLanes;
    const float scale = scale_of<C>(largest);
    const Coder<C> coder(scale);
    if (threadIdx.x % kLanes == 0) *codes.scale = scale;
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      uint32_t word = 0;
      each_place<C>([&](auto place) {
        const int j = place * kWords + w;
        word |= coder.template encode<decltype(place)::value>(numbers.at[j], chance[j]);
      });
      __stcg(codes.words + w * kLanes, word);
    }
  });
}

}  // namespace FUSEDOPT_NAMESPACE
