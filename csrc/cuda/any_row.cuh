// Rows of any rule, any mix, any strides and with extras, as the table has them, and what is done to one of their
// elements.
#pragma once

#include "../write_back.h"
#include "draws.cuh"
#include "kernels.cuh"

namespace FUSEDOPT_NAMESPACE {

using fusedopt::cuda::CommonRule;
using fusedopt::cuda::TableExtras;
using AnyChunk = ChunkOf<fusedopt::kMaxStates>;

// One operand of a row in device memory.
struct AnyOperand {
  char* data;
  const uint64_t* layout;  // null: dense
  Dtype dtype;
  uint8_t place, places;  // in the layout

  // Where element e of the row lies.
  __device__ int64_t offset(int64_t e) const { return layout ? walk(layout, place, places, e) : e; }

 private:
  // A division of 64 bits is a hundred instructions, and ptxas copies what a kernel calls into each kernel.
  __device__ static __noinline__ int64_t walk(const uint64_t* layout, int place, int places, int64_t e) {
    int64_t offset = 0;
#pragma unroll 1
    for (int d = static_cast<int>(layout[0]) - 1; d >= 0; --d) {
      const uint64_t* dim = layout + 2 + d * (1 + places);
      const int64_t size = static_cast<int64_t>(dim[0]), rest = e / size, index = d == 0 ? e : e - rest * size;
      e = rest;
      const bool looked_up = d == 0 && layout[1] != 0 && place != fusedopt::kGrad;
      const int64_t slice = looked_up ? reinterpret_cast<const int64_t*>(layout[1])[index] : index;
      offset += slice * static_cast<int64_t>(dim[1 + place]);
    }
    return offset;
  }
};

// A row of the table.
struct AnyRow {
  const CommonRule& rule;
  const TableRow<fusedopt::kMaxStates>* row;
  const TableExtras<fusedopt::kMaxStates>* extras;  // null: none
  const uint64_t* layout;                           // null: dense
  uint64_t key;                                     // of its draws

  __device__ AnyRow(const UpdateArguments& a, const CommonRule& rule, const TableRow<fusedopt::kMaxStates>* row,
                    uint32_t slot)
      : rule(rule),
        row(row),
        extras(extras_of(a, rule, row)),
        layout(row->layout ? a.table.words + row->layout : nullptr),
        key(stream(a.key, a.first_slot + slot)) {}

  __device__ AnyOperand operand(Operand which) const {
    switch (which) {
      case fusedopt::kParam:
        return at(row->param, row->dtypes[0], 0);
      case fusedopt::kGrad:
        return at(const_cast<void*>(row->grad), row->dtypes[1], 1);
      case fusedopt::kPartner:
        return at(extras ? extras->partner : nullptr, extras ? extras->partner_dtype : Dtype::f32, 2 + rule.states);
      default:
        return at(extras ? extras->average : nullptr, extras ? extras->average_dtype : Dtype::f32, 3 + rule.states);
    }
  }
  __device__ AnyOperand state(int k) const { return at(row->state[k], row->dtypes[2 + k], 2 + k); }

  __device__ Pair pair() const { return extras ? extras->pair : Pair::none; }
  __device__ bool reads_partner() const { return pair() != Pair::none && pair() != Pair::copy; }
  __device__ bool has(uint8_t flag) const { return extras && (extras->flags & flag) != 0; }
  __device__ bool keeps(int k) const { return (rule.kept >> k & 1) != 0; }
  __device__ bool coded(int k) const { return extras && (extras->coded >> k & 1); }
  __device__ bool by_chance(int k) const { return extras && (extras->by_chance >> k & 1); }
  __device__ AnyDraws draws_of(int operand) const {
    return {stream(key, operand), has(fusedopt::cuda::kPart) ? &extras->numbering : nullptr};
  }

  template <class T>
  __device__ WriteBack<T> how() const {
    return {pair(),
            has(fusedopt::cuda::kStochastic),
            extras && extras->average,
            has(fusedopt::cuda::kNewAverage),
            has(fusedopt::cuda::kClearsGrad),
            static_cast<T>(extras ? extras->average_weight : 0)};
  }

 private:
  __device__ static const TableExtras<fusedopt::kMaxStates>* extras_of(const UpdateArguments& a, const CommonRule& rule,
                                                                       const TableRow<fusedopt::kMaxStates>* row) {
    const uint64_t word = reinterpret_cast<const uint64_t*>(row)[fusedopt::cuda::extras_word(rule.states)];
    return word ? reinterpret_cast<const TableExtras<fusedopt::kMaxStates>*>(a.table.words + word) : nullptr;
  }
  __device__ AnyOperand at(void* data, Dtype dtype, int place) const {
    return {static_cast<char*>(data), layout, dtype, static_cast<uint8_t>(place),
            static_cast<uint8_t>(fusedopt::cuda::layout_operands(rule.states))};
  }
};

template <class T>
__device__ __noinline__ T read_one(const AnyOperand operand, int64_t e) {
  T x = 0;
  const int64_t at = operand.offset(e);
  with_storage(operand.dtype, [&](auto type) {
    x = static_cast<T>(decode(reinterpret_cast<const decltype(type)*>(operand.data)[at]));
  });
  return x;
}
template <class T>
__device__ __noinline__ void write_one(const AnyOperand operand, int64_t e, T x, bool by_chance, const AnyDraws draws) {
  const int64_t at = operand.offset(e);
  with_storage(operand.dtype, [&](auto type) {
    auto& stored = reinterpret_cast<decltype(type)*>(operand.data)[at];
    by_chance ? encode_by_chance(x, draws(e), stored) : encode(x, stored);
  });
}

// One element of a row, as write_back.h wants it.
template <class T>
struct AnyElement {
  const AnyRow& row;
  int64_t e;

  template <Access access, class F>
  __device__ void each(Operand which, F&& f) const {
    const AnyOperand operand = row.operand(which);
    const int64_t at = operand.offset(e);
    with_storage(operand.dtype, [&](auto type) { f(reinterpret_cast<decltype(type)*>(operand.data)[at], 0); });
  }
  template <Access access, class Stored, class F>
  __device__ void each_of(Operand which, F&& f) const {
    const AnyOperand operand = row.operand(which);
    f(reinterpret_cast<Stored*>(operand.data)[operand.offset(e)], 0);
  }
  __device__ T* reload(T* p) const {
    *p = read_one<T>(row.operand(fusedopt::kParam), e);
    return p;
  }
  __device__ void store(const T* p) const { store_as(fusedopt::kParam, p); }
  __device__ void store_as(Operand which, const T* p) const { write_one<T>(row.operand(which), e, *p, false, {}); }
  __device__ void store_by_chance(const T* p) const {
    write_one<T>(row.operand(fusedopt::kParam), e, *p, true, row.draws_of(fusedopt::kParam));
  }
};

template <class T>
__device__ __noinline__ T load_one(const AnyRow row, int64_t e) {
  T p = read_one<T>(row.operand(fusedopt::kParam), e);
  complete_param<T>(AnyElement<T>{row, e}, row.pair(), &p);
  return p;
}
template <class T>
__device__ __noinline__ void store_one(const AnyRow row, int64_t e, T p) {
  write_back(AnyElement<T>{row, e}, row.how<T>(), &p);
}

}  // namespace FUSEDOPT_NAMESPACE
