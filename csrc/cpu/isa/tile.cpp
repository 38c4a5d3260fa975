// How operands of a tile come and go: the bodies of tile.h.
#include "target.h"

#include "../../write_back.h"
#include "../code_block.h"
#include "../tile.h"

namespace FUSEDOPT_NAMESPACE {

#if defined(FUSEDOPT_ISA_AVX512)
inline void put_line(char* to, const char* copy, int64_t bytes) {
  _mm512_mask_storeu_epi8(to, mask_of(bytes), _mm512_load_si512(copy));
}
#else
template <int size>
inline void copy_ends(char* to, const char* from, int64_t bytes) {
  char first[size], last[size];
  std::memcpy(first, from, size);
  std::memcpy(last, from + bytes - size, size);
  std::memcpy(to, first, size);
  std::memcpy(to + bytes - size, last, size);
}
inline void put_line(char* to, const char* copy, int64_t bytes) {
  if (bytes >= 32)
    copy_ends<32>(to, copy, bytes);
  else if (bytes >= 16)
    copy_ends<16>(to, copy, bytes);
  else if (bytes >= 8)
    copy_ends<8>(to, copy, bytes);
  else if (bytes >= 4)
    copy_ends<4>(to, copy, bytes);
  else
    copy_ends<2>(to, copy, bytes);
}
#endif

// Calls f for each line of a piece that has some of the row.
template <class F>
inline void each_line(int64_t bytes, const F& f) {
  for (int64_t at = 0; at < bytes; at += 64) f(at, bytes - at < 64 ? bytes - at : 64);
}

void fetch_lines(char* copy, const char* from, int64_t bytes, int64_t room) {
  each_line(bytes, [&](int64_t at, int64_t n) {
    if (n % 4 == 0 ? kFetchesInPlace<int32_t> : kFetchesInPlace<int16_t>) return fetch_line(copy + at, from + at, n);
    std::memset(copy + at, 0, 64);
    put_line(copy + at, from + at, n);
  });
  for (int64_t at = (bytes + 63) / 64 * 64; at < room; at += 64) std::memset(copy + at, 0, 64);
}

void put_lines(char* to, const char* copy, int64_t bytes) {
  if (bytes < 64) return put_line(to, copy, bytes);
  each_line(bytes, [&](int64_t at, int64_t n) { put_line(to + at, copy + at, n); });
}

// Brings elements into a row or back as so many bytes: what they mean is known only there.
template <bool in, class Element>
void move(Element* base, const Layout& layout, int operand, int64_t begin, int64_t n, Element* held) {
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

// Calls f with the elements one after the other: where they lie, if they do, else brought here and back.
template <class T>
template <Access access, class Stored, class F>
void TileOperand<T>::at_hand(int64_t begin, int64_t n, const F& f) const {
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

template <class T>
template <Access access, class Stored, class F>
void TileOperand<T>::each_of(int64_t begin, int64_t n, const F& f) const {
  at_hand<access, Stored>(begin, n, [&](Stored* data) {
    // What f has captured could lie where the loop stores; a copy that nobody else knows cannot.
    const F visit = f;
    // Draws count elements in words: to count in longer ones would take as long as half a draw.
    const int count = static_cast<int>(n);
#pragma GCC ivdep
    for (int i = 0; i < count; ++i) visit(data[i], i);
  });
}

// Visits elements as f(address, position).
template <class T>
template <Access access, class F>
void TileOperand<T>::each(int64_t begin, int64_t n, const F& f) const {
  with_storage(dtype_, [&](auto type) { each_of<access, decltype(type)>(begin, n, f); });
}

template <class T>
T* TileOperand<T>::load(int64_t begin, int64_t n) const {
  if (T* there = in_place(begin)) return there;
  with_storage(dtype_, [&](auto type) {
    at_hand<Access::reads, decltype(type)>(begin, n, [&](const auto* stored) { decode_all(stored, buffer_, n); });
  });
  return buffer_;
}

template <class T>
void TileOperand<T>::store(int64_t begin, int64_t n) const {
  if (!in_place(begin)) store_of(buffer_, begin, n);
}

template <class T>
void TileOperand<T>::store_of(const T* numbers, int64_t begin, int64_t n) const {
  with_storage(dtype_, [&](auto type) {
    at_hand<Access::writes, decltype(type)>(begin, n, [&](auto* stored) { encode_all(numbers, stored, n); });
  });
}

// The draws of a block of elements that are no neighbours in the whole: run by run, up to where the upper half of their
// numbers changes.
struct Scattered {
  alignas(64) uint32_t drawn[fusedopt::kCodeBlock];

  Scattered(const fusedopt::Numbering& numbering, uint64_t key, int64_t first) {
    const int64_t run = numbering.run[0];
    for (int64_t i = 0, n; i < fusedopt::kCodeBlock; i += n) {
      const int64_t number = number_of(numbering, first + i);
      n = fusedopt::kCodeBlock - i;
      if (run > 0 && run - (first + i) % run < n) n = run - (first + i) % run;
      if (const int64_t left = (int64_t{1} << 32) - (number & 0xffffffff); left < n) n = left;
      const Draws draws(key, number);
      for (int64_t k = 0; k < n; ++k) drawn[i + k] = draws(k);
    }
  }
};

// Calls f(draws, at) for each block of n elements, from number `begin` of the row on: what gives the draws of its own,
// the first of which is `at` further.
template <class F>
inline void each_of_draws(const Extras& extras, uint64_t key, int64_t begin, int64_t n, F&& f) {
  const fusedopt::Numbering& numbering = extras.numbering;
  if (!numbering.scattered) {
    for (int64_t at = 0; at < n; at += fusedopt::kCodeBlock) f(Draws(key, numbering.first + begin + at), at);
    return;
  }
  for (int64_t at = 0; at < n; at += fusedopt::kCodeBlock) {
    const Scattered scattered(numbering, key, begin + at);
    f([drawn = scattered.drawn](int64_t i) { return drawn[i]; }, at);
  }
}

template <class T>
void TileOperand<T>::store_by_chance(int64_t begin, int64_t n) const {
  if (in_place(begin)) return;
  each_of_draws(*row_.extras, stream(row_.extras->key, operand_), begin, n, [&](const auto draws, int64_t at) {
    const int64_t end = fusedopt::kCodeBlock < n - at ? fusedopt::kCodeBlock : n - at;
    each<Access::writes>(begin + at, end,
                         [in = buffer_ + at, draws](auto& x, int64_t i) { encode_by_chance(in[i], draws(i), x); });
  });
}

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
void load_codes(const Row& row, int state, int64_t begin, int64_t n, T* to) {
  each_block(row, state, begin, n, [to](auto code, const uint32_t* words, const float scale, int64_t at) {
    decode_block<decltype(code)>(words, scale, to + at);
  });
}

template <class T>
void store_codes(const Row& row, int state, int64_t begin, int64_t n, T* from) {
  const uint64_t own = stream(row.extras->key, fusedopt::kState + state);
  for (int64_t i = n; i % fusedopt::kCodeBlock != 0; ++i) from[i] = 0;
  // All scales before any codes: the divisions that a scale takes go on while the next is looked for.
  each_block(row, state, begin, n, [from](auto code, const uint32_t*, float& scale, int64_t at) {
    scale = scale_of_block<decltype(code)>(from + at);
  });
  each_block(row, state, begin, n, [&](auto code, uint32_t* words, const float scale, int64_t at) {
    using C = decltype(code);
    if (row.extras->states_by_chance >> state & 1)
      each_of_draws(*row.extras, own, begin + at, 1,
                    [&](const auto draws, int64_t) { encode_block<C>(from + at, scale, words, draws); });
    else
      encode_block<C>(from + at, scale, words, [](int) { return kNearest; });
  });
}

template <class T>
T* TileState<T>::load(int64_t begin, int64_t n) const {
  if (!coded()) return operand_.load(begin, n);
  load_codes(row_, state_, begin, n, buffer_);
  return buffer_;
}

template <class T>
void TileState<T>::store(int64_t begin, int64_t n) const {
  if (coded())
    store_codes(row_, state_, begin, n, buffer_);
  else if (row_.extras && row_.extras->states_by_chance >> state_ & 1)
    operand_.store_by_chance(begin, n);
  else
    operand_.store(begin, n);
}

// Elements [begin, begin + n), as write_back.h wants them.
template <class T>
struct TileParam<T>::Part {
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

template <class T>
T* TileParam<T>::load(int64_t begin, int64_t n) const {
  T* p = param_.load(begin, n);
  complete_param<T>(Part{*this, begin, n}, extras_.pair, p);
  return p;
}

template <class T>
void TileParam<T>::store(T* p, int64_t begin, int64_t n) const {
  write_back(Part{*this, begin, n}, how_of<T>(extras_, extras_.average != nullptr), p);
}

template class TileOperand<float>;
template class TileOperand<double>;
template class TileState<float>;
template class TileState<double>;
template class TileParam<float>;
template class TileParam<double>;

}  // namespace FUSEDOPT_NAMESPACE
