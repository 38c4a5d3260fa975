"""Steps over small tensors that other work has pushed out of the caches, as a training loop finds them.

python benchmarks/cold.py [--quick] [--only NAME] [--warm] [--threads N] [--seconds N] [--out FILE]

Before every step 64 MiB of other data are written. A step over many tensors is held against torch's best and against
the sum of its parts: a step over as many tensors without elements, which is finding and checking objects, and one over
one tensor of as many elements, which is the numbers.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from rich.table import Table
from torch.nn import Parameter

import fusedopt
from fusedopt.bench.machine import machine
from fusedopt.bench.method import Contestant, Effort, compare, interleave, scaled, summarise, warm_up
from fusedopt.bench.tables import console

OURS, CONTROL = "fusedopt", "fusedopt again"
OBJECTS, NUMBERS = "objects alone", "numbers alone"
OTHER_DATA = 64 << 20
Step = Callable[[], object]


@dataclass(frozen=True)
class Workload:
    """A step of ours over tensors of these sizes against torch's, with what is asked."""

    name: str
    sizes: Sequence[int]
    rule: str = "AdamW"
    words: dict[str, Any] = field(default_factory=dict)
    torchs: Sequence[dict[str, Any]] = ({"fused": True},)
    asked: float = 1.0
    grouped: bool = False
    clips: bool = False
    parts: bool = False  # also against the sum of the two parts, at most so many times


AT_MOST = 1.2  # of the sum of the parts
ALL_THREE = ({"foreach": False}, {"foreach": True}, {"fused": True})
ALL_TWO = ALL_THREE[:2]
THOUSAND = [256] * 1000
WORKLOADS = (
    Workload("1000 x 256 AdamW", THOUSAND, asked=20, parts=True),
    Workload("1000 x 256 SGD", THOUSAND, "SGD", {"momentum": 0.9}, ALL_THREE, asked=12),
    Workload("1000 x 256 RMSprop", THOUSAND, "RMSprop", {}, ALL_TWO, asked=45),
    Workload("480 groups x 256 AdamW", [256] * 480, asked=20, grouped=True),
    Workload("699 tensors of 5 to 2,800 AdamW", [4 * i + 1 + i % 3 for i in range(1, 700)], asked=10),
    Workload("1000 x 256 clip + AdamW", THOUSAND, words={"max_grad_norm": 1.0}, asked=25, clips=True),
)
MANY, FEWER = Workload("10,000 x 64", [64] * 10_000), Workload("1,000 x 64", [64] * 1000)


def params(sizes: Sequence[int], grouped: bool = False) -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    made = [Parameter(torch.randn(size, generator=generator)) for size in sizes]
    for p in made:
        p.grad = torch.randn(p.shape, generator=generator)
    return [{"params": [p]} for p in made] if grouped else made


def ours(workload: Workload, sizes: Sequence[int] | None = None) -> Step:
    held = params(workload.sizes if sizes is None else sizes, workload.grouped)
    step: Step = getattr(fusedopt, workload.rule)(held, **workload.words).step
    return step


def theirs(workload: Workload, words: dict[str, Any]) -> Step:
    held = params(workload.sizes, workload.grouped)
    given = {name: value for name, value in workload.words.items() if name != "max_grad_norm"}
    step: Step = getattr(torch.optim, workload.rule)(held, **given, **words).step
    if not workload.clips:
        return step

    def call() -> None:
        torch.nn.utils.clip_grad_norm_(held, workload.words["max_grad_norm"])
        step()

    return call


def trampling(cold: bool) -> Step:
    """What other work does to the caches between two steps."""
    other = torch.zeros(OTHER_DATA // 4 if cold else 0)
    return lambda: other.add_(1)


def measure(workload: Workload, cold: bool, effort: Effort) -> list[dict[str, Any]]:
    steps = {OURS: ours(workload), CONTROL: ours(workload)}
    steps |= {f"torch {' '.join(words)}": theirs(workload, words) for words in workload.torchs}
    if workload.parts:
        steps[OBJECTS] = ours(workload, [0] * len(workload.sizes))
        steps[NUMBERS] = ours(workload, [sum(workload.sizes)])
    trample = trampling(cold)
    contestants = [Contestant(name, step, trample) for name, step in steps.items()]
    warm_up(contestants, effort.warmup)
    rounds = interleave(contestants, effort)
    medians = {name: summarise(samples).median for name, samples in rounds.items()}
    best = min((name for name in rounds if name.startswith("torch")), key=lambda name: medians[name])
    common = {"workload": workload.name, "cold": cold, "medians": medians}
    control = asdict(compare(rounds[CONTROL], rounds[OURS]))
    found: list[dict[str, Any]] = [
        common
        | {
            "against": best,
            "ratio": asdict(compare(rounds[best], rounds[OURS])),
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
    trample = trampling(cold)
    contestants = [Contestant(name, step, trample) for name, step in steps.items()]
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
