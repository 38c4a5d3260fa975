// Operands of a tile: how elements of any storage and any strides come into L1 and go back. Included once per
// instruction set. What works on a whole tile is compiled once for each, in isa/tile.cpp, and not with every rule.
#pragma once

#include "../precision.h"
#include "../step.h"
#include "half.h"
#include "row_end.h"

namespace FUSEDOPT_NAMESPACE {

using fusedopt::Extras;
using fusedopt::Layout;
using fusedopt::Operand;
using fusedopt::Row;

// Elements decoded at a time where storage and arithmetic differ: four float operands of a tile are 16 KiB, half of L1.
// With half as many, 8-bit states took a tenth longer: memory waits for the arithmetic at every tile's end.
constexpr int64_t kTile = 1024;
static_assert(kTile % fusedopt::kAccumulators == 0 && fusedopt::kChunk % kTile == 0);
static_assert(kTile % fusedopt::kCodeBlock == 0);

// Where a slice that the gradient holds begins in the other operands.
inline int64_t slice_start(const Layout& layout, int64_t slice) { return layout.index[slice] * layout.size[1]; }

// Calls f(slice, at, done, n) for the part of each slice that elements [begin, end) have: n elements, from element `at`
// of the slice on, after `done` others.
template <class F>
inline void each_slice(const Layout& layout, int64_t begin, int64_t end, F&& f) {
  const int64_t width = layout.size[1];
  int64_t slice = begin / width, at = begin % width;
  for (int64_t done = 0; begin + done < end; ++slice, at = 0) {
    const int64_t left = end - begin - done, n = width - at < left ? width - at : left;
    f(slice, at, done, n);
    done += n;
  }
}

// Visits elements [begin, begin + n) of an operand with a layout as f(address, position), row by row of its innermost
// dimension.
template <class Element, class F>
inline void walk(Element* base, const Layout& layout, int operand, int64_t begin, int64_t n, F&& f) {
  if (layout.index && operand != fusedopt::kGrad) {
    return each_slice(layout, begin, begin + n, [&](int64_t slice, int64_t at, int64_t done, int64_t count) {
      Element* from = base + slice_start(layout, slice) + at;
      for (int64_t i = 0; i < count; ++i) f(from[i], done + i);
    });
  }
  const int last = layout.dims - 1;
  const int64_t* stride = layout.stride[operand];
  int64_t index[fusedopt::kMaxDims], offset = 0;
  for (int d = last; d >= 0; --d) {
    index[d] = begin % layout.size[d];
    begin /= layout.size[d];
    offset += index[d] * stride[d];
  }
  for (int64_t done = 0; done < n;) {
    const int64_t run = layout.size[last] - index[last] < n - done ? layout.size[last] - index[last] : n - done;
    for (int64_t i = 0; i < run; ++i) f(base[offset + i * stride[last]], done + i);
    done += run;
    offset += (layout.size[last] - index[last]) * stride[last];
    index[last] = layout.size[last];
    for (int d = last; d > 0 && index[d] == layout.size[d]; --d) {
      offset += stride[d - 1] - layout.size[d] * stride[d];
      index[d] = 0;
      ++index[d - 1];
    }
  }
}

// Memory that is asked for while a rule works on what lies before it.
class Streams {
 public:
  // `end`: of the elements.
  Streams(int64_t distance, int64_t end) : distance_(distance), end_(end) {}
  void add(const void* data, fusedopt::Dtype dtype) {
    streams_[count_++] = {static_cast<const char*>(data), fusedopt::bits_of(dtype)};
  }
  void move_to(int64_t distance) { distance_ = distance; }
  // The `n` elements that lie the distance ahead of element i.
  void prefetch(int64_t i, int64_t n) const {
    const int64_t at = i + distance_;
    if (at >= end_) return;
    for (int k = 0; k < count_; ++k) {
      const char* from = streams_[k].data + at * streams_[k].bits / 8;
      for (int64_t byte = 0; byte < n * streams_[k].bits / 8; byte += 64) __builtin_prefetch(from + byte, 1);
    }
  }

