"""The end of a training step on GPT-2's shapes: clipping, with and without a GradScaler, against torch's own.

python benchmarks/end_of_step.py [--quick] [--threads N] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from protocol import Contestant, Effort, compare, interleave, machine, summarise, verdict, warm_up
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from suites import SUITES, Suite
from torch import Tensor
from torch.nn import Parameter

import fusedopt

OURS, CONTROL, RIVAL = "fusedopt", "fusedopt again", "torch"
MAX_NORM = 1.0  # below the norm of random gradients, so every step clips
SCALE = 2.0**10


@dataclass(frozen=True)
class Task:
    """What is done after a backward pass: by ours inside the step, by torch one after another."""

    name: str
    scaled: bool
    asked: float


TASKS = (
    Task("gpt2-adamw: clip + step", scaled=False, asked=1.25),
    Task("gpt2-adamw: GradScaler unscale_ + clip + step", scaled=True, asked=1.4),
)


class Trainee:
    """Params with an optimizer; gradients are written anew before every turn, since torch's clipping scales them."""

    def __init__(self, task: Task, grads: Sequence[Tensor], library: Any) -> None:
        self.values = grads
        self.params = [Parameter(torch.ones_like(grad)) for grad in grads]
        for param in self.params:
            param.grad = torch.empty_like(param)
        self.ours = library is fusedopt
        if self.ours:
            self.optimizer: Any = fusedopt.AdamW(self.params)
            self.optimizer.max_grad_norm = MAX_NORM
        else:
            self.optimizer = torch.optim.AdamW(self.params, fused=True)
        self.scaler: Any = None
        if task.scaled:
            make = fusedopt.GradScaler if self.ours else torch.amp.GradScaler
            self.scaler = make("cpu", init_scale=SCALE)
            self.scaler.scale(torch.zeros(()))  # as a loss would be, which makes the scale

    def prepare(self) -> None:
        torch._foreach_copy_([param.grad for param in self.params if param.grad is not None], list(self.values))

    def call(self) -> None:
        if self.scaler is None:
            if not self.ours:
                torch.nn.utils.clip_grad_norm_(self.params, MAX_NORM)
            self.optimizer.step()
            return
        if not self.ours:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.params, MAX_NORM)
        self.scaler.step(self.optimizer)
        self.scaler.update()


def trainees(task: Task, suite: Suite) -> dict[str, Trainee]:
    generator = torch.Generator().manual_seed(0)
    scale = SCALE if task.scaled else 1.0
    grads = [torch.randn(shape, generator=generator).mul_(scale) for shape in suite.shapes]
    return {name: Trainee(task, grads, torch if name == RIVAL else fusedopt) for name in (OURS, RIVAL, CONTROL)}


def measure(task: Task, suite: Suite, effort: Effort, tick: Callable[[], object]) -> dict[str, Any]:
    entrants = trainees(task, suite)
    contestants = [Contestant(name, entrant.call, entrant.prepare) for name, entrant in entrants.items()]
    warm_up(contestants, effort.warmup)
    # Three AdamW steps of 0.001 on equal gradients: 1e-6 is a thousandth of one.
    torch.testing.assert_close(entrants[OURS].params, entrants[RIVAL].params, rtol=0, atol=1e-6)
    rounds = interleave(contestants, effort, tick)
    ratio = compare(rounds[RIVAL], rounds[OURS])
    return {
        "task": task.name,
        "tensors": suite.tensors,
        "elements": suite.elements,
        "ratio": asdict(ratio),
        "asked": task.asked,
        "verdict": verdict(ratio, task.asked, control=compare(rounds[CONTROL], rounds[OURS])),
        "nanoseconds": rounds,
    }


def table_of(findings: Sequence[dict[str, Any]]) -> Table:
    table = Table("task", "torch, ms", "ours, ms", "ratio (90 % interval)", "asked")
    for finding in findings:
        theirs, ours = (summarise(finding["nanoseconds"][name]).median / 1e6 for name in (RIVAL, OURS))
        ratio = finding["ratio"]
        interval = f"{ratio['value']:.2f}x ({ratio['low']:.2f} to {ratio['high']:.2f})"
        asked = f"at least {finding['asked']:g}x: {finding['verdict']}"
        table.add_row(finding["task"], f"{theirs:.3g}", f"{ours:.3g}", interval, asked)
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few small tensors: everything runs and proves nothing")
    parser.add_argument("--threads", type=int, help="torch's threads; by default what torch chooses")
    parser.add_argument("--out", type=Path, help="where to write machine, command and raw rounds as JSON")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    suite = SUITES["gpt2"].cut() if options.quick else SUITES["gpt2"]
    effort = Effort(rounds=5, seconds=1) if options.quick else Effort(rounds=41, seconds=120)
    findings = []
    console = Console()
    with Progress(console=console, transient=True) as progress:
        for task in TASKS:
            bar = progress.add_task(task.name, total=effort.rounds)
            findings.append(measure(task, suite, effort, lambda: progress.advance(bar)))  # noqa: B023
    console.print(table_of(findings))
    if options.out:
        command = shlex.join(["python", *sys.argv])
        options.out.write_text(json.dumps({"machine": machine(command), "findings": findings}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
