"""What surrounds a step, done inside it: clipping, unscaling, master weights, averages, states in codes; against torch.

python benchmarks/end_of_step.py [--quick] [--threads N] [--device cuda] [--seconds N] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from judging import verdict
from rich.progress import Progress
from rich.table import Table
from torch import Tensor
from torch.nn import Parameter

import fusedopt
from fusedopt.bench.machine import machine
from fusedopt.bench.method import Contestant, Effort, compare, interleave, summarise, warm_up
from fusedopt.bench.suites import SUITES, Suite
from fusedopt.bench.tables import console

OURS, CONTROL, RIVAL = "fusedopt", "fusedopt again", "torch"
MAX_NORM = 1.0  # below the norm of random gradients, so every step clips
SCALE = 2.0**10
EMA_DECAY = 0.999


# What makes the end of a step out of params that have gradients.
Build = Callable[[list[Parameter]], Callable[[], object]]


@dataclass(frozen=True)
class Task:
    """What is done after a backward pass: by ours inside the step, by the rival one after another."""

    name: str
    ours: Build
    theirs: Build
    asked: float
    suite: str = "gpt2"
    dtype: torch.dtype = torch.float32
    grad_scale: float = 1.0
    # How far apart params may be after three steps of 0.001: a thousandth of one.
    atol: float = 1e-6


def clipped(params: list[Parameter]) -> Callable[[], object]:
    return fusedopt.AdamW(params, max_grad_norm=MAX_NORM).step


def clip_then_step(params: list[Parameter]) -> Callable[[], object]:
    optimizer = torch.optim.AdamW(params, fused=True)

    def call() -> None:
        torch.nn.utils.clip_grad_norm_(params, MAX_NORM)
        optimizer.step()

    return call


def scaled(
    params: list[Parameter], make: Any, optimizer: Any, unscale: Callable[[Any], object]
) -> Callable[[], object]:
    device = params[0].device
    scaler = make(device.type, init_scale=SCALE)
    scaler.scale(torch.zeros((), device=device))  # as a loss would be, which makes the scale

    def call() -> None:
        unscale(scaler)
        scaler.step(optimizer)
        scaler.update()

    return call


def clipped_by_scaler(params: list[Parameter]) -> Callable[[], object]:
    optimizer = fusedopt.AdamW(params, max_grad_norm=MAX_NORM)
    return scaled(params, fusedopt.GradScaler, optimizer, lambda scaler: None)


def unscale_clip_step(params: list[Parameter]) -> Callable[[], object]:
    optimizer = torch.optim.AdamW(params, fused=True)

    def unscale(scaler: Any) -> None:
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(params, MAX_NORM)

    return scaled(params, torch.amp.GradScaler, optimizer, unscale)


def master(params: list[Parameter]) -> Callable[[], object]:
    return fusedopt.AdamW(params, master_weights="float32", state_dtype="float32").step


def step_on_master(params: list[Parameter]) -> Callable[[], object]:
    wide = [Parameter(param.detach().float()) for param in params]
    for param in wide:
        param.grad = torch.empty_like(param)
    optimizer = torch.optim.AdamW(wide, fused=True)
    narrow = [param.detach() for param in params]

    def call() -> None:
        torch._foreach_copy_(
            [p.grad for p in wide if p.grad is not None], [p.grad for p in params if p.grad is not None]
        )
        optimizer.step()
        torch._foreach_copy_(narrow, [param.detach() for param in wide])

    return call


def averaged(params: list[Parameter]) -> Callable[[], object]:
    return fusedopt.AdamW(params, ema_decay=EMA_DECAY).step


def step_then_average(params: list[Parameter]) -> Callable[[], object]:
    optimizer = torch.optim.AdamW(params, fused=True)
    averages = [param.detach().clone() for param in params]

    def call() -> None:
        optimizer.step()
        torch._foreach_lerp_(averages, [param.detach() for param in params], 1 - EMA_DECAY)

    return call


def stored(storage: str | None) -> Build:
    return lambda params: fusedopt.AdamW(params, state_dtype=storage).step


TASKS = (
    Task("gpt2-adamw: clip + step", clipped, clip_then_step, 1.25),
    Task("gpt2-adamw: GradScaler unscale_ + clip + step", clipped_by_scaler, unscale_clip_step, 1.4, grad_scale=SCALE),
    Task("gpt2-adamw: bfloat16 params, float32 master", master, step_on_master, 1.3, dtype=torch.bfloat16, atol=4e-3),
    Task("gpt2-adamw: step + moving average", averaged, step_then_average, 1.3),
    # Codes against our own float32 state; roundings are some per cent of a step, in 4 bits up to a half.
    Task(
        "1x32Mi-adamw: 8-bit state against float32 state", stored("int8"), stored(None), 1.0, suite="1x32Mi", atol=3e-3
    ),
    Task(
        "1x32Mi-adamw: 4-bit state against float32 state", stored("int4"), stored(None), 1.0, suite="1x32Mi", atol=2e-2
    ),
)


class Trainee:
    """Params with an end of a step; gradients are written anew before every turn, as torch scales them to clip."""

    def __init__(self, build: Build, grads: Sequence[Tensor]) -> None:
        self.values = grads
        self.params = [Parameter(torch.ones_like(grad)) for grad in grads]
        for param in self.params:
            param.grad = torch.empty_like(param)
        self.end = build(self.params)

    def call(self) -> None:
        self.end()
        self.wait()

    def prepare(self) -> None:
        torch._foreach_copy_([param.grad for param in self.params if param.grad is not None], list(self.values))
        self.wait()

    def wait(self) -> None:
        """Until a GPU is done, if the params are on one."""
        if self.params[0].is_cuda:
            torch.cuda.synchronize()


def trainees(task: Task, suite: Suite, device: str = "cpu") -> dict[str, Trainee]:
    generator = torch.Generator().manual_seed(0)
    grads = [
        torch.randn(shape, generator=generator).mul_(task.grad_scale).to(device, task.dtype) for shape in suite.shapes
    ]
    return {name: Trainee(task.theirs if name == RIVAL else task.ours, grads) for name in (OURS, RIVAL, CONTROL)}


def measure(
    task: Task, suite: Suite, effort: Effort, tick: Callable[[], object], device: str = "cpu"
) -> dict[str, Any]:
    entrants = trainees(task, suite, device)
    contestants = [Contestant(name, entrant.call, entrant.prepare) for name, entrant in entrants.items()]
    warm_up(contestants, effort.warmup)
    torch.testing.assert_close(entrants[OURS].params, entrants[RIVAL].params, rtol=0, atol=task.atol)
    rounds = interleave(contestants, effort, tick)
    ratio = compare(rounds[RIVAL], rounds[OURS])
    return {
        "task": task.name,
        "tensors": suite.tensors,
        "elements": suite.elements,
        "device": device,
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
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the params are (default: cpu)")
    parser.add_argument("--seconds", type=float, help="for all tasks together, beside what setting them up takes")
    parser.add_argument("--out", type=Path, help="where to write machine, command and raw rounds as JSON")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU")
    effort = Effort(rounds=5, seconds=1) if options.quick else Effort(rounds=41, seconds=120)
    if options.seconds:
        effort = replace(effort, seconds=options.seconds / len(TASKS))
    findings = []
    out = console()
    with Progress(console=out, transient=True) as progress:
        for task in TASKS:
            bar = progress.add_task(task.name, total=effort.rounds)
            suite = SUITES[task.suite].cut() if options.quick else SUITES[task.suite]
            tick = partial(progress.advance, bar)
            findings.append(measure(task, suite, effort, tick, options.device))
    out.print(table_of(findings))
    if options.out:
        command = shlex.join(["python", *sys.argv])
        options.out.write_text(json.dumps({"machine": machine(command), "findings": findings}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