 private:
  struct Stream {
    const char* data;
    int64_t bits;  // of an element
  };
  int64_t distance_, end_;
  int count_ = 0;
  Stream streams_[fusedopt::kOperands];
};

// What a row's tiles come from and go to, beside its states. The hardware loses a stream at each page, so the next tile
// is asked for while a rule works on one: it spares its divider's time, where loads and stores have nothing to do.
inline Streams tile_streams(const Row& row) {
  Streams streams(0, row.layout ? 0 : row.numel);
  streams.add(row.param, row.param_dtype);
  streams.add(row.grad, row.grad_dtype);
  if (!row.extras) return streams;
  const bool halves = row.extras->pair == fusedopt::Pair::remainder;
  if (row.extras->partner) streams.add(row.extras->partner, halves ? fusedopt::Dtype::bf16 : row.extras->partner_dtype);
  if (row.extras->average) streams.add(row.extras->average, row.extras->average_dtype);
  return streams;
}

enum class Access;  // write_back.h

#pragma GCC visibility push(default)

// One operand of a tile. Where it lies dense in the type of the arithmetic it is its own buffer.
template <class T>
class TileOperand {
 public:
  TileOperand(const Row& row, int operand, const void* data, fusedopt::Dtype dtype, T* buffer)
      : row_(row), operand_(operand), data_(const_cast<void*>(data)), dtype_(dtype), buffer_(buffer) {}

  // The tile's numbers, for update() to change.
  T* load(int64_t begin, int64_t n) const;
  void store(int64_t begin, int64_t n) const;
  // Numbers that are another operand's, too.
  void store_of(const T* numbers, int64_t begin, int64_t n) const;
  void store_by_chance(int64_t begin, int64_t n) const;

  // In isa/tile.cpp alone: calls f for elements that are read, written or both.
  template <Access access, class F>
  void each(int64_t begin, int64_t n, const F& f) const;
  template <Access access, class Stored, class F>
  void each_of(int64_t begin, int64_t n, const F& f) const;

 private:
  T* in_place(int64_t begin) const {
    return !row_.layout && dtype_ == dtype_of(T()) ? static_cast<T*>(data_) + begin : nullptr;
  }
  template <Access access, class Stored, class F>
  void at_hand(int64_t begin, int64_t n, const F& f) const;

  const Row& row_;
  int operand_;
  void* data_;
  fusedopt::Dtype dtype_;
  T* buffer_;
};

// A state, in codes or not.
template <class T>
class TileState {
 public:
  TileState(const Row& row, int state, T* buffer)
      : row_(row),
        state_(state),
        operand_(row, fusedopt::kState + state, row.state[state], row.state_dtype[state], buffer),
        buffer_(buffer) {}

  T* load(int64_t begin, int64_t n) const;
  void store(int64_t begin, int64_t n) const;

 private:
  bool coded() const { return is_coded(row_.state_dtype[state_]); }

  const Row& row_;
  int state_;
  TileOperand<T> operand_;
  T* buffer_;
};

// The param of a row with all that hangs on it.
template <class T>
class TileParam {
 public:
  TileParam(const Row& row, T* buffer)
      : extras_(row.extras ? *row.extras : kNone),
        param_(row, fusedopt::kParam, row.param, row.param_dtype, buffer),
        partner_(row, fusedopt::kPartner, extras_.partner, extras_.partner_dtype, buffer),
        average_(row, fusedopt::kAverage, extras_.average, extras_.average_dtype, buffer),
        grad_(row, fusedopt::kGrad, row.grad, row.grad_dtype, buffer) {}

  T* load(int64_t begin, int64_t n) const;
  void store(T* p, int64_t begin, int64_t n) const;

 private:
  struct Part;
  const TileOperand<T>& operand(Operand operand) const {
    return operand == fusedopt::kParam     ? param_
           : operand == fusedopt::kPartner ? partner_
           : operand == fusedopt::kAverage ? average_
                                           : grad_;
  }

  static constexpr Extras kNone = {};
  const Extras& extras_;
  TileOperand<T> param_, partner_, average_, grad_;
};

#pragma GCC visibility pop

}  // namespace FUSEDOPT_NAMESPACE
