"""Where the time of a step over small tensors goes that other work has pushed out of the caches.

python benchmarks/cold.py [--quick] [--only NAME] [--warm] [--threads N] [--seconds N] [--out FILE]

Before every step other data are written. A step over many tensors is held against torch's and against the sum of its
parts: a step over as many tensors without elements, which is finding and checking objects, and one over one tensor of
as many elements, which is the numbers. Other workloads in cold caches are in run.py.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from rich.table import Table
from torch.nn import Parameter

import fusedopt
from fusedopt.bench.baselines import CONTROL, FUSED, OURS
from fusedopt.bench.clock import Cpu
from fusedopt.bench.machine import machine
from fusedopt.bench.method import Contestant, Effort, compare, interleave, nothing, scaled, summarise, warm_up
from fusedopt.bench.tables import console

OBJECTS, NUMBERS = "objects alone", "numbers alone"
Step = Callable[[], object]


@dataclass(frozen=True)
class Workload:
    """A step of ours over tensors of these sizes against torch's, with what is asked."""

    name: str
    sizes: Sequence[int]
    asked: float = 1.0
    max_grad_norm: float | None = None
    parts: bool = False  # also against the sum of the two parts, at most so many times


AT_MOST = 1.2  # of the sum of the parts
THOUSAND = [256] * 1000
WORKLOADS = (
    Workload("1000 x 256 AdamW", THOUSAND, asked=20, parts=True),
    Workload("1000 x 256 clip + AdamW", THOUSAND, asked=25, max_grad_norm=1.0),
)
MANY, FEWER = Workload("10,000 x 64", [64] * 10_000), Workload("1,000 x 64", [64] * 1000)


def params(sizes: Sequence[int]) -> list[Parameter]:
    generator = torch.Generator().manual_seed(0)
    made = [Parameter(torch.randn(size, generator=generator)) for size in sizes]
    for p in made:
        p.grad = torch.randn(p.shape, generator=generator)
    return made


def ours(workload: Workload, sizes: Sequence[int] | None = None) -> Step:
    held = params(workload.sizes if sizes is None else sizes)
    return fusedopt.AdamW(held, max_grad_norm=workload.max_grad_norm).step


def theirs(workload: Workload) -> Step:
    held, norm = params(workload.sizes), workload.max_grad_norm
    step: Step = torch.optim.AdamW(held, fused=True).step
    if norm is None:
        return step

    def call() -> None:
        torch.nn.utils.clip_grad_norm_(held, norm)
        step()

    return call


def measure(workload: Workload, cold: bool, effort: Effort) -> list[dict[str, Any]]:
    steps = {OURS: ours(workload), CONTROL: ours(workload), FUSED: theirs(workload)}
    if workload.parts:
        steps[OBJECTS] = ours(workload, [0] * len(workload.sizes))
        steps[NUMBERS] = ours(workload, [sum(workload.sizes)])
    contestants = [Contestant(name, step, Cpu().flush if cold else nothing) for name, step in steps.items()]
    warm_up(contestants, effort.warmup)
    rounds = interleave(contestants, effort)
    medians = {name: summarise(samples).median for name, samples in rounds.items()}
    common = {"workload": workload.name, "cold": cold, "medians": medians}
    control = asdict(compare(rounds[CONTROL], rounds[OURS]))
    found: list[dict[str, Any]] = [
        common
        | {
            "against": FUSED,
            "ratio": asdict(compare(rounds[FUSED], rounds[OURS])),
            "asked": f"at least {workload.asked:g}",
            "control": control,
            "nanoseconds": rounds,
        }
    ]
    if workload.parts:
        both = [a + b for a, b in zip(rounds[OBJECTS], rounds[NUMBERS], strict=True)]
        found.append(
            common
            | {
                "against": "the sum of its parts",
                "ratio": asdict(compare(rounds[OURS], both)),
                "asked": f"at most {AT_MOST:g}",
                "control": control,
            }
        )
    return found


def per_tensor(cold: bool, effort: Effort, shrink: int) -> dict[str, Any]:
    """Whether ten times as many tensors cost ten times as much, at most."""
    steps = {w.name: ours(w, w.sizes[:: 1 + shrink]) for w in (MANY, FEWER)}
    contestants = [Contestant(name, step, Cpu().flush if cold else nothing) for name, step in steps.items()]
    warm_up(contestants, effort.warmup)
    rounds = interleave(contestants, effort)
    return {
        "workload": f"{MANY.name} AdamW, each tensor",
        "cold": cold,
        "medians": {OURS: summarise(rounds[MANY.name]).median},
        "against": f"of {FEWER.name}",
        "ratio": asdict(scaled(compare(rounds[MANY.name], rounds[FEWER.name]), 0.1)),
        "asked": "at most 1.1",
        "control": None,
        "nanoseconds": rounds,
    }


def table_of(findings: Sequence[dict[str, Any]]) -> Table:
    table = Table("workload", "caches", "against", "ours, us", "ratio", "again", "asked")
    for found in findings:
        ratio = found["ratio"]
        table.add_row(
            found["workload"],
            "cold" if found["cold"] else "warm",
            found["against"],
            f"{found['medians'][OURS] / 1e3:.0f}",
            f"{ratio['value']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})",
            f"{found['control']['value']:.2f}" if found["control"] else "",
            found["asked"],
        )
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few tensors, few rounds: shows that all works")
    parser.add_argument("--only", default="", help="workloads whose names hold this")
    parser.add_argument("--warm", action="store_true", help="without other data between steps")
    parser.add_argument("--threads", type=int, help="torch's threads; by default what torch chooses")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each of the measurements (default: 5)")
    parser.add_argument("--out", type=Path, help="where to write machine, command and raw rounds as JSON")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    effort = Effort(rounds=41, seconds=options.seconds, minimum=7)
    if options.quick:
        effort = replace(effort, rounds=3, minimum=3, warmup=1)
    out, findings, cold = console(), [], not options.warm
    wanted = [w for w in WORKLOADS if options.only.lower() in w.name.lower()]
    for workload in track(wanted, console=out, transient=True):
        few = replace(workload, sizes=workload.sizes[::50]) if options.quick else workload
        findings += measure(few, cold, effort)
    if options.only.lower() in MANY.name:
        findings.append(per_tensor(cold, effort, 99 if options.quick else 0))
    out.print(table_of(findings))
    if options.out:
        command = shlex.join(["python", *sys.argv])
        options.out.write_text(json.dumps({"machine": machine(command), "findings": findings}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
