"""What nvcc made of the CUDA kernels: reads the machine code (SASS) of a build and measures its loops.

`python tests/sass.py` prints, for every kernel and architecture, its registers, the warps of it that an SM holds, the
bytes that these have under way before the first is used, and the instructions per element of its vector loop; with
`--write` it renews the committed table of them.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from sass_code import Instruction, before_stores, loops, parse_code

from fusedopt._toolchain import ENGINES

TABLE = Path(__file__).parent / "sass_table.txt"
VECTOR_BYTES = 16
SIZES = {"float": 4, "double": 8, "bf16": 2, "f16": 2}

LANES = 32


@dataclass(frozen=True)
class Multiprocessor:
    """What an SM has for the blocks that it holds (the CUDA programming guide's table of compute capabilities)."""

    warps: int
    blocks: int
    shared: int  # bytes, of which each block takes a KiB for itself


MULTIPROCESSORS = {
    "sm_80": Multiprocessor(64, 32, 164 << 10),
    "sm_90": Multiprocessor(64, 32, 228 << 10),
    "sm_100": Multiprocessor(64, 32, 228 << 10),
    "sm_120": Multiprocessor(48, 24, 100 << 10),
}
REGISTERS_OF_QUARTER = 16384  # each quarter of an SM gives its warps registers of its own, in 256s
# Threads of a block: of these kinds, and of all others. A kernel of one thread has no occupancy.
THREADS = {"advance": 1024, "patch_table": 1024, "norm_clip": 1}
USUAL_THREADS = 256


class Missing(Exception):
    """Why there is nothing to read: no CUDA in this build, or no tool to read it with."""


@dataclass(frozen=True)
class Usage:
    registers: int
    stack: int
    local: int
    shared: int = 0


@dataclass
class Kernel:
    """A kernel as one architecture has it; `name` is without namespaces: update<SGD, 0, Mix<bf16, ...>, float>."""

    name: str
    arch: str
    usage: Usage
    code: list[Instruction] = field(repr=False)

    def __str__(self) -> str:
        return f"{self.name} on {self.arch}"

    @property
    def kind(self) -> str:
        return self.name.partition("<")[0]

    @property
    def arguments(self) -> list[str]:
        return re.findall(r"\w+", self.name.partition("<")[2])

    @functools.cached_property
    def vector_loops(self) -> list[list[Instruction]]:
        """The innermost loops that hold vector accesses, each from where it is entered: by width, then by length."""
        found = [loop for loop in loops(self.code) if any(i.access and i.access[1] != "plain" for i in loop)]
        inside = [{i.address for i in loop} for loop in found]
        inner = [loop for loop, own in zip(found, inside, strict=True) if not any(other < own for other in inside)]
        return sorted(inner, key=lambda loop: (max(i.access[2] for i in loop if i.access), len(loop)), reverse=True)

    def instructions_per_element(self) -> float | None:
        """Of the vector loop as it stands, without what it calls for rare operands. None: there is no such loop."""
        if self.kind != "update" or not self.vector_loops:
            return None
        loop = self.vector_loops[0]
        stored = sum(i.access[2] for i in loop if i.access and i.access[:2] == ("store", "kept"))
        return sum(i.opcode != "NOP" for i in loop) / (stored / SIZES[self.arguments[3]]) if stored else None

    def warps(self) -> int | None:
        """That an SM holds at a time. None: of an architecture that is not listed, or of one thread."""
        of, threads = MULTIPROCESSORS.get(self.arch), THREADS.get(self.kind, USUAL_THREADS)
        if not of or threads == 1:
            return None
        each = threads // LANES
        by_registers = REGISTERS_OF_QUARTER // (-(-self.usage.registers // 8) * 8 * LANES) * 4
        by_shared = of.shared // (self.usage.shared + 1024)
        return min(of.warps // each, by_registers // each, of.blocks, by_shared) * each

    def bytes_in_flight(self) -> int | None:
        """Of an SM's warps, each with the vector loads that come before the first is used. None: it has none."""
        ahead, warps = self.loads_ahead()[0], self.warps()
        return ahead * LANES * warps if ahead and warps else None

    def loads_ahead(self) -> tuple[int, int]:
        """Of what a lane loads before the vector loop's first store, the bytes before any is used, and all."""
        ahead = total = 0
        brought: set[int] = set()
        used = False
        for instruction in before_stores(self.vector_loops[0]) if self.vector_loops else []:
            used = used or not brought.isdisjoint(instruction.registers)
            if instruction.access:
                *_, size = instruction.access
                # Of 32 bytes each half has a name.
                for first in instruction.registers[: size // VECTOR_BYTES]:
                    brought.update(range(first, first + 4))
                total += size
                ahead += size * (not used)
        return ahead, total


# What the tools say.


def tool(name: str) -> str:
    """cuobjdump or nvdisasm: out of the wheels that the `sass` extra installs, from beside nvcc, or from the PATH."""
    site = Path(sysconfig.get_path("purelib"))
    places = [str(path.parent) for path in sorted(site.glob(f"nvidia/**/bin/{name}"))]
    if nvcc := shutil.which("nvcc"):
        # The nvcc on the PATH may be a script.
        told = subprocess.run([nvcc, "--dryrun", "x.o"], capture_output=True, text=True).stderr
        places += [f"{top.strip()}/bin" for top in re.findall(r"\bTOP=(.*)", told)]
    found = shutil.which(name, path=os.pathsep.join([*places, os.environ.get("PATH", "")]))
    if not found:
        raise Missing(f"{name} not found; install nvidia-cuda-{name}")
    return found


def cuobjdump(*arguments: str, cwd: Path | None = None) -> str:
    environment = {**os.environ, "NVDISASM_PATH": str(Path(tool("nvdisasm")).parent)}
    command = [tool("cuobjdump"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cwd)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr or done.stdout}")
    return done.stdout


def demangle(name: str) -> str:
    """Through libstdc++, which torch has loaded anyway: c++filt need not be there."""
    library = ctypes.CDLL("libstdc++.so.6")
    library.__cxa_demangle.restype = ctypes.c_char_p
    status = ctypes.c_int()
    text = library.__cxa_demangle(name.encode(), None, None, ctypes.byref(status))
    return text.decode() if status.value == 0 else name


@functools.cache
def short(name: str) -> str:
    """update<SGD, 0, Mix<float, float, float>, float> of a mangled kernel."""
    plain = re.sub(r"\w+::", "", demangle(name)).removeprefix("void ")
    return re.sub(r"\([^()]*\)$", "", plain)


def parse_usage(text: str) -> dict[tuple[str, str], Usage]:
    found, arch, name = {}, "", ""
    for line in text.splitlines():
        if header := re.match(r"arch = (\w+)", line):
            arch = header[1]
        elif function := re.match(r" Function (\S+):", line):
            name = function[1]
        elif "REG:" in line:
            numbers = dict(re.findall(r"(REG|STACK|LOCAL|SHARED):(\d+)", line))
            found[arch, name] = Usage(*(int(numbers[which]) for which in ("REG", "STACK", "LOCAL", "SHARED")))
    return found


@functools.cache
def dump(binary: Path, arch: str | None = None, kernel: str | None = None) -> list[Kernel]:
    """One kernel or every one, of one architecture or of all, in a cubin, an object file or a shared object."""
    of = [] if arch is None else ["-arch", arch]
    usage = parse_usage(cuobjdump(*of, "-res-usage", str(binary)))
    if kernel is not None:
        usage = {key: what for key, what in usage.items() if short(key[1]) == kernel}
        of += ["-fun", ",".join(dict.fromkeys(name for _, name in usage))]
    code = parse_code(cuobjdump(*of, "-sass", str(binary)))
    return [Kernel(short(name), arch, usage[arch, name], code[arch, name]) for arch, name in usage]


def dump_some(binary: Path, arch: str, wanted: Callable[[str], bool]) -> list[Kernel]:
    """Every kernel of an architecture; code have those that nvcc made together with one that is wanted."""
    if not parse_usage(cuobjdump("-arch", arch, "-res-usage", str(binary))):
        return []
    kernels = []
    with tempfile.TemporaryDirectory() as folder:
        cuobjdump("-arch", arch, "-xelf", "all", str(binary.absolute()), cwd=Path(folder))
        for cubin in sorted(Path(folder).iterdir()):
            usage = parse_usage(cuobjdump("-res-usage", str(cubin)))
            is_read = any(wanted(short(name)) for _, name in usage)
            code = parse_code(cuobjdump("-sass", str(cubin))) if is_read else {}
            kernels += [Kernel(short(name), arch, what, code.get((of, name), [])) for (of, name), what in usage.items()]
    return kernels


def launch_bounds(binary: Path) -> dict[str, tuple[int, int]]:
    """The threads of a block and the blocks of an SM that each kernel is compiled for; empty if there is no PTX."""
    entry = re.compile(r"\.entry (\w+)\([^)]*\)\s*\.maxntid (\d+)(?:, \d+)*\s*(?:\.minnctapersm (\d+))?")
    found = entry.findall(cuobjdump("-ptx", str(binary)))
    return {short(name): (int(threads), int(blocks or 1)) for name, threads, blocks in found}


@functools.cache
def built() -> Path:
    """The installed engines, if they hold kernels."""
    package = importlib.util.find_spec("fusedopt")
    for folder in (package and package.submodule_search_locations) or []:
        path = Path(folder) / ENGINES
        if path.exists() and b".nv_fatbin" in path.read_bytes():
            return path
    raise Missing("fusedopt was built without CUDA")


@functools.cache
def compiler() -> str:
    """The version of nvcc that compiled the kernels, as they name it themselves."""
    with tempfile.TemporaryDirectory() as folder:
        cuobjdump("-xelf", "all", str(built()), cwd=Path(folder))
        content = min(Path(folder).iterdir()).read_bytes()
    version = re.search(rb"Cuda compilation tools, release [\d.]+, (V[\d.]+)", content)
    return version[1].decode() if version else "unknown"


# The table: for each kernel and architecture "registers warps bytes-in-flight instructions-per-element".

Table = dict[str, dict[str, str]]
WIDTHS = (3, 3, 3, 6)


def number_of(arch: str) -> int:
    return int(re.sub(r"\D", "", arch))


def table_of(kernels: list[Kernel]) -> Table:
    table: Table = defaultdict(dict)
    for kernel in sorted(kernels, key=lambda kernel: (kernel.name, number_of(kernel.arch))):
        in_flight, per_element = kernel.bytes_in_flight(), kernel.instructions_per_element()
        cells = [
            str(kernel.usage.registers),
            str(kernel.warps() or "-"),
            f"{in_flight / 1024:.0f}" if in_flight else "-",
            "-" if per_element is None else f"{per_element:.2f}",
        ]
        table[kernel.name][kernel.arch] = " ".join(cells)
    return dict(table)


def write(table: Table, compiled_by: str) -> str:
    archs = sorted({arch for row in table.values() for arch in row}, key=number_of)
    width = max(map(len, table))
    lines = [
        f"# Compiled by nvcc {compiled_by}; `python tests/sass.py --write` renews this table.",
        "# Registers of a thread; warps of an SM; KiB that their loads have under way before the first is used, and",
        "# instructions per element, both of the loop that moves 16 or 32 bytes at a time.",
        " ".join([f"{'kernel':{width}}", *(f"{arch:>{sum(WIDTHS) + 3}}" for arch in archs)]),
    ]
    for name, row in table.items():
        cells = [cell for arch in archs for cell in row.get(arch, "- - - -").split()]
        padded = [f"{cell:>{WIDTHS[at % len(WIDTHS)]}}" for at, cell in enumerate(cells)]
        lines.append(" ".join([f"{name:{width}}", *padded]))
    return "\n".join(lines) + "\n"


def read(text: str) -> tuple[Table, str]:
    """The table and its compiler out of what write() returned."""
    first, _, _, header, *rows = text.splitlines()
    archs, columns = header.split()[1:], len(WIDTHS)
    table = {}
    for row in rows:
        name, *cells = row.rsplit(maxsplit=columns * len(archs))  # names may hold spaces
        table[name] = {arch: " ".join(cells[columns * at : columns * (at + 1)]) for at, arch in enumerate(archs)}
    return table, re.findall(r"nvcc (\w[\w.]*\w)", first)[0]


def main() -> None:
    kernels = dump(built())
    table = table_of(kernels)
    if "--write" in sys.argv[1:]:
        TABLE.write_text(write(table, compiler()))
        return
    for kernel in sorted(kernels, key=lambda kernel: (kernel.name, number_of(kernel.arch))):
        ahead, total = kernel.loads_ahead()
        loads = f"{ahead} of {total} bytes ahead" if total else ""
        print(f"{kernel!s:64} {table[kernel.name][kernel.arch]:>18}  {loads}".rstrip())


if __name__ == "__main__":
    main()
