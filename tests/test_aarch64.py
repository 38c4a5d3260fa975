"""The CPU engine on ARM, cross-compiled and run under qemu: the bits that this machine's processor gives.

Needs a cross compiler and qemu's user mode; Debian has g++-aarch64-linux-gnu, and qemu-user or qemu-user-static.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from projects import ROOT
from tiers import thinned

from fusedopt import _C, _toolchain

GCC = "aarch64-linux-gnu-g++"
# Debian calls it by the second name where it is linked statically.
QEMU = next(filter(shutil.which, ("qemu-aarch64", "qemu-aarch64-static")), None)
# NEON, and two lengths of SVE's vectors, which one program serves.
PROCESSORS = {
    "neon": ([], []),
    "sve-128": (["-march=armv8.2-a+sve"], ["-cpu", "max,sve-max-vq=1"]),
    "sve-512": (["-march=armv8.2-a+sve"], ["-cpu", "max,sve-max-vq=4"]),
}

if _C.cuda_built_for() == "emulated":
    pytest.skip("about the CPU engine", allow_module_level=True)
pytestmark = [
    pytest.mark.skipif(shutil.which(GCC) is None, reason=f"needs {GCC}"),
    pytest.mark.skipif(QEMU is None, reason="needs qemu-aarch64"),
]


def program(target: Path, flags: list[str]) -> Path:
    """The torch-free test of the engine, in few sizes, for the compiler that CXX names."""
    tree = _toolchain.Tree(ROOT)
    main = _toolchain.cpp_command(Path("tests/sanitize/engine_test.cpp"), ["-DENGINE_TEST_FEW", *flags])
    objects = tree.make([main, *tree.cpu_commands(["generic"], cuda=False, flags=flags)])
    link = [*_toolchain.compiler(), "-static", "-fopenmp", "-pthread", *map(str, objects), "-o", str(target)]
    subprocess.run(link, check=True)
    return target


def said(command: list[str | Path]) -> list[str]:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return said([program(tmp_path_factory.mktemp("here") / "engine_test", []), "digests"])


@thinned("each compiles all rules for another machine", together=0)
@pytest.mark.parametrize("processor", PROCESSORS)
def test_bits_are_those_of_this_machine(
    processor: str, here: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags, cpu = PROCESSORS[processor]
    monkeypatch.setenv("CXX", GCC)
    assert QEMU is not None
    there = said([QEMU, *cpu, program(tmp_path / "engine_test", flags), "digests"])
    assert len(here) > 500
    assert [line for line in there if line not in here] == []
    assert there == here


@thinned("each compiles all rules for another machine", together=0)
@pytest.mark.parametrize("processor", ["neon"])
def test_threads_do_not_change_bits(processor: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags, cpu = PROCESSORS[processor]
    monkeypatch.setenv("CXX", GCC)
    assert QEMU is not None
    (last,) = said([QEMU, *cpu, program(tmp_path / "engine_test", flags)])
    assert int(last.split()[0]) > 1000
