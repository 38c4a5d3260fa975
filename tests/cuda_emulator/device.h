// What kernels call: barriers, warp collectives, cached loads and stores, atomics, bit and rounding intrinsics. Part of
// cuda_runtime.h. Whatever hardware would refuse or leave undefined (a misaligned access, a collective whose lanes do
// not meet) fails the launch, with a sentence that names the line.
#pragma once

#include <type_traits>

namespace cuda_emulator {

// The line of a kernel that called an intrinsic: as a default argument, it is the caller's.
struct Place {
  const char* file;
  int line;

  constexpr Place(const char* file = __builtin_FILE(), int line = __builtin_LINE()) : file(file), line(line) {}
};

namespace detail {

enum class Meeting : unsigned char { syncthreads, syncwarp, ballot, any, all, shfl, shfl_down, shfl_xor };

// Waits for the lanes of `mask` (syncthreads: for all threads of the block that have not exited), then gives the value
// that lane `source` brought; for votes, the lanes that brought other than zero.
uint64_t meet(Meeting kind, unsigned mask, uint64_t value, unsigned source, Place place);

// The running thread's lane in its warp.
unsigned lane();

[[noreturn]] void misaligned(const void* address, size_t needed, Place place);

// Hardware moves 1, 2, 4, 8 or 16 bytes at a time, each at a multiple of its size; anything else goes member by member.
template <class T>
void check_alignment(const T* address, Place place) {
  static_assert(std::is_trivially_copyable_v<T>);
  constexpr size_t size = sizeof(T);
  constexpr bool whole = size <= 16 && (size & (size - 1)) == 0;
  constexpr size_t needed = whole ? size : alignof(T);
  if (reinterpret_cast<uintptr_t>(address) % needed != 0) misaligned(address, needed, place);
}

// Bytewise, because the memory may hold another type than T.
template <class T>
T load(const T* address, Place place) {
  check_alignment(address, place);
  T value;
  std::memcpy(&value, address, sizeof(T));
  return value;
}

template <class T>
void store(T* address, const T& value, Place place) {
  check_alignment(address, place);
  std::memcpy(address, &value, sizeof(T));
}

template <class To, class From>
To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

template <class T>
T shuffle(Meeting kind, unsigned mask, T value, unsigned source, Place place) {
  static_assert(std::is_trivially_copyable_v<T> && (sizeof(T) == 4 || sizeof(T) == 8));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = meet(kind, mask, bits, source, place);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

// Threads of a block may be OS threads, so these are atomic; relaxed, as CUDA's order nothing either.
template <class T>
T add_integer(T* address, T value, Place place) {
  check_alignment(address, place);
  return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
}

template <class Real, class Bits>
Real add_real(Real* address, Real value, Place place) {
  check_alignment(address, place);
  Bits* const memory = reinterpret_cast<Bits*>(address);
  Bits seen = __atomic_load_n(memory, __ATOMIC_RELAXED);
  while (!__atomic_compare_exchange_n(memory, &seen, bits_as<Bits>(bits_as<Real>(seen) + value), true, __ATOMIC_RELAXED,
                                      __ATOMIC_RELAXED)) {
  }
  return bits_as<Real>(seen);
}

// Integers of a size that may alias the float and the double.
using Word __attribute__((may_alias)) = uint32_t;
using DoubleWord __attribute__((may_alias)) = uint64_t;

}  // namespace detail
}  // namespace cuda_emulator

inline void __syncthreads(cuda_emulator::Place place = {}) {
  using namespace cuda_emulator::detail;
  meet(Meeting::syncthreads, 0, 0, 0, place);
}

inline void __syncwarp(unsigned mask = ~0u, cuda_emulator::Place place = {}) {
  using namespace cuda_emulator::detail;
  meet(Meeting::syncwarp, mask, 0, lane(), place);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, cuda_emulator::Place place = {}) {
  using namespace cuda_emulator::detail;
  return static_cast<unsigned>(meet(Meeting::ballot, mask, predicate != 0, lane(), place));
}

inline int __any_sync(unsigned mask, int predicate, cuda_emulator::Place place = {}) {
  using namespace cuda_emulator::detail;
  return meet(Meeting::any, mask, predicate != 0, lane(), place) != 0;
}

inline int __all_sync(unsigned mask, int predicate, cuda_emulator::Place place = {}) {
  using namespace cuda_emulator::detail;
  return meet(Meeting::all, mask, predicate != 0, lane(), place) == mask;
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = warpSize, cuda_emulator::Place place = {}) {
  using namespace cuda_emulator::detail;
  const unsigned within = width - 1;
  return shuffle(Meeting::shfl, mask, value, (lane() & ~within) | (source & within), place);
}

// A lane whose source would lie beyond its segment of `width` lanes keeps its own value.
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize, cuda_emulator::Place place = {}) {
  using namespace cuda_emulator::detail;
  const unsigned self = lane(), within = width - 1;
  const bool inside = delta <= within && (self & within) + delta <= within;
  return shuffle(Meeting::shfl_down, mask, value, inside ? self + delta : self, place);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = warpSize, cuda_emulator::Place place = {}) {
  using namespace cuda_emulator::detail;
  const unsigned self = lane(), within = width - 1;
  const unsigned source = self ^ static_cast<unsigned>(lanes);
  return shuffle(Meeting::shfl_xor, mask, value, source <= (self | within) ? source : self, place);
}

// Blocks follow each other in full order, and within a block only barriers order: nothing is left for it to do.
inline void __threadfence() {}

// Kernels of a stream run one after another.
inline void cudaGridDependencySynchronize() {}
inline void cudaTriggerProgrammaticLaunchCompletion() {}

