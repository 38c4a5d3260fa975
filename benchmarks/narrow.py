"""What a step costs in every storage: all rules against torch's best in the dtype, float16, and states in fewer bits.

python benchmarks/narrow.py [--quick] [--only NAME] [--threads N] [--seconds N] [--out FILE]

Params, gradients and states of one tensor of 4 Mi elements in each dtype against torch's three implementations; AdamW
over 32 Mi float32 params with states in each `state_dtype` against float32 states. A `bare loop` in the latter moves
the bytes of float32 states and computes next to nothing: what its time says of the memory bounds what fewer bytes gain.
Every mix of storages that has float16 in it, of every rule, against the same mix with bfloat16 in its place, which has
as many bytes.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from rich.table import Table
from torch.nn import Parameter

import fusedopt
from fusedopt.bench.contest import short
from fusedopt.bench.machine import machine
from fusedopt.bench.method import Contestant, Effort, compare, interleave, summarise, warm_up
from fusedopt.bench.streaming import BARE, BareLoop
from fusedopt.bench.tables import console

OURS, CONTROL = "fusedopt", "fusedopt again"
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.complex64)
STORAGES = ("bfloat16", "float16", "int8", "int4")
# Where torch has a choice of implementations.
WORDS: dict[str, dict[str, Any]] = {
    "torch for-loop": {"foreach": False},
    "torch foreach": {"foreach": True},
    "torch fused": {"fused": True},
}
RULES: dict[str, dict[str, Any]] = {
    "AdamW": {},
    "SGD": {"momentum": 0.9},
    "RMSprop": {},
    "Adagrad": {},
    "Adadelta": {},
    "Adamax": {},
    "NAdam": {},
    "RAdam": {},
    "ASGD": {},
    "Rprop": {},
}
# How much faster than torch's best it shall be: nowhere slower, and by dtype of AdamW.
NOWHERE_SLOWER = 1.0
ASKED = {
    torch.float16: 1.1,
    torch.float64: 1.05,
    torch.complex64: 5.5,
}
STATES_ASKED = 1.3
# What is in float16, or in bfloat16: whether params, whether gradients, and the options for it.
NARROW = "float16 or bfloat16"
MIXES: dict[str, tuple[bool, bool, dict[str, Any]]] = {
    "params, gradients and states": (True, True, {}),
    "params and gradients, float32 states": (True, True, {"state_dtype": "float32"}),
    "params and gradients, float32 master": (True, True, {"master_weights": "float32"}),
    "gradients of float32 params": (False, True, {}),
    "states of float32 params": (False, False, {"state_dtype": NARROW}),
}
MIXES_ASKED = 1 / 1.2
# Sparse gradients, products of matrices, a closure's searches, factors of matrices, and whoever writes the rule.
OTHERS = {"SparseAdam", "Muon", "LBFGS", "Adafactor", "GenericOptimizer"}
ELEMENTS, MORE_ELEMENTS, FEW = 4 << 20, 32 << 20, 1 << 16


def one_param(dtype: torch.dtype, elements: int) -> list[Parameter]:
    generator = torch.Generator().manual_seed(0)
    param = Parameter(torch.randn(elements, dtype=dtype, generator=generator))
    param.grad = torch.randn(elements, dtype=dtype, generator=generator)
    return [param]


def finding(title: str, against: str, rounds: dict[str, list[int]], asked: float) -> dict[str, Any]:
    """How much faster the best of all others is outrun, with the control and every round."""
    others = [name for name in rounds if name not in (OURS, CONTROL, BARE)]
    best = min(others, key=lambda name: summarise(rounds[name]).median)
    return {
        "workload": title,
        "against": best if against == "best" else against,
        "medians": {name: summarise(samples).median for name, samples in rounds.items()},
        "ratio": asdict(compare(rounds[best], rounds[OURS])),
        "control": asdict(compare(rounds[CONTROL], rounds[OURS])),
        "asked": asked,
        "nanoseconds": rounds,
    }


def in_dtype(rule: str, dtype: torch.dtype, elements: int, effort: Effort) -> dict[str, Any] | None:
    """Ours against all implementations of torch's that take the dtype; None where there is none."""
    steps: dict[str, Callable[[], object]] = {}
    for name, words in WORDS.items():
        optimizer = getattr(torch.optim, rule)
        try:
            step = optimizer(one_param(dtype, elements), **RULES[rule], **words).step
            step()
        except (RuntimeError, TypeError, ValueError):  # it has no such implementation, or not of this dtype
            continue
        steps[name] = step
    if not steps:
        return None
    for name in (OURS, CONTROL):
        steps[name] = getattr(fusedopt, rule)(one_param(dtype, elements), **RULES[rule]).step
    contestants = [Contestant(name, step) for name, step in steps.items()]
    warm_up(contestants, effort.warmup)
    asked = ASKED.get(dtype, NOWHERE_SLOWER) if rule == "AdamW" else NOWHERE_SLOWER
    return finding(f"{rule}, all {short(dtype)}", "best", interleave(contestants, effort), asked)


