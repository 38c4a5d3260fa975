// The roots and quotients of csrc/cuda/guarded.cuh against the processor's own, for every approximation that a GPU may
// begin with. Prints how many were tried of each kind and how many were not the same.
#include <cuda_runtime.h>

#include <cinttypes>
#include <cmath>
#include <cstdio>
#include <random>

#include "csrc/cuda/guarded.cuh"

namespace {

using namespace fusedopt;

struct Tally {
  const char* kind;
  int64_t tried = 0, wrong = 0;

  explicit Tally(const char* kind) : kind(kind) {}
  ~Tally() { std::printf("%s %" PRId64 " %" PRId64 "\n", kind, tried, wrong); }
  void add(float actual, float expected) {
    ++tried;
    wrong += bit_cast<uint32_t>(actual) != bit_cast<uint32_t>(expected);
  }
};

// Of all mantissas and both parities of the exponent, with all floats that are within 2^-22.9 of the inverse.
void all_roots() {
  Tally roots("roots");
  const double bound = std::exp2(-22.9);
  for (uint32_t bits = bit_cast<uint32_t>(1.0f); bits < bit_cast<uint32_t>(4.0f); ++bits) {
    const float x = bit_cast<float>(bits), expected = std::sqrt(x);
    const double exact = 1 / std::sqrt(double{x});
    const uint32_t nearest = bit_cast<uint32_t>(static_cast<float>(exact));
    for (uint32_t other = nearest - 4; other <= nearest + 4; ++other) {
      const float y = bit_cast<float>(other);
      if (std::fabs(y / exact - 1) <= bound) roots.add(root_from(x, y), expected);
    }
  }
}

// a 2^k = b m + c, for whole numbers: a and b of 24 bits, an odd m of 25, and a small c. Then a / b is c / 2b of a unit
// of its last place from a midpoint. What quotient_from() rounds is off by less than 3 * 2^-24 of a unit (1.5 that the
// first quotient may be off, times the inverse's error of 2^-24 and the same for what is left, should it have 25 bits),
// so that only |c| <= 6 can decide.
constexpr int kNear = 8;

void near_midpoints() {
  Tally quotients("quotients");
  for (uint32_t b = 1u << 23; b < 1u << 24; ++b) {
    const double exact = 1.0 / b, unit = std::ldexp(1.0, b == 1u << 23 ? -46 : -47);
    const float nearest = static_cast<float>(exact);
    float inverses[3];
    int count = 0;
    for (int step = -1; step <= 1; ++step) {
      const float y = bit_cast<float>(bit_cast<uint32_t>(nearest) + step);
      if (std::fabs(y - exact) <= unit) inverses[count++] = y;
    }
    const int zeros = __builtin_ctz(b);
    const uint32_t odd = b >> zeros;
    uint32_t inverse_of_odd = odd;
    for (int i = 0; i < 5; ++i) inverse_of_odd *= 2 - odd * inverse_of_odd;
    for (int c = -kNear; c <= kNear; ++c) {
      if (c == 0 || c % (1 << zeros) != 0) continue;
      for (int k = 24; k <= 25; ++k) {
        const uint32_t modulus = 1u << (k - zeros);
        uint32_t m = static_cast<uint32_t>(-c / (1 << zeros)) * inverse_of_odd & (modulus - 1);
        for (; m < 1u << 25; m += modulus) {
          const uint64_t a = (uint64_t{b} * m + c) >> k;
          if (m <= 1u << 24 || m % 2 == 0 || a < 1u << 23 || a >= 1u << 24) continue;
          for (int i = 0; i < count; ++i)
            quotients.add(quotient_from(a, b, inverses[i]), static_cast<float>(a) / static_cast<float>(b));
        }
      }
    }
  }
}

float ends[] = {0.0f,     0x1p-149f, 0x1p-127f, 0x1p-126f, 0x1p-102f, 0x1.fffffep-102f, 0x1p-101f,
                0x1p-64f, 0x1p-63f,  0x1p-25f,  1.0f,      0x1p24f,   0x1.000002p24f,   0x1.fffffep26f,
                0x1p27f,  0x1p100f,  0x1p127f,  INFINITY,  NAN};

// What a guard calls ordinary, of all exponents and of the ends of ranges, is right.
void any_operands() {
  Tally roots("guarded_roots"), quotients("guarded_quotients");
  const auto root_of = [&](float x) {
    Guard guard;
    const float root = guard.root(x);
    // What is not finite the quotient tells.
    if (guard.all_ordinary() && std::isfinite(root)) roots.add(root, std::sqrt(x));
  };
  const auto quotient_of = [&](float a, float b) {
    Guard guard;
    const float quotient = guard.quotient(a, b);
    if (guard.all_ordinary()) quotients.add(quotient, a / b);
  };
  std::mt19937 random(0);
  for (int i = 0; i < 1 << 22; ++i) {
    const float a = bit_cast<float>(static_cast<uint32_t>(random()));
    root_of(a);
    quotient_of(a, bit_cast<float>(static_cast<uint32_t>(random())));
    // Of ordinary magnitudes.
    quotient_of(a, std::ldexp(0.5f + random() * 0x1p-33f, static_cast<int>(random() % 87) - 62));
  }
  for (const float a : ends) {
    root_of(a), root_of(-a);
    for (const float b : ends) quotient_of(a, b), quotient_of(-a, b), quotient_of(a, -b), quotient_of(-a, -b);
  }
}

// What has to be ordinary for rows at rest to be as fast as others, and what must not be.
void ranges() {
  Tally ordinary("ordinary");
  const auto is = [&](bool expected, float x, float a, float b) {
    Guard guard;
    guard.quotient(a, b + 0 * guard.root(x));
    ordinary.add(guard.all_ordinary(), expected);
  };
  is(true, 0.0f, 0.0f, 1e-8f), is(true, 0.0f, -0.0f, 1e-15f), is(true, 0x1p-101f, 0x1p-101f, 0x1p-63f);
  is(true, 0x1p60f, -0x1.fffffep26f, 0x1p24f);
  is(false, 0x1p-102f, 1, 1), is(false, 1, 0x1p-102f, 1), is(false, 1, 1, 0x1p-64f), is(false, 1, 1, 0x1.000002p24f);
  is(false, -1, 1, 1), is(false, INFINITY, 1, 1), is(false, NAN, 1, 1), is(false, 1, INFINITY, 1), is(false, 1, NAN, 1);
  is(false, 1, 0x1p27f, 1), is(false, 1, 1, 0), is(false, 1, 1, -1), is(false, 1, 1, NAN), is(false, 0x1p-149f, 1, 1);
  // One among many, at each place.
  for (int at = 0; at < 7; ++at) {
    Guard guard;
    for (int i = 0; i < 7; ++i) guard.quotient(i == at ? 0x1p-110f : 1.0f, 1.0f);
    ordinary.add(guard.all_ordinary(), false);
  }
}

}  // namespace

int main() {
  all_roots();
  near_midpoints();
  any_operands();
  ranges();
}
