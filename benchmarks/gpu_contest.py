"""Contestants that only a GPU has: graphs, a compiled step, other packages' optimizers, and a copy as the ceiling."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from contest import CONTROL, COPY, OURS, Contest, Entrant, enter, make_optimizer
from gpu_clock import Clock
from protocol import Contestant
from torch import Tensor

from fusedopt import _C

GRAPHED, OURS_GRAPHED = "torch fused, graphed", "fusedopt, graphed"
COMPILED = "torch compiled"

# Packages that may be there: where their Adam is, and what makes it AdamW.
FOREIGN: dict[str, tuple[str, dict[str, Any]]] = {
    "apex": ("apex.optimizers", {"lr": 1e-3, "weight_decay": 0.01, "adam_w_mode": True}),
    "TransformerEngine": (
        "transformer_engine.pytorch.optimizers",
        {"lr": 1e-3, "weight_decay": 0.01, "adam_w_mode": True},
    ),
}


def absent() -> list[str]:
    """The packages of FOREIGN that are not installed."""
    return [name for name, (module, _) in FOREIGN.items() if not importlib.util.find_spec(module.partition(".")[0])]


def make(contest: Contest, name: str, params: list[Tensor]) -> torch.optim.Optimizer:
    if name in FOREIGN:
        module, arguments = FOREIGN[name]
        foreign: torch.optim.Optimizer = importlib.import_module(module).FusedAdam(params, **arguments)
        return foreign
    if name in (GRAPHED, OURS_GRAPHED):
        capturable = replace(contest, arguments={**contest.arguments, "capturable": True})
        return make_optimizer(capturable, "torch fused" if name == GRAPHED else OURS, params)
    if name == COMPILED:
        # A number would be compiled into the step, and every change of a scheduler's would compile it anew.
        tensor_lr = replace(contest, arguments={**contest.arguments, "lr": torch.tensor(1e-3)})
        return make_optimizer(tensor_lr, "torch default", params)
    return make_optimizer(contest, name, params)


class Replay:
    """Steps a few times as usual, until its gradients stay the same tensors; then captures a step and replays it."""

    def __init__(self, step: Callable[[], object], clock: Clock) -> None:
        self.step = step
        self.clock = clock
        self.calls = 0
        self.replay: Callable[[], object] | None = None

    def __call__(self) -> None:
        self.calls += 1
        if self.calls <= 3:
            self.step()
            return
        if self.replay is None:
            self.replay = self.clock.capture(self.step)
        self.replay()


def compiled(step: Callable[[], object]) -> Callable[[], object]:
    @torch.compile(fullgraph=False)
    def call() -> None:
        step()

    return call


class Copy:
    """A device-to-device copy: as much memory traffic as a step of that many bytes needs at the very least."""

    def __init__(self, source: Tensor, target: Tensor) -> None:
        self.source, self.target = source, target
        self.traffic = source.nbytes + target.nbytes

    def __call__(self) -> None:
        self.target.copy_(self.source)


def copies(sizes: Sequence[int], clock: Clock) -> dict[int, Copy]:
    """Copies of so many bytes out of one buffer into another; random, since memory can be faster on zeros."""
    source, target = (torch.randn(max(sizes) // 4, device=clock.device) for _ in range(2))
    return {size: Copy(source[: size // 4], target[: size // 4]) for size in sizes}


def enter_gpu(contest: Contest, clock: Clock, copy: Copy | None) -> tuple[dict[str, Entrant], dict[str, Contestant]]:
    """As ``enter``, with the contestants by name and COPY among them where there is one."""
    entrants, plain = enter(contest, clock.device, make)
    contestants = {contestant.name: contestant for contestant in plain}
    for name in (GRAPHED, OURS_GRAPHED):
        if name in contestants:
            contestants[name] = replace(contestants[name], call=Replay(contestants[name].call, clock))
    if COMPILED in contestants:
        contestants[COMPILED] = replace(contestants[COMPILED], call=compiled(contestants[COMPILED].call))
    if copy:
        contestants[COPY] = Contestant(COPY, copy)
    return entrants, contestants


def enter_alignment(aligned: Contest, misaligned: Contest, clock: Clock) -> tuple[list[Contestant], dict[str, int]]:
    """Ours on two suites of one size, of which the second defeats vector loads; and the bytes of a step of each."""
    contestants, traffics = [], {}
    for contest, names in ((aligned, ("aligned",)), (misaligned, (OURS, CONTROL))):
        entrants, _ = enter(contest, clock.device, make)
        for name, entrant in zip(names, entrants.values(), strict=False):
            contestants.append(entrant.contestant(name))
            entrant.prepare()
            entrant.optimizer.step()
            traffics[name] = traffic(entrant.optimizer)
    return contestants, traffics


def traffic(optimizer: torch.optim.Optimizer) -> int:
    """The bytes that a step cannot do without: param read and written, gradient read, states read and written.

    The states are those that one of our optimizers holds after its first step; torch's hold the same.
    """
    rule: str = optimizer._rule  # type: ignore[attr-defined]
    counters = _C.rules().get(rule, {"counters": ["step"]})["counters"]
    total = 0
    for group in optimizer.param_groups:
        for param in group["params"]:
            state = optimizer.state[param].items()
            kept = [value for key, value in state if key not in counters and value is not None]
            total += 2 * param.nbytes + param.grad.nbytes + 2 * sum(value.nbytes for value in kept)
    return total


def footprint(contest: Contest, contestants: int) -> int:
    """About the bytes of device memory that the contest takes, at Adam's two states."""
    element = contest.dtype.itemsize
    state = (contest.state_dtype or contest.dtype).itemsize
    # The values to begin with and the pool of gradients are made in float32.
    return contest.suite.elements * (contestants * (2 * element + 2 * state) + 2 * element + 4)
