"""Builds fusedopt._C; everything else is in pyproject.toml."""

import os
import platform
import shutil
import sys
from pathlib import Path

from setuptools import setup
from torch.utils.cpp_extension import BuildExtension, CppExtension

# IEEE arithmetic with every fma written out (-ffp-contract=off) makes results equal on every instruction set; the other
# two flags only drop errno and floating-point exceptions, without which g++ vectorises neither roots nor selections.
NUMERICS = ["-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"]


def sources() -> list[str]:
    return ["csrc/bindings.cpp", *sorted(str(path) for path in Path("csrc/cpu").glob("*.cpp"))]


def describe() -> str:
    x86 = platform.machine() in ("x86_64", "AMD64")
    cpu = "generic, avx2, avx512" if x86 else "generic"
    nvcc = "no CUDA engine yet" if shutil.which("nvcc") else "no, nvcc not found"
    return f"fusedopt builds CPU: {cpu}; CUDA: {nvcc}"


class Build(BuildExtension):
    """BuildExtension that says in one line what it builds."""

    def build_extensions(self) -> None:
        # The build front ends swallow stdout; this line is for people.
        print(describe(), file=sys.stderr)
        super().build_extensions()


os.environ.setdefault("MAX_JOBS", str(os.cpu_count() or 1))

setup(
    ext_modules=[
        CppExtension(
            "fusedopt._C",
            sources(),
            # -fopenmp compiles the pragmas; it is left out of the link on purpose, so that the symbols resolve to the
            # OpenMP runtime that torch has loaded. Two thread pools in one process fight for the cores.
            extra_compile_args=["-fopenmp", "-fvisibility=hidden", "-Wall", *NUMERICS],
            depends=[str(path) for path in Path("csrc").rglob("*.h")],
        )
    ],
    cmdclass={"build_ext": Build},
)
