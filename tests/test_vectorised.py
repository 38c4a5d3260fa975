"""No rule's loop over memory is left scalar: the machine code of what the build has linked is read."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OBJECTS = ROOT / "build" / "objects"
# Arithmetic on whole vectors, and on one number of them.
WIDE = re.compile(r"\bv(?:add|sub|mul|div|sqrt|fn?m(?:add|sub)\d+)p[sd]\b.*%[yz]mm")
SCALAR = re.compile(r"\bv?(?:add|sub|mul|div|sqrt|fn?m(?:add|sub)\d+)s[sd]\b")
FUNCTION = re.compile(r"^[0-9a-f]+ <(?P<name>.*)>:$")
KERNEL = re.compile(r"fusedopt_(?P<isa>avx\w+)::Kernel<fusedopt_\w+::(?P<what>(?P<rule>\w+), \d+, \w+)>::\w+")
# What may stay scalar: products of matrices take a thousand times as long as the momentum of float64 ones.
SCALAR_ALLOWED = {"MuonMomentum, 0, double"}
pytestmark = [
    pytest.mark.skipif(not shutil.which("objdump"), reason="needs objdump of binutils"),
    pytest.mark.skipif(not OBJECTS.is_dir(), reason="needs a checkout that has been built"),
]


def newest() -> list[Path]:
    """The last object made for each rule and instruction set; older ones are kept by the build."""
    made: dict[str, Path] = {}
    for path in sorted(OBJECTS.glob("rule-*.o"), key=lambda path: path.stat().st_mtime):
        names = subprocess.run(["nm", "-C", path], capture_output=True, text=True, check=True).stdout
        found = KERNEL.search(names)
        if found:
            made[f"{found['isa']} {found['rule']}"] = path
    return list(made.values())


def functions(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Names with their instructions."""
    text = subprocess.run(
        ["objdump", "-d", "-C", "--no-show-raw-insn", path], capture_output=True, text=True, check=True
    ).stdout
    name, lines = "", []
    for line in text.splitlines():
        if begin := FUNCTION.match(line):
            if lines:
                yield name, lines
            name, lines = begin["name"], []
        elif line.startswith(" "):
            lines.append(line)
    if lines:
        yield name, lines


def test_every_loop_of_every_rule_works_on_vectors() -> None:
    objects = newest()
    if not objects:
        pytest.skip("only the baseline instruction set was built")
    scalar, seen = [], 0
    for path in objects:
        for name, lines in functions(path):
            kernel = KERNEL.search(name)
            if kernel is None:
                continue
            single = sum(bool(SCALAR.search(line)) for line in lines)
            whole = sum(bool(WIDE.search(line)) for line in lines)
            seen += whole > 0
            # A tail's few elements go one by one, unrolled; a function with such a tail has the loop before it, too.
            if single > 4 and whole < single / 4 and kernel["what"] not in SCALAR_ALLOWED:
                scalar.append(f"{kernel[0]}: {single} scalar, {whole} wide")
    assert seen > 100
    assert not scalar, "\n".join(scalar)
