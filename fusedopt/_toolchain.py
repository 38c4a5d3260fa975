"""Compilers and their flags, for setup.py and for rules that users compile; needs nothing but the standard library."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

# IEEE arithmetic with every fma written out (-ffp-contract=off) makes results equal on every instruction set; the other
# two flags only drop errno and floating-point exceptions, without which g++ vectorises neither roots nor selections.
NUMERICS = ["-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"]
# nvcc's division and square root are IEEE's unless asked otherwise.
CUDA_NUMERICS = ["-O3", "--fmad=false"]
# Ampere, Hopper, and the two Blackwells.
ARCHITECTURES = ["8.0", "9.0", "10.0", "12.0"]


def _version(number: str) -> int:
    return int(number.rstrip("af"))


class Cuda:
    """The CUDA engine: torch-free, so nvcc compiles it for any torch, with or without a GPU."""

    def __init__(self) -> None:
        self.nvcc = self._find()

    def _find(self) -> str | None:
        wanted = os.environ.get("FUSEDOPT_CUDA") or "1"
        if wanted not in ("0", "1"):
            raise ValueError(f"FUSEDOPT_CUDA is {wanted!r}; use 0 for no CUDA engine, 1 for one where nvcc is found")
        if wanted == "0":
            self.missing = "FUSEDOPT_CUDA=0"
            return None
        self.missing = "nvcc not found"
        homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
        places = [f"{home}/bin" for home in homes if home]
        return shutil.which("nvcc", path=os.pathsep.join([*places[:-1], os.environ.get("PATH", ""), places[-1]]))

    def architectures(self) -> list[str]:
        """As TORCH_CUDA_ARCH_LIST has them, else all of ours that the toolkit knows: "9.0", "12.0+PTX"."""
        asked = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(";", " ").split()
        for name in asked:
            if not re.fullmatch(r"\d+\.\d[af]?(\+PTX)?", name):
                raise SystemExit(f"TORCH_CUDA_ARCH_LIST has {name!r}; write architectures as 9.0 or 12.0+PTX")
        if asked:
            return asked
        known = subprocess.check_output([str(self.nvcc), "--list-gpu-code"], text=True).split()
        ours = [name for name in ARCHITECTURES if f"sm_{name.replace('.', '')}" in known]
        return [*ours[:-1], ours[-1] + "+PTX"]

    def libraries(self) -> list[str]:
        """The toolkit's library folders, from nvcc itself: the nvcc on the PATH may be a script."""
        out = subprocess.run([str(self.nvcc), "--dryrun", "x.o"], capture_output=True, text=True, check=True).stderr
        found = re.search(r"LIBRARIES=(.*)", out)
        return [flag[2:] for flag in shlex.split(found.group(1)) if flag.startswith("-L")] if found else []

    def codes(self, architectures: list[str]) -> tuple[list[str], str]:
        """nvcc's flags for them, and what they contain: "sm_90 compute_90".

        All are made from the PTX of the oldest, whose instructions are all that the kernels use, so that half of nvcc
        runs once and not once for each. Architectures with a letter have a PTX of their own.
        """
        numbers = sorted((name.removesuffix("+PTX").replace(".", "") for name in architectures), key=_version)
        wants_ptx = any(name.endswith("+PTX") for name in architectures)
        plain = [number for number in numbers if number.isdigit()]
        sets = [plain, *([number] for number in numbers if not number.isdigit())]
        flags, names = [], []
        for alike in filter(None, sets):
            kinds = [f"sm_{number}" for number in alike] + [f"compute_{alike[0]}"] * wants_ptx
            flags.append(f"-gencode=arch=compute_{alike[0]},code=[{','.join(kinds)}]")
            names += kinds
        return flags, " ".join(names)

    def command(self, source: Path, target: Path, flags: list[str]) -> list[str]:
        """How nvcc compiles a source to an object."""
        return [
            *[str(self.nvcc), "-std=c++17", *CUDA_NUMERICS, "--expt-relaxed-constexpr", "--threads", "0", *flags],
            *["-Xcompiler", "-fPIC,-fvisibility=hidden", "-c", str(source), "-o", str(target)],
        ]

    def link_flags(self) -> list[str]:
        """For g++: a runtime of our own, hidden, since torch may have none, or one of another version."""
        libraries = [f"-L{path}" for path in self.libraries()] + ["-lcudart_static", "-ldl", "-lrt", "-lpthread"]
        return [*libraries, "-Wl,--exclude-libs,libcudart_static.a"]