template <class T>
T __ldg(const T* address, cuda_emulator::Place place = {}) {
  return cuda_emulator::detail::load(address, place);
}
template <class T>
T __ldca(const T* address, cuda_emulator::Place place = {}) {
  return cuda_emulator::detail::load(address, place);
}
template <class T>
T __ldcg(const T* address, cuda_emulator::Place place = {}) {
  return cuda_emulator::detail::load(address, place);
}
template <class T>
T __ldcs(const T* address, cuda_emulator::Place place = {}) {
  return cuda_emulator::detail::load(address, place);
}
template <class T>
T __ldcv(const T* address, cuda_emulator::Place place = {}) {
  return cuda_emulator::detail::load(address, place);
}

// The value's type follows the address alone, so that 0 stores into an unsigned.
template <class T>
void __stwb(T* address, const std::common_type_t<T>& value, cuda_emulator::Place place = {}) {
  cuda_emulator::detail::store(address, value, place);
}
template <class T>
void __stcg(T* address, const std::common_type_t<T>& value, cuda_emulator::Place place = {}) {
  cuda_emulator::detail::store(address, value, place);
}
template <class T>
void __stcs(T* address, const std::common_type_t<T>& value, cuda_emulator::Place place = {}) {
  cuda_emulator::detail::store(address, value, place);
}
template <class T>
void __stwt(T* address, const std::common_type_t<T>& value, cuda_emulator::Place place = {}) {
  cuda_emulator::detail::store(address, value, place);
}

inline int atomicAdd(int* address, int value, cuda_emulator::Place place = {}) {
  return cuda_emulator::detail::add_integer(address, value, place);
}
inline unsigned atomicAdd(unsigned* address, unsigned value, cuda_emulator::Place place = {}) {
  return cuda_emulator::detail::add_integer(address, value, place);
}
inline unsigned long long atomicAdd(unsigned long long* address, unsigned long long value,
                                    cuda_emulator::Place place = {}) {
  return cuda_emulator::detail::add_integer(address, value, place);
}
inline float atomicAdd(float* address, float value, cuda_emulator::Place place = {}) {
  return cuda_emulator::detail::add_real<float, cuda_emulator::detail::Word>(address, value, place);
}
inline double atomicAdd(double* address, double value, cuda_emulator::Place place = {}) {
  return cuda_emulator::detail::add_real<double, cuda_emulator::detail::DoubleWord>(address, value, place);
}

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }

inline unsigned __float_as_uint(float x) { return cuda_emulator::detail::bits_as<unsigned>(x); }
inline int __float_as_int(float x) { return cuda_emulator::detail::bits_as<int>(x); }
inline float __uint_as_float(unsigned x) { return cuda_emulator::detail::bits_as<float>(x); }
inline float __int_as_float(int x) { return cuda_emulator::detail::bits_as<float>(x); }
inline long long __double_as_longlong(double x) { return cuda_emulator::detail::bits_as<long long>(x); }
inline double __longlong_as_double(long long x) { return cuda_emulator::detail::bits_as<double>(x); }

// Rounded to nearest and never contracted; the build's -ffp-contract=off keeps the second promise.
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __dsqrt_rn(double a) { return std::sqrt(a); }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }

// As far off as hardware's may be, now to the one side and now to the other: what is made of them has to be right. In
// the one case where it needs the nearest float (csrc/cuda/guarded.cuh) it has that.
inline uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}
inline float of_bits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}
inline float one_of_both(double exact, uint32_t seed) {
  const float nearest = static_cast<float>(exact);
  if (!std::isnormal(nearest) || !(seed * 0x9e3779b9u >> 31)) return nearest;
  return std::nextafterf(nearest, exact > nearest ? HUGE_VALF : 0.0f);
}
inline float approximate_inverse(float x) {
  if (std::fpclassify(x) == FP_SUBNORMAL) x = std::copysign(0.0f, x);
  const float inverse = (bits_of(x) & 0x7fffff) == 0x7fffff ? 1 / x : one_of_both(1 / std::fabs(double{x}), bits_of(x));
  return std::copysign(std::fabs(inverse) < 0x1p-126f ? 0.0f : inverse, x);
}
inline float approximate_inverse_root(float x) {
  if (std::fpclassify(x) == FP_SUBNORMAL) x = std::copysign(0.0f, x);
  return one_of_both(1 / std::sqrt(double{x}), bits_of(x));
}

inline int min(int a, int b) { return b < a ? b : a; }
inline int max(int a, int b) { return a < b ? b : a; }
inline unsigned min(unsigned a, unsigned b) { return b < a ? b : a; }
inline unsigned max(unsigned a, unsigned b) { return a < b ? b : a; }
inline long min(long a, long b) { return b < a ? b : a; }
inline long max(long a, long b) { return a < b ? b : a; }
inline unsigned long min(unsigned long a, unsigned long b) { return b < a ? b : a; }
inline unsigned long max(unsigned long a, unsigned long b) { return a < b ? b : a; }
inline long long min(long long a, long long b) { return b < a ? b : a; }
inline long long max(long long a, long long b) { return a < b ? b : a; }
inline unsigned long long min(unsigned long long a, unsigned long long b) { return b < a ? b : a; }
inline unsigned long long max(unsigned long long a, unsigned long long b) { return a < b ? b : a; }
inline float min(float a, float b) { return std::fmin(a, b); }
inline float max(float a, float b) { return std::fmax(a, b); }
inline double min(double a, double b) { return std::fmin(a, b); }
inline double max(double a, double b) { return std::fmax(a, b); }
