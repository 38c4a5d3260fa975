"""The unit of a block of codes is divided by constants without a division: the quotients are those of one."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from fusedopt import _toolchain

ROOT = Path(__file__).parent.parent

# Every significand, and every exponent with some: quotients that are no normal numbers give the least scale.
SOURCE = """
#include <cstdio>

#include "csrc/precision.h"

using namespace fusedopt;

template <class C>
void compare() {
  constexpr float kLeast = 1.17549435e-38f;
  const float units = units_and_one<C>(C::kMost) - 1.0f, inverse = 1.0f / units;
  long divisions = 0, scales = 0;
  for (uint32_t bits = 0x5f000000u; bits < 0x5f800000u; ++bits) {
    const float x = bit_cast<float>(bits);
    divisions += divided(x, units, inverse) != x / units;
  }
  for (uint32_t bits = 0; bits < 0x7f800000u; bits += 8191) {
    const float scale = bit_cast<float>(bits) / units * units / units, expected = scale < kLeast ? kLeast : scale;
    scales += scale_of<C>(bits) != expected;
  }
  std::printf("%ld %ld\\n", divisions, scales);
}

int main() {
  compare<Code<8, true>>();
  compare<Code<8, false>>();
  compare<Code<4, true>>();
  compare<Code<4, false>>();
}
"""


def test_quotients_are_those_of_a_division(tmp_path: Path) -> None:
    compiler = shutil.which(_toolchain.compiler()[0])
    if not compiler:
        pytest.skip("needs a C++ compiler")
    program = tmp_path / "divided"
    flags = ["-std=c++17", "-O2", "-ffp-contract=off", f"-I{ROOT}", "-x", "c++", "-", "-o", str(program)]
    subprocess.run([compiler, *flags], input=SOURCE, text=True, check=True)
    assert subprocess.check_output([program], text=True).split() == ["0"] * 8
