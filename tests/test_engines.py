"""Both engines by themselves, without torch: every rule in every mix of storages and every size, to the bit.

Without --all a seventh of the mixes of each rule, others of the next; on the emulator half of what is run, with a
seventh of the sizes in each mix and place, others in the next.

tests/sanitize/run.py runs the same programs under the sanitizers.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from build import ROOT, emulator_commands

from fusedopt import _C, _toolchain

if _C.cuda_built_for() == "emulated":
    pytest.skip("the programs bring their own engines", allow_module_level=True)


def run(program: str, tmp_path: Path, isas: list[str], more: list[list[str]], *one_in: int) -> str:
    """What it says of one in so many of its jobs, and of these in so many of their sizes.

    It is linked of the objects that the package was built of.
    """
    tree = _toolchain.Tree(ROOT)
    main = _toolchain.cpp_command(Path("tests/sanitize") / f"{program}.cpp", ["-Itests/cuda_emulator"])
    objects = tree.make([main, *tree.cpu_commands(isas, cuda=bool(more)), *more])
    target = tmp_path / program
    subprocess.run([*_toolchain.compiler(), "-fopenmp", "-pthread", *map(str, objects), "-o", str(target)], check=True)
    done = subprocess.run([str(target), *map(str, one_in)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def every(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--all"))


# What all others are compared with.
with_generic = pytest.mark.skipif(
    "generic" not in _C.built_isas(), reason="the build has no generic engine: FUSEDOPT_ISAS=native left it out"
)


@with_generic
def test_cpu(tmp_path: Path, every: bool) -> None:
    said = run("engine_test", tmp_path, _C.built_isas(), [], 1 if every else 7)
    assert int(said.split()[0]) > 1000


def test_cuda_on_the_emulator(tmp_path: Path, every: bool) -> None:
    said = run("cuda_engine_test", tmp_path, ["generic"], emulator_commands(_toolchain), *((1, 1) if every else (2, 7)))
    assert int(said.split()[0]) > 1000


@with_generic
def test_draws_of_parts(tmp_path: Path) -> None:
    said = run("draws_test", tmp_path, _C.built_isas(), emulator_commands(_toolchain), 1)
    assert int(said.split()[0]) >= 72


def test_a_build_for_another_processor_alone_says_so(tmp_path: Path) -> None:
    source = tmp_path / "never.cpp"
    source.write_text(
        """
        #include "csrc/cpu/isa.h"
        FUSEDOPT_DECLARE_ISA(never)
        #include "csrc/cpu/engine.cpp"
        #include <iostream>
        using namespace fusedopt;
        const FactoredKernels& fusedopt_never::factored_kernels() { throw 0; }
        const history::Kernels& fusedopt_never::history_kernels() { throw 0; }
        const NormKernels& fusedopt_never::norm_kernels() { throw 0; }
        int main() {
          try {
            cpu::chosen_isa();
          } catch (const std::runtime_error& error) {
            std::cout << error.what();
          }
        }
        """
    )
    lists = ["-DFUSEDOPT_ISAS(do)=do(never)", "-DFUSEDOPT_CPU_RULES(do)=", "-DFUSEDOPT_CUDA_RULES(do)="]
    command = [*_toolchain.compiler(), "-std=c++17", "-fopenmp", f"-I{ROOT}", *lists, str(source)]
    parts = [str(ROOT / "csrc" / part) for part in ("registry.cpp", "adafactor/cpu.cpp")]
    target = tmp_path / "never"
    subprocess.run([*command, *parts, "-o", str(target)], check=True)
    said = subprocess.run([str(target)], capture_output=True, text=True, check=True).stdout
    assert said.startswith("fusedopt was built for never alone, which this processor lacks; build it here")
