"""Contestants over one suite: each library steps its own copy of the same parameters on the same gradients."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from protocol import Contestant
from suites import Suite
from torch import Tensor

import fusedopt

OURS, CONTROL = "fusedopt", "fusedopt again"
# What no optimizer can beat: memory traffic alone.
BARE, COPY = "bare loop", "copy"
FLOORS = (BARE, COPY)
# The package's own class, as the rival of one compiled from a rule.
BUILT_IN = "built-in class"
ADAM_RULE = Path(__file__).resolve().parent.parent / "csrc" / "rules" / "adam.h"
# What AdamW defaults to; a rule's header need not have defaults.
ADAMW = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2}

# The constructor arguments that pick each of torch's implementations.
BASELINES: dict[str, dict[str, bool]] = {
    "torch for-loop": {"foreach": False},
    "torch foreach": {"foreach": True},
    "torch fused": {"fused": True},
    "torch default": {},
}


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
    # Ours is AdamW compiled from its rule by compile_rule.
    compiled: bool = False
    # How far apart results may be. torch adds the squares of a tensor in float32, which for Adafactor's 38 million of
    # an embedding is 0.3 % off, and so is a step of hundredths.
    atol: float = 1e-5

    @property
    def name(self) -> str:
        suffix = "" if self.dtype == torch.float32 else f"-{short(self.dtype)}"
        suffix += f"-{short(self.state_dtype)}-state" if self.state_dtype else ""
        suffix += "-compiled" if self.compiled else ""
        return f"{self.suite.name}-{self.optimizer}{suffix}{'-fresh' if self.fresh else ''}".lower()

    def facts(self) -> dict[str, Any]:
        """What the JSON says of it beside the rounds."""
        return {
            "tensors": self.suite.tensors,
            "elements": self.suite.elements,
            "groups": self.suite.tensors if self.suite.group_each else 1,
            **({"gradient_rows": self.suite.rows} if self.suite.rows else {}),
            "optimizer": self.optimizer,
            "arguments": self.arguments,
            "dtype": str(self.dtype),
        }


def short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def place(value: Tensor, offset: int) -> Tensor:
    """A copy of its own that begins ``offset`` elements into its storage."""
    if not offset:
        return value.clone()
    return (
        torch.empty(offset + value.numel(), dtype=value.dtype, device=value.device)[offset:].view_as(value).copy_(value)
    )


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
        return [place(part, self.offset) for part in window.split(self.sizes)]


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
    if ``fresh``, as a backward pass would.
    """

    def __init__(
        self,
        values: Sequence[Tensor],
        pool: GradientPool,
        make: Callable[[list[Tensor]], torch.optim.Optimizer],
        fresh: bool,
        state_dtype: torch.dtype | None = None,
    ) -> None:
        # Own copies, so that no contestant finds its data in the cache thanks to another.
        self.params = [place(value, pool.offset).requires_grad_() for value in values]
        self.pool = pool
        self.fresh = fresh
        self.state_dtype = state_dtype
        self.turn = 0
        self.optimizer = make(self.params)

    def prepare(self) -> None:
        if self.turn == 1 and self.state_dtype:
            self.convert_state(self.state_dtype)
        if self.turn >= 3 and not self.fresh:
            return
        for param, grad in zip(self.params, self.pool.draw(self.turn), strict=True):
            param.grad = grad if grad.is_sparse else grad.view(param.shape)
        self.turn += 1

    def convert_state(self, dtype: torch.dtype) -> None:
        for state in self.optimizer.state.values():
            for key, value in state.items():
                if key != "step":
                    state[key] = value.to(dtype)

    def contestant(self, name: str) -> Contestant:
        if isinstance(self.optimizer, torch.optim.LBFGS):
            return Contestant(name, lambda: self.optimizer.step(lambda: 0.0), self.prepare_quadratic)
        return Contestant(name, self.optimizer.step, self.prepare)

    @torch.no_grad()
    def prepare_quadratic(self) -> None:
        """Gradients of a quadratic, as its closure would find them: random ones have no curvature to remember."""
        if self.turn == 0:
            self.curvatures = [part.abs() + 0.1 for part in self.pool.draw(0)]
        for param, curvature in zip(self.params, self.curvatures, strict=True):
            param.grad = curvature.view(param.shape) * param
        self.turn += 1


class BareLoop:
    """The memory traffic of Adam and nothing else: one pass with 4 loads and 3 stores per element."""

    def __init__(self, pool: GradientPool) -> None:
        self.param, self.exp_avg, self.exp_avg_sq = (torch.zeros(pool.total) for _ in range(3))
        self.grad = torch.cat(pool.draw(0))

    def step(self) -> None:
        fusedopt._C.adam_traffic(self.param, self.grad, self.exp_avg, self.exp_avg_sq)


@functools.cache
def compiled_adamw() -> Callable[..., torch.optim.Optimizer]:
    cls: Callable[..., torch.optim.Optimizer] = fusedopt.compile_rule(ADAM_RULE, name="CompiledAdamW")
    return functools.partial(cls, amsgrad=0, decoupled_weight_decay=1)


def make_optimizer(contest: Contest, name: str, params: list[Tensor]) -> torch.optim.Optimizer:
    library, arguments = (torch.optim, BASELINES[name]) if name in BASELINES else (fusedopt, {})
    make = compiled_adamw() if contest.compiled and name != BUILT_IN else getattr(library, contest.optimizer)
    groups: Any = params
    if contest.suite.group_each:
        groups = [{"params": [param], "lr": 1e-3 * (1 + i / len(params))} for i, param in enumerate(params)]
    optimizer: torch.optim.Optimizer = make(groups, **contest.arguments, **arguments)
    return optimizer


# Makes the optimizer of a contest's contestant over params.
Make = Callable[[Contest, str, list[Tensor]], torch.optim.Optimizer]


def enter(
    contest: Contest, device: torch.device | str = "cpu", make: Make = make_optimizer
) -> tuple[dict[str, Entrant], list[Contestant]]:
    """Everybody's parameters, and the contestants in the order of the first round."""
    generator = torch.Generator(device).manual_seed(0)
    suite, dtype = contest.suite, contest.dtype
    values = [torch.randn(shape, generator=generator, device=device).to(dtype) for shape in suite.shapes]
    dense = not suite.rows
    pool = GradientPool(suite.sizes, dtype, generator, suite.offset) if dense else RowPool(suite, dtype, generator)

    def entrant(name: str) -> Entrant:
        return Entrant(values, pool, lambda params: make(contest, name, params), contest.fresh, contest.state_dtype)

    entrants = {name: entrant(name) for name in (OURS, *(r for r in contest.rivals if r not in FLOORS), CONTROL)}
    contestants = [entrant.contestant(name) for name, entrant in entrants.items()]
    if BARE in contest.rivals:
        bare = BareLoop(pool)
        contestants.append(Contestant(BARE, bare.step))
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