def every_rule() -> list[str]:
    """The classes that step any tensor element by element."""
    classes = [value for value in vars(fusedopt).values() if isinstance(value, type)]
    names = {cls.__name__ for cls in classes if issubclass(cls, torch.optim.Optimizer)}
    return sorted(names - OTHERS)


def title_of(rule: str, mix: str) -> str:
    return f"{rule}, float16 {mix}"


def in_mix(rule: str, mix: str, elements: int, effort: Effort) -> dict[str, Any] | None:
    """Ours with float16 in some places against ours with bfloat16 there; None where the rule refuses such states."""
    of_param, of_grad, options = MIXES[mix]
    contestants = []
    for name, dtype in (("bfloat16", torch.bfloat16), (OURS, torch.float16), (CONTROL, torch.float16)):
        (param,) = one_param(dtype if of_param else torch.float32, elements)
        if of_grad and not of_param:
            assert param.grad is not None
            grad, param.grad = param.grad.to(dtype), None
            param.grad_dtype = dtype
            param.grad = grad
        words = {key: short(dtype) if value == NARROW else value for key, value in options.items()}
        try:
            optimizer = getattr(fusedopt, rule)([param], **RULES.get(rule, {}), **words)
        except ValueError:
            return None
        contestants.append(Contestant(name, optimizer.step))
    warm_up(contestants, effort.warmup)
    return finding(title_of(rule, mix), "the same with bfloat16", interleave(contestants, effort), MIXES_ASKED)


def in_states(elements: int, effort: Effort) -> list[dict[str, Any]]:
    """AdamW's step by how its states are stored, all in one run."""
    made = {name: one_param(torch.float32, elements) for name in ("float32", CONTROL, *STORAGES)}
    contestants = [
        Contestant(name, fusedopt.AdamW(params, state_dtype="float32" if name == CONTROL else name).step)
        for name, params in made.items()
    ]
    contestants.append(Contestant(BARE, BareLoop(elements)))
    warm_up(contestants, effort.warmup)
    rounds = interleave(contestants, effort)
    found = []
    for storage in STORAGES:
        few = {"float32": rounds["float32"], OURS: rounds[storage], CONTROL: rounds[storage], BARE: rounds[BARE]}
        line = finding(f"AdamW, float32 with {storage} states", "float32 states", few, STATES_ASKED)
        found.append(line | {"control": asdict(compare(rounds["float32"], rounds[CONTROL]))})
    return found


def table_of(findings: Sequence[dict[str, Any]]) -> Table:
    table = Table("workload", "against", "theirs, ms", "ours, ms", "times as fast", "again", "asked")
    for found in findings:
        ratio, medians = found["ratio"], found["medians"]
        theirs = next(median for name, median in medians.items() if name not in (OURS, CONTROL, BARE))
        theirs = medians.get(found["against"], theirs)
        table.add_row(
            found["workload"],
            found["against"],
            f"{theirs / 1e6:.3f}",
            f"{medians[OURS] / 1e6:.3f}",
            f"{ratio['value']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})",
            f"{found['control']['value']:.2f}",
            f"at least {found['asked']:.3g}",
        )
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few elements, few rounds: shows that all works")
    parser.add_argument("--only", default="", help="workloads whose names hold this")
    parser.add_argument("--threads", type=int, help="torch's threads; by default what torch chooses")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each of the measurements (default: 2)")
    parser.add_argument("--out", type=Path, help="where to write machine, command and raw rounds as JSON")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    effort = Effort(rounds=21, seconds=options.seconds, minimum=5, warmup=2)
    if options.quick:
        effort = replace(effort, rounds=3, minimum=3, warmup=1)
    out = console()
    wanted = options.only.lower()
    findings: list[dict[str, Any]] = []
    if wanted in "adamw, float32 with states":
        longer = replace(effort, seconds=10 * options.seconds)
        findings += in_states(FEW if options.quick else MORE_ELEMENTS, longer)
    work = [(rule, dtype) for rule in RULES for dtype in DTYPES if wanted in f"{rule}, all {short(dtype)}".lower()]
    for rule, dtype in track(work, console=out, transient=True):
        found = in_dtype(rule, dtype, FEW if options.quick else ELEMENTS, effort)
        findings += [found] if found else []
    pairs = [(rule, mix) for rule in every_rule() for mix in MIXES]
    pairs = [(rule, mix) for rule, mix in pairs if wanted in title_of(rule, mix).lower()]
    for rule, mix in track(pairs, console=out, transient=True):
        found = in_mix(rule, mix, FEW if options.quick else ELEMENTS, effort)
        findings += [found] if found else []
    out.print(table_of(findings))
    if options.out:
        command = shlex.join(["python", *sys.argv])
        options.out.write_text(json.dumps({"machine": machine(command), "findings": findings}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
