"""What the host does of a step with offload="cpu": bfloat16 gradients in and params out, float32 states and masters.

python benchmarks/offload.py [--quick] [--threads N] [--seconds N] [--out FILE]

GPT-2 small, 124 M params, against DeepSpeed's CPU Adam with its copies, as ZeRO-Offload steps: gradients are converted
to a float32 buffer, the step is made on one flat tensor, and params are converted back. Its package is in the
environment that `make test-peers` makes: .venv-peers/bin/python benchmarks/offload.py, with PYTHONPATH=. there. The
first run compiles its step for this processor. It takes 11 GB of memory.

On a GPU both also copy between device and host, beside the step, which a machine without one cannot show. `with copies`
does that as the processor can: gradients and params are copied to buffers of the size of all, stepped there, and params
copied back. A buffer of a real run is 32 MiB and filled by the GPU.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import json
import math
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor
from torch.nn import Parameter

import fusedopt
from fusedopt.bench.machine import machine
from fusedopt.bench.method import Contestant, Effort, compare, interleave, summarise, warm_up
from fusedopt.bench.suites import gpt2
from fusedopt.bench.tables import console

OURS, CONTROL, COPYING = "fusedopt", "fusedopt again", "fusedopt with copies"
TORCH, DEEPSPEED = "torch fused and conversions", "DeepSpeed and conversions"
ASKED = 1.3
ADAMW: dict[str, Any] = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}


def model(quick: bool) -> tuple[list[Tensor], list[Tensor]]:
    """Params and gradients in bfloat16."""
    shapes = gpt2()[2:15] if quick else gpt2()
    generator = torch.Generator().manual_seed(0)
    params = [torch.randn(shape, generator=generator).bfloat16() for shape in shapes]
    return params, [torch.randn(shape, generator=generator).mul_(0.1).bfloat16() for shape in shapes]


class Ours:
    """The step where gradients and params are, in 16 bits; `copies` if that is elsewhere."""

    def __init__(self, params: Sequence[Tensor], grads: Sequence[Tensor], copies: bool) -> None:
        self.params = [p.clone() for p in params]
        self.here = [Parameter(p.clone() if copies else p) for p in self.params]
        self.grads, self.copies = list(grads), copies
        self.values = [p.detach() for p in self.here]
        for param, grad in zip(self.here, grads, strict=True):
            param.grad = grad.clone() if copies else grad
        self.arrived = [p.grad for p in self.here if p.grad is not None]
        self.optimizer = fusedopt.AdamW(self.here, master_weights="float32", state_dtype="float32", **ADAMW)

    def __call__(self) -> None:
        if not self.copies:
            self.optimizer.step()
            return
        torch._foreach_copy_(self.arrived, self.grads)
        torch._foreach_copy_(self.values, self.params)
        self.optimizer.step()
        torch._foreach_copy_(self.params, self.values)


class Flat:
    """A step in float32 on one tensor of all params, between conversions of gradients and params."""

    def __init__(self, params: Sequence[Tensor], grads: Sequence[Tensor], make: Callable[[list[Any]], Any]) -> None:
        self.params, self.grads = [p.clone() for p in params], list(grads)
        flat = Parameter(torch.cat([p.flatten() for p in params]).float())
        flat.grad = torch.zeros_like(flat)
        sizes = [p.numel() for p in params]
        self.masters = [m.view_as(p) for m, p in zip(flat.detach().split(sizes), params, strict=True)]
        self.wide = [g.view_as(p) for g, p in zip(flat.grad.split(sizes), params, strict=True)]
        self.optimizer = make([flat])

    def __call__(self) -> None:
        torch._foreach_copy_(self.wide, self.grads)
        self.optimizer.step()
        torch._foreach_copy_(self.params, self.masters)


def deepspeeds(params: list[Any]) -> Any:
    adam = importlib.import_module("deepspeed.ops.adam")
    return adam.DeepSpeedCPUAdam(params, adamw_mode=True, fp32_optimizer_states=True, **ADAMW)


def steps_of(params: Sequence[Tensor], grads: Sequence[Tensor]) -> dict[str, Any]:
    made: dict[str, Any] = {name: Ours(params, grads, copies=False) for name in (OURS, CONTROL)}
    made[COPYING] = Ours(params, grads, copies=True)
    made[TORCH] = Flat(params, grads, lambda flat: torch.optim.AdamW(flat, fused=True, **ADAMW))
    if importlib.util.find_spec("deepspeed"):
        made[DEEPSPEED] = Flat(params, grads, deepspeeds)
    return made


def check_agreement(made: dict[str, Any]) -> None:
    """Raise AssertionError unless all have come to the same params: a wrong result is not worth timing."""
    for name, one in made.items():
        for ours, theirs in zip(made[OURS].params, one.params, strict=True):
            apart = int(torch.isclose(theirs.float(), ours.float(), rtol=1.6e-2, atol=1e-4).logical_not().sum())
            assert apart <= 1e-6 * ours.numel(), f"{name} and {OURS} differ in {apart} of {ours.numel()} elements"


def table_of(findings: Sequence[dict[str, Any]]) -> Table:
    table = Table("ours", "against", "ours, ms", "theirs, ms", "times as fast", "asked")
    for found in findings:
        ratio = found["ratio"]
        table.add_row(
            found["ours"],
            found["against"],
            f"{found['medians'][found['ours']] / 1e6:.1f}",
            f"{found['medians'][found['against']] / 1e6:.1f}",
            f"{ratio['value']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})",
            f"at least {found['asked']:g}" if found["asked"] else "",
        )
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few params, few rounds: shows that all works")
    parser.add_argument("--threads", type=int, help="torch's threads; by default what torch chooses")
    parser.add_argument("--seconds", type=float, default=60.0, help="of measuring (default: 60)")
    parser.add_argument("--out", type=Path, help="where to write machine, command and raw rounds as JSON")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    out = console()
    effort = Effort(rounds=31, seconds=options.seconds, minimum=7, warmup=2)
    if options.quick:
        effort = replace(effort, rounds=3, minimum=3, warmup=1)
    made = steps_of(*model(options.quick))
    contestants = [Contestant(name, step) for name, step in made.items()]
    warm_up(contestants, effort.warmup)
    check_agreement(made)
    rounds = interleave(contestants, effort)
    medians = {name: summarise(samples).median for name, samples in rounds.items()}
    findings = [
        {
            "ours": ours,
            "against": rival,
            "medians": medians,
            "ratio": asdict(compare(rounds[rival], rounds[ours])),
            "asked": ASKED if (ours, rival) == (OURS, DEEPSPEED) else None,
        }
        for rival in (CONTROL, TORCH, DEEPSPEED)
        if rival in rounds
        for ours in ((OURS,) if rival == CONTROL else (OURS, COPYING))
    ]
    out.print(table_of(findings))
    versions = {"torch": str(torch.__version__)}
    if DEEPSPEED in made:
        versions["deepspeed"] = importlib.metadata.version("deepspeed")
    else:
        out.print("DeepSpeed is not installed here; .venv-peers, which `make test-peers` makes, has it")
    if options.out:
        numel = sum(math.prod(p.shape) for p in made[OURS].params)
        facts = {"machine": machine(shlex.join(["python", *sys.argv])), "versions": versions, "params": numel}
        options.out.write_text(json.dumps({**facts, "findings": findings, "nanoseconds": rounds}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
