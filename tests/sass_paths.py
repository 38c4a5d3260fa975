"""Instructions per element of a row with options, as the kernels for rows of any mix have them: tests/sass_paths.txt.

Such a kernel asks at run time what its row has, so its loop holds the code of every storage and option. Here it is
compiled once for each kind of row with the answers written into it, and what is left of the loop is counted: without
the calls that root and division make for rare operands, and without the branches that choose, of which the built
kernels have a few for each operand and eight elements. `python tests/sass_paths.py --write` renews the file.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import sass
from sass_code import loops

from fusedopt import _toolchain

ROOT = Path(__file__).parent.parent
TABLE = Path(__file__).parent / "sass_paths.txt"
ELEMENTS = 8  # of a lane in a round


@dataclass(frozen=True)
class Row:
    """What Adam's row is stored in, and its options."""

    param: str
    grad: str
    first: str  # exp_avg
    second: str  # exp_avg_sq
    pair: str = "none"
    partner: str = "f32"
    averages: bool = False
    clears_grad: bool = False


ROWS = {
    "float32": Row("f32", "f32", "f32", "f32"),
    "bfloat16, master in float32": Row("f32", "bf16", "f32", "f32", "master", "bf16"),
    "bfloat16, remainder": Row("bf16", "bf16", "f32", "f32", "remainder", "bf16"),
    "bfloat16, states in 8 bits": Row("bf16", "bf16", "i8", "u8"),
    "float32, states in 8 bits": Row("f32", "f32", "i8", "u8"),
    "float32, average": Row("f32", "f32", "f32", "f32", averages=True),
    "float32, zeroed gradients": Row("f32", "f32", "f32", "f32", clears_grad=True),
}


def _answers(row: Row) -> list[tuple[str, str]]:
    """Expressions of any*.cuh, and what they are for such a row."""
    coded = sum(1 << k for k, state in enumerate((row.first, row.second)) if state in ("i8", "u8"))
    clears = "true" if row.clears_grad else "false"
    return [
        # The plain variant, which has two states.
        (r"\brule\.variant\b", "0"),
        (r"\brule\.kept\b", "3"),
        (r"\b(row_?\.)?row->dtypes\[2 \+ k\]", "kStateTypes[k]"),
        (r"\b(row_?\.)?row->dtypes\[0\]", f"Dtype::{row.param}"),
        (r"\b(row_?\.)?row->dtypes\[1\]", f"Dtype::{row.grad}"),
        (r"extras \? extras->partner_dtype : Dtype::f32", f"Dtype::{row.partner}"),
        (r"extras \? extras->average_dtype : Dtype::f32", "Dtype::f32"),
        (r"extras \? extras->pair : Pair::none", f"Pair::{row.pair}"),
        (r"extras && \(extras->coded >> k & 1\)", f"({coded} >> k & 1)"),
        (r"extras && \(extras->by_chance >> k & 1\)", "false"),
        (r"extras && \(extras->flags & flag\) != 0", f"flag == fusedopt::cuda::kClearsGrad && {clears}"),
        (r"(row_\.)?extras && (row_\.)?extras->average\b", "true" if row.averages else "false"),
        (r"if \(in_registers_of\(share\)\)", "if (true)"),
        (r"__noinline__ inline", "__forceinline__"),
        (
            r"using fusedopt::cuda::TableExtras;",
            "using fusedopt::cuda::TableExtras;\n__device__ constexpr fusedopt::Dtype kStateTypes[] = "
            f"{{fusedopt::Dtype::{row.first}, fusedopt::Dtype::{row.second}}};",
        ),
    ]


def compiled(row: Row, folder: Path, arch: str = "90") -> sass.Kernel:
    """Adam's kernel for such rows."""
    csrc = folder / "csrc"
    shutil.copytree(ROOT / "csrc", csrc)
    sources = [*sorted((csrc / "cuda").glob("any*.cuh")), csrc / "cuda" / "common.cuh"]
    for found, answer in _answers(row):
        times = 0
        for source in sources:
            text, here = re.subn(found, lambda _, answer=answer: answer, source.read_text())  # type: ignore[misc]
            source.write_text(text)
            times += here
        assert times, f"{[source.name for source in sources]} have no {found} any more"
    unit = folder / "unit.cu"
    unit.write_text(
        '#define FUSEDOPT_NAMESPACE fusedopt_cuda\n#include "csrc/cuda/common.cuh"\n#include "csrc/rules/adam.h"\n'
        '#include "csrc/cuda/kernel_table.cuh"\nusing namespace fusedopt_cuda;\n'
        "template __global__ void fusedopt_cuda::update_any<Only<Adam>, 2, float>(\n"
        "    const __grid_constant__ UpdateArguments, const __grid_constant__ CommonRule);\n"
    )
    nvcc = _toolchain.Cuda().nvcc
    if not nvcc:
        raise sass.Missing("nvcc not found")
    flags = ["-std=c++17", *_toolchain.CUDA_NUMERICS, "--expt-relaxed-constexpr", f"-arch=sm_{arch}", f"-I{folder}"]
    subprocess.run([nvcc, *flags, "-cubin", str(unit), "-o", str(folder / "unit.cubin")], check=True)
    (kernel,) = sass.dump(folder / "unit.cubin")
    return kernel


def per_element(kernel: sass.Kernel) -> float:
    """Of the loop over tiles: the one that loads most, without blocks that call."""
    loop = max(loops(kernel.code), key=lambda loop: sum(i.opcode.startswith("LDG") for i in loop))
    aims = {int(i.operands.split(",")[-1], 16) for i in kernel.code if i.opcode.partition(".")[0] == "BRA"}
    count, block, calls = 0, 0, False
    for instruction in loop:
        if instruction.address in aims:
            count, block, calls = count + block * (not calls), 0, False
        block += instruction.opcode != "NOP"
        calls = calls or instruction.opcode.startswith("CALL")
        if instruction.opcode.partition(".")[0] in ("BRA", "EXIT", "RET"):
            count, block, calls = count + block * (not calls), 0, False
    return (count + block * (not calls)) / ELEMENTS


def table() -> str:
    lines = ["# Adam's rows of any mix on sm_90: registers, instructions per element (python tests/sass_paths.py)."]
    for name, row in ROWS.items():
        with tempfile.TemporaryDirectory() as folder:
            kernel = compiled(row, Path(folder))
        lines.append(f"{name:28} {kernel.usage.registers:>3} {per_element(kernel):>6.1f}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    text = table()
    if "--write" in sys.argv[1:]:
        TABLE.write_text(text)
    print(text, end="")
