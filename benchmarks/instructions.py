"""Instructions of a step and of each of its params, as valgrind counts them, whatever else a machine does.

python benchmarks/instructions.py [--tree DIR ...] [--only NAME] [--out FILE]

Steps over 1 param and over 1,000, of four elements each, on one thread: what is counted is what finds and checks
objects, not what reads numbers. A tree is a checkout with its extension built; several are counted one after the other,
and stand side by side. Nothing of the process before the first step counts. Needs gcc and valgrind with its headers.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

MANY = 1000
STEPS = 20
WARM_UP = 20  # in which Python makes up its mind how to run what is called
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "SGD momentum": ("SGD", {"lr": 1e-3, "momentum": 0.9}),
    "AdamW": ("AdamW", {"lr": 1e-3}),
    "RMSprop": ("RMSprop", {"lr": 1e-3}),
    "Adafactor": ("Adafactor", {"lr": 1e-3}),
    "AdamW, shards": ("AdamW", {"lr": 1e-3}),
}
CALLGRIND = ("valgrind", "--tool=callgrind", "--instr-atstart=no")
REQUESTS = """
#include <valgrind/callgrind.h>
void begin(void) { CALLGRIND_START_INSTRUMENTATION; CALLGRIND_ZERO_STATS; }
void end(const char* name) { CALLGRIND_DUMP_STATS_AT(name); CALLGRIND_STOP_INSTRUMENTATION; }
"""


def count_here(requests: Path, only: str) -> None:
    """Step all cases, within valgrind, which is told where each begins and ends."""
    import gc

    import torch

    import fusedopt

    valgrind = ctypes.CDLL(str(requests))
    torch.set_num_threads(1)
    gc.disable()
    for name, (optimizer, words) in CASES.items():
        if only.lower() not in name.lower():
            continue
        for count in (1, MANY):
            made = shard if name.endswith("shards") else torch.ones
            params: list[Any] = [torch.nn.Parameter(made(4)) for _ in range(count)]
            for p in params:
                p.grad = made(4)
            step = getattr(fusedopt, optimizer)(params, **words).step
            for _ in range(WARM_UP):
                step()
            valgrind.begin()
            for _ in range(STEPS):
                step()
            valgrind.end(f"{name}/{count}".encode())


@functools.cache
def mesh() -> Any:
    """Of this process alone."""
    import torch
    from torch.distributed.device_mesh import init_device_mesh

    distributed: Any = torch.distributed
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    return init_device_mesh("cpu", (1,))


def shard(elements: int) -> Any:
    """A DTensor of which this process has all."""
    import torch
    from torch.distributed.tensor import DTensor, Shard

    return DTensor.from_local(torch.ones(elements), mesh(), [Shard(0)], run_check=False)


def count(tree: Path, only: str) -> dict[str, dict[str, float]]:
    """By case: instructions of a step over one param, and of each further one."""
    with tempfile.TemporaryDirectory() as folder:
        source, requests = Path(folder) / "requests.c", Path(folder) / "requests.so"
        source.write_text(REQUESTS)
        subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", requests, source], check=True)
        valgrind = [*CALLGRIND, f"--callgrind-out-file={folder}/out"]
        subprocess.run(
            [*valgrind, sys.executable, __file__, "--here", requests, "--only", only],
            env={**os.environ, "PYTHONPATH": str(tree), "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"},
            cwd=folder,
            check=True,
            capture_output=True,
            text=True,
        )
        totals: dict[str, int] = {}
        for out in Path(folder).glob("out.*"):
            text = out.read_text()
            if found := re.search(r"^desc: Trigger: Client Request: (.*)$", text, re.MULTILINE):
                totals[found[1]] = int(re.search(r"^(?:totals|summary): (\d+)", text, re.MULTILINE)[1])  # type: ignore[index]
    counts = {}
    for name in CASES:
        if f"{name}/1" in totals:
            one, many = (totals[f"{name}/{count}"] / STEPS for count in (1, MANY))
            counts[name] = {"one param": round(one), "each further": round((many - one) / (MANY - 1), 1)}
    return counts


def commit_of(tree: Path) -> str:
    """What is checked out there, with a mark if it has been changed."""
    described = ["git", "-C", str(tree), "describe", "--always", "--dirty", "--exclude=*"]
    return subprocess.run(described, check=True, capture_output=True, text=True).stdout.strip()


def main() -> None:
    """Count in every tree, and print what was found side by side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", type=Path, action="append", help="checkouts with their extensions; default: this one")
    parser.add_argument("--only", default="", help="cases with this in their name")
    parser.add_argument("--out", type=Path, help="also write it here, as JSON")
    parser.add_argument("--here", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.here:
        return count_here(given.here, given.only)
    trees = given.tree or [Path(__file__).parents[1]]
    found = {commit_of(tree): count(tree.absolute(), given.only) for tree in trees}
    for commit, counts in found.items():
        print(commit)
        for name, numbers in counts.items():
            print(f"  {name:13} {numbers['one param']:>10,} with one param {numbers['each further']:>10,} each further")
    if given.out:
        given.out.write_text(json.dumps(found, indent=1) + "\n")
    return None


if __name__ == "__main__":
    main()
