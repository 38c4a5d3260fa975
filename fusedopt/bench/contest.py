"""Contestants over one suite: each library steps its own copy of the same parameters on the same gradients."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .baselines import BASELINES, CONTROL, OURS, Baseline
from .clock import Clock, Cpu
from .kernel import KERNEL, OneTensor
from .method import Contestant
from .placement import CONTIGUOUS, place
from .streaming import BARE, FLOORS, BareLoop
from .suites import Suite


@dataclass(frozen=True)
class Contest:
    """One measurement: an optimizer over a suite, ours (twice, as the A/A control) against ``rivals``."""

    suite: Suite
    optimizer: str
    rivals: tuple[str, ...]
    arguments: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    # New gradient tensors before every step, as after a backward pass, or the same ones step after step.
    fresh: bool = False
    # What the optimizer's state is kept in; None: in what the params are.
    state_dtype: torch.dtype | None = None
    # How far apart results may be. torch adds the squares of a tensor in float32, which for Adafactor's 38 million of
    # an embedding is 0.3 % off, and so is a step of hundredths.
    atol: float = 1e-5
    layout: str = CONTIGUOUS
    # So many param groups, of as equal numbers of tensors as can be; None: as the suite has them.
    groups: int | None = None

    @property
    def name(self) -> str:
        suffix = "" if self.dtype == torch.float32 else f"-{short(self.dtype)}"
        suffix += f"-{short(self.state_dtype)}-state" if self.state_dtype else ""
        suffix += "" if self.layout == CONTIGUOUS else f"-{self.layout}"
        suffix += "" if self.groups is None else f"-{self.groups}groups"
        return f"{self.suite.name}-{self.optimizer}{suffix}{'-fresh' if self.fresh else ''}".lower()

    @property
    def group_count(self) -> int:
        return self.groups or (self.suite.tensors if self.suite.group_each else 1)

    def facts(self) -> dict[str, Any]:
        """What the JSON says of it beside the rounds."""
        return {
            "suite": self.suite.name,
            "tensors": self.suite.tensors,
            "elements": self.suite.elements,
            "groups": self.group_count,
            **({"gradient_rows": self.suite.rows} if self.suite.rows else {}),
            "layout": self.layout,
            "optimizer": self.optimizer,
            "arguments": self.arguments,
            "dtype": str(self.dtype),
            "state_dtype": str(self.state_dtype or self.dtype),
            "fresh": self.fresh,
        }

    def baseline(self, name: str) -> Baseline:
        """Who takes part under ``name``."""
        return BASELINES[name]

    def grouped(self, params: list[Tensor]) -> list[Any]:
        """The params as an optimizer takes them; each group has a learning rate of its own."""
        count = min(self.group_count, len(params))
        if count == 1:
            return params
        base = self.arguments.get("lr", 1e-3)
        ends = [len(params) * i // count for i in range(count + 1)]
        return [
            {"params": params[begin:end], "lr": base * (1 + i / count)}
            for i, (begin, end) in enumerate(itertools.pairwise(ends))
        ]


def short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


class GradientPool:
    """Random gradients, new ones every turn at the price of a copy: windows at moving offsets of one random buffer."""

    SLACK, STRIDE = 4096, 61  # coprime, so 4096 turns pass before a window returns

    def __init__(self, sizes: Sequence[int], dtype: torch.dtype, generator: torch.Generator, offset: int = 0) -> None:
        self.sizes = list(sizes)
        self.total = sum(sizes)
        self.offset = offset
        self.values = torch.randn(self.total + self.SLACK, generator=generator, device=generator.device).to(dtype)

    def draw(self, turn: int) -> list[Tensor]:
        window = self.values.narrow(0, turn * self.STRIDE % self.SLACK, self.total)
        return [place(part, offset=self.offset) for part in window.split(self.sizes)]


class RowPool(GradientPool):
    """Sparse gradients of tables: new rows and new values every turn, each row once."""

    def __init__(self, suite: Suite, dtype: torch.dtype, generator: torch.Generator) -> None:
        super().__init__([suite.rows * math.prod(shape[1:]) for shape in suite.shapes], dtype, generator)
        self.suite = suite
        self.orders = [torch.randperm(shape[0], generator=generator, device=generator.device) for shape in suite.shapes]

    def draw(self, turn: int) -> list[Tensor]:
        grads = []
        for values, order, shape in zip(super().draw(turn), self.orders, self.suite.shapes, strict=True):
            first = turn * self.suite.rows % (shape[0] - self.suite.rows + 1)
            rows = order[first : first + self.suite.rows]
            where = (rows.sort().values if self.suite.coalesced else rows)[None]
            values = values.view(-1, *shape[1:])
            coalesced = self.suite.coalesced
            # Unchecked, as autograd makes them.
            grads.append(torch.sparse_coo_tensor(where, values, shape, is_coalesced=coalesced, check_invariants=False))
        return grads


class Entrant:
    """An optimizer with parameters of its own.

    ``prepare`` gives it new gradient tensors: in the first calls, so that agreement means something, and in all
    if ``fresh``, as a backward pass would. In ``dtype``, if that is given, instead of the contest's.
    """

    def __init__(
        self,
        contest: Contest,
        baseline: Baseline,
        values: Sequence[Tensor],
        pool: GradientPool,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.contest, self.pool = contest, pool
        self.in_place = baseline.keeps_gradients
        self.dtype = dtype or contest.dtype
        # Own copies, so that no contestant finds its data in the cache thanks to another.
        self.params = [
            place(value.to(self.dtype), contest.layout, contest.suite.offset).requires_grad_() for value in values
        ]
        self.turn = 0
        self.optimizer = baseline.make(contest, contest.grouped(self.params))

    def draw(self) -> list[Tensor]:
        """Gradients with the strides of their params, as autograd makes them."""
        grads = []
        for grad, param in zip(self.pool.draw(self.turn), self.params, strict=True):
            grad = grad if grad.dtype == self.dtype else grad.to(self.dtype)
            if not grad.is_sparse:
                grad = grad.view(param.shape)
                grad = grad if self.contest.layout == CONTIGUOUS else place(grad, self.contest.layout)
            grads.append(grad)
        return grads

    def prepare(self) -> None:
        if self.turn == 1 and self.contest.state_dtype and self.dtype == self.contest.dtype:
            self.convert_state(self.contest.state_dtype)
        if self.turn >= 3 and not self.contest.fresh:
            return
        self.renew(self.in_place)

    def renew(self, in_place: bool) -> None:
        """The next gradients, in new tensors or in those that there are."""
        for param, grad in zip(self.params, self.draw(), strict=True):
            if in_place and param.grad is not None and not grad.is_sparse:
                param.grad.copy_(grad)
            else:
                param.grad = grad
        self.turn += 1

    def convert_state(self, dtype: torch.dtype) -> None:
        for state in self.optimizer.state.values():
            for key, value in state.items():
                if key != "step":
                    state[key] = value.to(dtype)

    def contestant(self, name: str, clock: Clock | None = None) -> Contestant:
        call = self.contest.baseline(name).wrap(self.optimizer, clock or Cpu())
        if isinstance(self.optimizer, torch.optim.LBFGS):
            return Contestant(name, lambda: self.optimizer.step(lambda: 0.0), self.prepare_quadratic)
        return Contestant(name, call, self.prepare)

    @torch.no_grad()
    def prepare_quadratic(self) -> None:
        """Gradients of a quadratic, as its closure would find them: random ones have no curvature to remember."""
        if self.turn == 0:
            self.curvatures = [part.abs() + 0.1 for part in self.draw()]
        for param, curvature in zip(self.params, self.curvatures, strict=True):
            param.grad = curvature * param
        self.turn += 1


class Stage:
    """The values and the gradients that all entrants of a contest share. ``scale`` is the deviation of the values."""

    def __init__(self, contest: Contest, device: torch.device, scale: float = 1.0) -> None:
        generator = torch.Generator(device).manual_seed(0)
        suite, dtype = contest.suite, contest.dtype
        self.contest = contest
        self.values = [
            torch.randn(shape, generator=generator, device=device).mul_(scale).to(dtype) for shape in suite.shapes
        ]
        dense = not suite.rows
        self.pool = (
            GradientPool(suite.sizes, dtype, generator, suite.offset) if dense else RowPool(suite, dtype, generator)
        )

    def entrant(self, name: str) -> Entrant:
        return Entrant(self.contest, self.contest.baseline(name), self.values, self.pool)


def enter(contest: Contest, clock: Clock | None = None) -> tuple[dict[str, Entrant], list[Contestant]]:
    """Everybody's parameters, and the contestants in the order of the first round; on the CPU without a clock."""
    clock = clock or Cpu()
    stage = Stage(contest, clock.device)
    names = (OURS, *(name for name in contest.rivals if name not in (*FLOORS, KERNEL)), CONTROL)
    entrants = {name: stage.entrant(name) for name in names}
    contestants = [entrant.contestant(name, clock) for name, entrant in entrants.items()]
    if KERNEL in contest.rivals:
        contestants.append(Contestant(KERNEL, OneTensor(contest, stage.pool.total)))
    if BARE in contest.rivals:
        contestants.append(Contestant(BARE, BareLoop(stage.pool.total)))
    return entrants, contestants


def check_agreement(entrants: dict[str, Entrant], stray: float = 0, atol: float = 1e-5) -> None:
    """Raise AssertionError unless all hold the same parameters up to rounding: a wrong result is not worth timing.

    ``stray`` is the share of a tensor's elements that may differ by more. Among hundreds of millions in 16 bits a few
    were within a rounding of a tie several times in a row.
    """
    # The default atol of 1e-5 supposes float32 state; a moment held in 16 bits is up to 0.4 % off, and so are updates.
    half = entrants[OURS].params[0].dtype != torch.float32
    rtol, atol = (1.6e-2, 1e-4) if half else (1.3e-6, atol)
    for name, entrant in entrants.items():
        for index, (ours, theirs) in enumerate(zip(entrants[OURS].params, entrant.params, strict=True)):
            if theirs.equal(ours):  # as the control's always are: tolerances take longer
                continue
            apart = int(torch.isclose(theirs, ours, rtol=rtol, atol=atol).logical_not().sum())
            if apart <= stray * ours.numel():
                continue
            try:
                torch.testing.assert_close(theirs, ours, rtol=rtol, atol=atol)
            except AssertionError as error:
                raise AssertionError(f"{name} and {OURS} differ in tensor {index}: {error}") from error
