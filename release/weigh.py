"""What each part of an installation weighs, of what has been built here: the table of docs/compatibility.md.

python release/weigh.py [--write]
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/compatibility.md"
BEGIN, END = "<!-- weights -->\n", "<!-- /weights -->\n"
OF_RULES = ("rule.cu", "common.cu", "sums.cu")
SECTIONS = (".text", ".rodata", ".nv_fatbin")


def load_toolchain() -> Any:
    """The package's, without the package: what is weighed need not run here."""
    spec = importlib.util.spec_from_file_location("toolchain", ROOT / "fusedopt" / "_toolchain.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def code_of(path: Path) -> int:
    """Bytes of machine code and constants, of kernels if there are any."""
    said = subprocess.run(["size", "-A", "-d", path], capture_output=True, text=True, check=True).stdout
    lines = [line.split() for line in said.splitlines() if line.startswith(SECTIONS)]
    kernels = sum(int(size) for name, size, _ in lines if name.startswith(".nv_fatbin"))
    return kernels or sum(int(size) for _, size, _ in lines)


def part_of(command: Sequence[str]) -> str:
    """What a row of the table calls an object."""
    source = Path(command[-1])
    if source.suffix == ".cu":
        return "kernels of rules" if source.name in OF_RULES else "kernels of sums, factors and L-BFGS"
    isa = next((word.rpartition("_")[2] for word in command if word.startswith("-DFUSEDOPT_ISA_")), "")
    return f"CPU, {'AVX-512' if isa == 'AVX512' else isa if isa == 'AVX2' else 'generic'}" if isa else "what chooses"


def weights(toolchain: Any) -> Counter[str]:
    tree, cuda = toolchain.Tree(ROOT), toolchain.Cuda()
    commands = tree.engine_commands(toolchain.isas(), cuda)
    found: Counter[str] = Counter()
    for command in commands:
        made = tree._object(command)
        if not made.exists():
            raise SystemExit(f"{made.name} is missing; run: make build")
        found[part_of(command)] += code_of(made)
    return found


def table(parts: Counter[str], shared: Iterable[Path]) -> str:
    rows = ["| part | MB |", "|---|---|", *(f"| {name} | {size / 1e6:.1f} |" for name, size in parts.most_common())]
    rows += ["", "| file | installed, MB | in a wheel, MB |", "|---|---|---|"]
    for path in shared:
        packed = len(zlib.compress(path.read_bytes(), 6))
        name = "engines" if path.name.startswith("lib") else "bindings for one torch"
        rows.append(f"| {name} | {path.stat().st_size / 1e6:.1f} | {packed / 1e6:.1f} |")
    return "\n".join([*rows, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put it into the page")
    asked = parser.parse_args()
    toolchain = load_toolchain()
    package = ROOT / "fusedopt"
    shared = [package / toolchain.ENGINES, *sorted(package.glob("_C_torch*.so"))[:1]]
    text = table(weights(toolchain), shared)
    print(text)
    if asked.write:
        before, _, rest = PAGE.read_text().partition(BEGIN)
        PAGE.write_text(before + BEGIN + text + END + rest.partition(END)[2])


if __name__ == "__main__":
    main()
