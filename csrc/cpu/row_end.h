// The end of a row, whose elements do not fill a block of a rule's loop. Included once per instruction set.
#pragma once

#ifdef FUSEDOPT_F16C
#include <immintrin.h>
#endif

#include "../step.h"

namespace FUSEDOPT_NAMESPACE {

// The most elements that a rule's loop takes at once: loops.h.
constexpr int64_t kLargestBlock = 64;

// A rule from outside calls these in the package's engines.
#pragma GCC visibility push(default)

// Of an even number of bytes, copied to as many whole lines as `room` has, which are filled up with zeros; and back.
void fetch_lines(char* copy, const char* from, int64_t bytes, int64_t room);
void put_lines(char* to, const char* copy, int64_t bytes);

#pragma GCC visibility pop

// Of a line at most. A loop that takes a vector out of a copy would wait for smaller stores into it, so where it can
// be a copy is written in vectors, filled up in registers; and most ends are a line of each operand, for which a call
// would take longer.
#if defined(FUSEDOPT_ISA_AVX512)
template <class>
constexpr bool kFetchesInPlace = true;

inline __mmask64 mask_of(int64_t bytes) { return ~0ull >> (64 - bytes); }
inline void fetch_line(char* copy, const char* from, int64_t bytes) {
  _mm512_store_si512(copy, _mm512_maskz_loadu_epi8(mask_of(bytes), from));
}
#elif defined(FUSEDOPT_ISA_AVX2)
// A mask has words, not bytes.
template <class Stored>
constexpr bool kFetchesInPlace = sizeof(Stored) % 4 == 0;

inline void fetch_line(char* copy, const char* from, int64_t bytes) {
  // As many words are set from here on as are read.
  alignas(64) static constexpr int32_t kMasks[32] = {-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1};
  const auto* mask = reinterpret_cast<const __m256i*>(reinterpret_cast<const char*>(kMasks) + 64 - bytes);
  const auto* words = reinterpret_cast<const int*>(from);
  auto* made = reinterpret_cast<__m256i*>(copy);
  _mm256_store_si256(made, _mm256_maskload_epi32(words, _mm256_loadu_si256(mask)));
  _mm256_store_si256(made + 1, _mm256_maskload_epi32(words + 8, _mm256_loadu_si256(mask + 1)));
}
#else
template <class>
constexpr bool kFetchesInPlace = false;
inline void fetch_line(char*, const char*, int64_t) {}
#endif

// Copies of operands, each of `n` elements, with room for a block of them.
template <int64_t block>
class RowEnd {
 public:
  explicit RowEnd(int64_t n) : n_(n) {}

  template <class Stored>
  Stored* fetch(const Stored* data) {
    constexpr int64_t kSize = sizeof(Stored), kRoom = block * kSize;
    char* copy = copies_[count_++];
    const char* from = reinterpret_cast<const char*>(data);
    if constexpr (kRoom == 64 && kFetchesInPlace<Stored>)
      fetch_line(copy, from, n_ * kSize);
    else
      fetch_lines(copy, from, n_ * kSize, kRoom);
    return reinterpret_cast<Stored*>(copy);
  }
  template <class Stored>
  void put_back(Stored* data, const Stored* copy) const {
    put_lines(reinterpret_cast<char*>(data), reinterpret_cast<const char*>(copy), n_ * sizeof(Stored));
  }

 private:
  int64_t n_;
  int count_ = 0;
  alignas(64) char copies_[fusedopt::kState + fusedopt::kMaxStates][kLargestBlock * sizeof(float)];
};

}  // namespace FUSEDOPT_NAMESPACE
