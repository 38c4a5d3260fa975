// Operands of a tile: how elements of any storage and any strides come into L1 and go back. Included once per
// instruction set.
#pragma once

#include "../precision.h"
#include "../step.h"
#include "../write_back.h"
#include "half.h"

namespace FUSEDOPT_NAMESPACE {

using fusedopt::Extras;
using fusedopt::Layout;
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

// What works on a whole tile is compiled once, and not into the kernels of every rule.
#define FUSEDOPT_ONCE __attribute__((noinline))

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

// Brings elements into a row or back as so many bytes: what they mean is known only there.
template <bool in, class Element>
FUSEDOPT_ONCE void move(Element* base, const Layout& layout, int operand, int64_t begin, int64_t n, Element* held) {
  walk(base, layout, operand, begin, n, [held](Element& x, int64_t i) { in ? void(held[i] = x) : void(x = held[i]); });
}

template <int bytes>
struct ElementOf;
template <>
struct ElementOf<2> {
  using type = Bytes<uint16_t>;
};
template <>
struct ElementOf<4> {
  using type = Bytes<uint32_t>;
};
template <>
struct ElementOf<8> {
  using type = Bytes<uint64_t>;
};

// One operand of a tile. Where it lies dense in the type of the arithmetic it is its own buffer.
template <class T>
class TileOperand {
 public:
  TileOperand(const Row& row, int operand, const void* data, fusedopt::Dtype dtype, T* buffer)
      : row_(row), operand_(operand), data_(const_cast<void*>(data)), dtype_(dtype), buffer_(buffer) {}

  // The tile's numbers, for update() to change.
  FUSEDOPT_ONCE T* load(int64_t begin, int64_t n) const {
    if (T* there = in_place(begin)) return there;
    with_storage(dtype_, [&](auto type) {
      at_hand<Access::reads, decltype(type)>(begin, n, [&](const auto* stored) { decode_all(stored, buffer_, n); });
    });
    return buffer_;
  }
  FUSEDOPT_ONCE void store(int64_t begin, int64_t n) const {
    if (!in_place(begin)) store_of(buffer_, begin, n);
  }
  // Numbers that are another operand's, too.
  FUSEDOPT_ONCE void store_of(const T* numbers, int64_t begin, int64_t n) const {
    with_storage(dtype_, [&](auto type) {
      at_hand<Access::writes, decltype(type)>(begin, n, [&](auto* stored) { encode_all(numbers, stored, n); });
    });
  }
  FUSEDOPT_ONCE void store_by_chance(int64_t begin, int64_t n) const {
    if (in_place(begin)) return;
    const uint64_t own = stream(row_.extras->key, operand_);
    for (int64_t at = 0; at < n; at += fusedopt::kCodeBlock) {
      const int64_t end = fusedopt::kCodeBlock < n - at ? fusedopt::kCodeBlock : n - at;
      each<Access::writes>(begin + at, end, [in = buffer_ + at, draws = Draws(own, begin + at)](auto& x, int64_t i) {
        encode_by_chance(in[i], draws(i), x);
      });
    }
  }

  T* in_place(int64_t begin) const {
    return !row_.layout && dtype_ == dtype_of(T()) ? static_cast<T*>(data_) + begin : nullptr;
  }

  // Visits elements as f(address, position).
  template <Access access, class F>
  void each(int64_t begin, int64_t n, const F& f) const {
    with_storage(dtype_, [&](auto type) { each_of<access, decltype(type)>(begin, n, f); });
  }
  template <Access access, class Stored, class F>
  void each_of(int64_t begin, int64_t n, const F& f) const {
    at_hand<access, Stored>(begin, n, [&](Stored* data) {
      // What f has captured could lie where the loop stores; a copy that nobody else knows cannot.
      const F visit = f;
#pragma GCC ivdep
      for (int64_t i = 0; i < n; ++i) visit(data[i], i);
    });
  }

 private:
  // Calls f with the elements one after the other: where they lie, if they do, else brought here and back.
  template <Access access, class Stored, class F>
  void at_hand(int64_t begin, int64_t n, const F& f) const {
    using Element = typename ElementOf<sizeof(Stored)>::type;
    alignas(64) Stored held[kTile];
    const bool away = row_.layout;
    Stored* data = away ? held : static_cast<Stored*>(data_) + begin;
    Element* base = static_cast<Element*>(data_);
    Element* there = reinterpret_cast<Element*>(held);
    if (away && access != Access::writes) move<true>(base, *row_.layout, operand_, begin, n, there);
    f(data);
    if (away && access != Access::reads) move<false>(base, *row_.layout, operand_, begin, n, there);
  }

