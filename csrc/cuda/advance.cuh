// The kernel that begins a step: it brings the table up to date and makes the scalars of all entries. `Rules` has what
// it is compiled for: with(number, f) calls f(R()) for one of them.
#pragma once

#include "kernels.cuh"
#include "patch.cuh"

namespace FUSEDOPT_NAMESPACE {

using fusedopt::cuda::AdvanceArguments;
using fusedopt::cuda::CommonRule;

constexpr unsigned kKindMask = (1u << fusedopt::cuda::kKindBits) - 1;

// Numbers beside each other, of which kind_of(i) says how each is given. All words are under way before the first is
// looked at.
template <int most, class Kind>
__device__ void read_numbers(const uint64_t* words, int count, Kind&& kind_of, double (&numbers)[most]) {
#pragma unroll
  for (int i = 0; i < most; ++i)
    if (i < count) numbers[i] = bit_cast<double>(words[i]);
#pragma unroll 1
  for (int i = 0; i < count; ++i)
    if (const unsigned kind = kind_of(i); kind != fusedopt::cuda::kImmediate)
      numbers[i] = read_number(reinterpret_cast<const void*>(words[i]), static_cast<Dtype>(kind - 1));
}

// A number to where it came from, if that is in device memory: the others the host advances itself.
__device__ inline void write_number(uint64_t word, unsigned kind, double number) {
  if (kind == fusedopt::cuda::kind_of(Dtype::f32)) *reinterpret_cast<float*>(word) = static_cast<float>(number);
  if (kind == fusedopt::cuda::kind_of(Dtype::f64)) *reinterpret_cast<double*>(word) = number;
}

// A group's hyper-parameters.
struct GroupNumbers {
  const uint64_t* words;
  int count;
  __device__ GroupNumbers(const TableView& table, const CommonRule& rule, uint32_t index)
      : words(table.words + table.groups + index * fusedopt::cuda::group_words(rule.hypers)), count(rule.hypers) {}

  __device__ unsigned kind(int i) const {
    return static_cast<unsigned>(words[0] >> (i * fusedopt::cuda::kKindBits)) & kKindMask;
  }
  __device__ void read(double (&hypers)[fusedopt::kMaxHypers]) const {
    read_numbers(words + 2, count, [&](int i) { return kind(i); }, hypers);
  }
  __device__ void write(int i, double hyper) const { write_number(words[2 + i], kind(i), hyper); }
};

// An entry's counters, each a number in the table or in the memory of its param's state.
struct Counters {
  uint64_t* entry;
  int count;
  uint32_t flags;
  __device__ Counters(const TableView& table, const CommonRule& rule, uint32_t index)
      : entry(table.words + table.entries + index * fusedopt::cuda::entry_words(rule.counters)),
        count(rule.counters),
        flags(static_cast<uint32_t>(entry[0] >> 32)) {}

  __device__ unsigned kind(int c) const {
    return flags >> (fusedopt::cuda::kCounterKinds + c * fusedopt::cuda::kKindBits) & kKindMask;
  }
  __device__ void read(double (&counters)[fusedopt::kMaxCounters]) const {
    read_numbers(entry + 1, count, [&](int c) { return kind(c); }, counters);
  }
  __device__ void write(const double* counters) const {
    for (int c = 0; c < count; ++c) write_number(entry[1 + c], kind(c), counters[c]);
  }
};

// Counts the step of one entry and makes its scalars.
template <class Rules>
__device__ void advance_entry(const AdvanceArguments& a, const CommonRule& rule, uint32_t index, double multiplier) {
  const Counters kept(a.table, rule, index);
  const GroupNumbers group(a.table, rule, static_cast<uint32_t>(kept.entry[0]));
  double hypers[fusedopt::kMaxHypers], counters[fusedopt::kMaxCounters], numbers[1 + fusedopt::kMaxScalars];
  group.read(hypers);
  kept.read(counters);
  numbers[0] = bit_cast<double>(group.words[1]) * multiplier;
  Rules::with(rule.number, [&](auto r) {
    using R = decltype(r);
    const auto made = R::prepare(Shape<R>::hypers(hypers), counters, (kept.flags & fusedopt::cuda::kFirst) != 0);
    memcpy(numbers + 1, &made, sizeof(made));
  });
  kept.write(counters);
  uint64_t* out = a.table.words + a.table.scalars + index * fusedopt::cuda::scalar_words(rule.scalars);
#pragma unroll 1
  for (int i = 0; i <= rule.scalars; ++i) {
    if (kept.flags & fusedopt::cuda::kWide)
      reinterpret_cast<double*>(out)[i] = numbers[i];
    else
      reinterpret_cast<float*>(out)[i] = static_cast<float>(numbers[i]);
  }
}

// Brings the table up to date and advances every entry. One block, so that a barrier stands between the two.
template <class Rules, int capacity>
__global__ void __launch_bounds__(fusedopt::cuda::kAdvanceThreads)
    advance(const __grid_constant__ AdvanceArguments a, const __grid_constant__ CommonRule rule,
            const __grid_constant__ Patch<capacity> patch) {
  apply(a.table.words, patch);
  __syncthreads();
  const bool skip = a.found_inf.at && read_number(a.found_inf.at, a.found_inf.dtype) != 0;
  if (a.skipped && threadIdx.x == 0) *a.skipped = skip;
  if (skip) return;
  const double multiplier =
      a.grad_scale.at ? a.multiplier / read_number(a.grad_scale.at, a.grad_scale.dtype) : a.multiplier;
  for (uint32_t i = threadIdx.x; i < a.entries; i += blockDim.x) advance_entry<Rules>(a, rule, i, multiplier);
}

}  // namespace FUSEDOPT_NAMESPACE
