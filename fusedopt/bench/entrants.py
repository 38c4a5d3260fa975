"""Contestants over one suite: each library steps its own copy of the same parameters on the same gradients."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .baselines import BASELINES, CONTROL, OURS, Baseline
from .clock import Clock, Cpu
from .contest import Contest
from .kernel import KERNEL, OneTensor
from .method import Contestant
from .placement import CONTIGUOUS, place
from .streaming import BARE, FLOORS, BareLoop
from .suites import Suite


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
        self.contest, self.baseline, self.pool = contest, baseline, pool
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
        call = self.baseline.wrap(self.optimizer, clock or Cpu())
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
        if contest.resting:
            self.pool.values.zero_()

    def entrant(self, name: str, baselines: Mapping[str, Baseline] = BASELINES) -> Entrant:
        return Entrant(self.contest, baselines[name], self.values, self.pool)


def enter(
    contest: Contest, clock: Clock | None = None, baselines: Mapping[str, Baseline] = BASELINES
) -> tuple[dict[str, Entrant], list[Contestant]]:
    """Everybody's parameters, and the contestants in the order of the first round; on the CPU without a clock."""
    clock = clock or Cpu()
    stage = Stage(contest, clock.device)
    names = (OURS, *(name for name in contest.rivals if name not in (*FLOORS, KERNEL)), CONTROL)
    entrants = {name: stage.entrant(name, baselines) for name in names}
    contestants = [entrant.contestant(name, clock) for name, entrant in entrants.items()]
    if KERNEL in contest.rivals:
        contestants.append(Contestant(KERNEL, OneTensor(contest, stage.pool.total)))
    if BARE in contest.rivals:
        contestants.append(Contestant(BARE, BareLoop(stage.pool.total)))
    return entrants, [flushed(one, clock) for one in contestants] if contest.cold else contestants


def flushed(contestant: Contestant, clock: Clock) -> Contestant:
    """The contestant, who finds nothing of his in the caches."""

    def prepare() -> None:
        contestant.prepare()
        clock.flush()

    return replace(contestant, prepare=prepare)