  const Row& row_;
  int operand_;
  void* data_;
  fusedopt::Dtype dtype_;
  T* buffer_;
};

// Calls f(code, words, scale, at) for each block of codes of a tile: `at` is its first element in the tile. What lies
// beyond the row's end are zeros, so all blocks are whole; slices that are looked up are whole blocks, too.
template <class F>
inline void each_block(const Row& row, int state, int64_t begin, int64_t n, F&& f) {
  with_code(row.state_dtype[state], [&](auto code) {
    for (int64_t at = 0; at < n; at += fusedopt::kCodeBlock) {
      int64_t element = begin + at;
      if (row.layout && row.layout->index) {
        const int64_t width = row.layout->size[1];
        element = slice_start(*row.layout, element / width) + element % width;
      }
      const int64_t block = element / fusedopt::kCodeBlock;
      f(code, static_cast<uint32_t*>(row.state[state]) + block * code.kWords, row.extras->scales[state][block], at);
    }
  });
}

// A tile of a state in codes.
template <class T>
FUSEDOPT_ONCE inline void load_codes(const Row& row, int state, int64_t begin, int64_t n, T* to) {
  each_block(row, state, begin, n, [to](auto code, const uint32_t* words, const float scale, int64_t at) {
    using C = decltype(code);
    each_place<C>([=](auto place) {
      T* out = to + at + place * C::kWords;
#pragma GCC ivdep
      for (int w = 0; w < C::kWords; ++w) out[w] = static_cast<T>(decode<C, place>(words[w], scale));
    });
  });
}

template <class T>
FUSEDOPT_ONCE inline void store_codes(const Row& row, int state, int64_t begin, int64_t n, T* from) {
  const uint64_t own = stream(row.extras->key, fusedopt::kState + state);
  for (int64_t i = n; i % fusedopt::kCodeBlock != 0; ++i) from[i] = 0;
  // All scales before any codes: the divisions that a scale takes go on while the next is looked for.
  each_block(row, state, begin, n, [from](auto code, const uint32_t*, float& scale, int64_t at) {
    const T* in = from + at;
    uint32_t largest = 0;
#pragma GCC unroll 4
    for (int i = 0; i < fusedopt::kCodeBlock; ++i) {
      const uint32_t magnitude = magnitude_of(static_cast<float>(in[i]));
      largest = magnitude > largest ? magnitude : largest;
    }
    scale = scale_of<decltype(code)>(largest);
  });
  each_block(row, state, begin, n, [&](auto code, uint32_t* words, const float scale, int64_t at) {
    using C = decltype(code);
    const auto encode = [words, in = from + at, coder = Coder<C>(scale)](const auto draw) {
#pragma GCC ivdep
      for (int w = 0; w < C::kWords; ++w) {
        uint32_t word = 0;
        each_place<C>([&](auto place) {
          const int e = w + place * C::kWords;
          word |= coder.template encode<place>(static_cast<float>(in[e]), draw(e));
        });
        words[w] = word;
      }
    };
    if (row.extras->states_by_chance >> state & 1)
      encode(Draws(own, begin + at));
    else
      encode([](int) { return kNearest; });
  });
}

// A state, in codes or not.
template <class T>
class TileState {
 public:
  TileState(const Row& row, int state, T* buffer)
      : row_(row),
        state_(state),
        operand_(row, fusedopt::kState + state, row.state[state], row.state_dtype[state], buffer),
        buffer_(buffer) {}

  FUSEDOPT_ONCE T* load(int64_t begin, int64_t n) const {
    if (!coded()) return operand_.load(begin, n);
    load_codes(row_, state_, begin, n, buffer_);
    return buffer_;
  }
  FUSEDOPT_ONCE void store(int64_t begin, int64_t n) const {
    if (coded())
      store_codes(row_, state_, begin, n, buffer_);
    else if (row_.extras && row_.extras->states_by_chance >> state_ & 1)
      operand_.store_by_chance(begin, n);
    else
      operand_.store(begin, n);
  }

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

  FUSEDOPT_ONCE T* load(int64_t begin, int64_t n) const {
    T* p = param_.load(begin, n);
    complete_param<T>(Part{*this, begin, n}, extras_.pair, p);
    return p;
  }

  FUSEDOPT_ONCE void store(T* p, int64_t begin, int64_t n) const {
    const WriteBack<T> how = {extras_.pair,        extras_.stochastic,  extras_.average != nullptr,
                              extras_.new_average, extras_.clears_grad, static_cast<T>(extras_.average_weight)};
    write_back(Part{*this, begin, n}, how, p);
  }

 private:
  // Elements [begin, begin + n), as write_back.h wants them.
  struct Part {
    const TileParam& of;
    int64_t begin, n;

    template <Access access, class F>
    void each(Operand operand, const F& f) const {
      of.operand(operand).template each<access>(begin, n, f);
    }
    template <Access access, class Stored, class F>
    void each_of(Operand operand, const F& f) const {
      of.operand(operand).template each_of<access, Stored>(begin, n, f);
    }
    T* reload(T*) const { return of.param_.load(begin, n); }
    void store(T*) const { of.param_.store(begin, n); }
    void store_as(Operand operand, const T* p) const { of.operand(operand).store_of(p, begin, n); }
    void store_by_chance(T*) const { of.param_.store_by_chance(begin, n); }
  };
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

#undef FUSEDOPT_ONCE

}  // namespace FUSEDOPT_NAMESPACE
