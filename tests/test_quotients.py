"""Roots and quotients of csrc/cuda/guarded.cuh have the processor's bits, whatever approximation a GPU begins with."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def counts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, int]]:
    """How many were tried of each kind, and how many were wrong."""
    compiler = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("c++")
    if not compiler or platform.machine() != "x86_64":
        pytest.skip("needs a C++ compiler for this processor's own fma")
    program = tmp_path_factory.mktemp("quotients") / "quotients"
    flags = ["-std=c++17", "-O2", "-march=native", "-ffp-contract=off", f"-I{HERE.parent}", f"-I{HERE}/cuda_emulator"]
    subprocess.run([compiler, *flags, str(HERE / "quotients.cpp"), "-o", str(program)], check=True)
    lines = subprocess.check_output([program], text=True).splitlines()
    return {kind: (int(tried), int(wrong)) for kind, tried, wrong in map(str.split, lines)}


def test_every_root_of_two_binades(counts: dict[str, tuple[int, int]]) -> None:
    """But for two that a GPU's root does not meet, or the toolkit's own, of the same operations, would be wrong."""
    tried, wrong = counts["roots"]
    assert tried > 3 * 2**24
    assert wrong == 2


def test_every_quotient_near_a_midpoint(counts: dict[str, tuple[int, int]]) -> None:
    """But for the reciprocal of the float below a power of two, of which the approximation has to be the nearest."""
    tried, wrong = counts["quotients"]
    assert tried > 2**25
    assert wrong == 1


def test_what_a_guard_lets_pass(counts: dict[str, tuple[int, int]]) -> None:
    for kind in ("guarded_roots", "guarded_quotients"):
        tried, wrong = counts[kind]
        assert tried > 2**20
        assert not wrong
    tried, wrong = counts["ordinary"]
    assert tried
    assert not wrong
