"""Optimizers that step on a backend beside the CPU's, which they have to equal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from backends import Backend, assert_same_memory, counter_flags, memory, spread, usual_launches
from cases import Case
from runs import give
from support import params_of
from torch import Tensor
from torch.nn import Parameter

from fusedopt import _C

Build = Callable[[list[Any]], Any]

SIZES = [(5, 7), (9,), (), (0, 3), (67,), (1500,)]


def simple(case: Case, **extra: Any) -> Build:
    return lambda params: case.ours(params, **extra)


class Twins:
    """Equal params in two equal optimizers, stepped by the CPU engine and by the backend's with the same gradients."""

    def __init__(self, backend: Backend, build: Build, values: Iterable[Tensor]) -> None:
        self.backend = backend
        values = list(values)
        self.cpu_params: list[Any] = [Parameter(self._twice(v)) for v in values]
        self.params: list[Any] = [Parameter(backend.place(v)) for v in values]
        self.cpu = build(self.cpu_params)
        self.ours = backend.adopt(build(self.params))

    @staticmethod
    def _twice(value: Tensor) -> Tensor:
        return memory(value).clone().as_strided(value.shape, value.stride(), value.storage_offset())

    def both(self) -> list[tuple[Any, list[Any]]]:
        return [(self.cpu, self.cpu_params), (self.ours, self.params)]

    def edit(self, change: Callable[[Any, list[Any]], Any]) -> None:
        for optimizer, params in self.both():
            change(optimizer, params)

    def give(self, grads: Sequence[Tensor | None] | None = None) -> None:
        """Random gradients unless some are given."""
        if grads is None:
            grads = [spread(*p.shape, dtype=p.dtype) for p in self.cpu_params]
        for p, q, grad in zip(self.cpu_params, self.params, grads, strict=True):
            give(p, grad)
            give(q, None if grad is None else self.backend.place(grad))

    def step_cpu(self) -> None:
        """The CPU's plan is new at every step, so that nothing stale in the other's goes unnoticed."""
        self.cpu._plan = None
        self.cpu.step()

    def step(self, grads: Sequence[Tensor | None] | None = None) -> None:
        self.give(grads)
        self.step_cpu()
        self.ours.step()

    def train(self, steps: int = 3) -> None:
        for _ in range(steps):
            self.step()
        self.check()

    def set_lr(self, lr: Any) -> None:
        """Of every group another, as far as the rule has them differ."""
        joint = _C.joint(self.cpu._rule)

        def change(optimizer: Any, params: list[Any]) -> None:
            for i, group in enumerate(optimizer.param_groups):
                group["lr"] = lr if joint else lr * (i + 1)

        self.edit(change)

    def set_scaling(self, found: float | None, scale: float | None = None) -> None:
        """What GradScaler would tell the optimizers."""
        for name, value in (("found_inf", found), ("grad_scale", scale)):
            for optimizer, number in ((self.cpu, torch.tensor), (self.ours, self.backend.number)):
                setattr(optimizer, name, None if value is None else number(value))

    def step_twice_in_steady_state(self, launches: int | None = None) -> None:
        """On the gradients that there are; nothing happens but launches."""
        assert self.backend.launches(self.ours.step) == (launches or usual_launches(self.ours))
        beside = self.backend.beside_launches(self.ours.step)
        assert beside == [], beside
        self.step_cpu()
        self.step_cpu()
        self.check()

    def set_states(self, change: Callable[[int, int, Tensor], Tensor]) -> None:
        """Replaces state k of param i, on the device by a copy of what takes its place on the CPU."""
        for i, (p, q) in enumerate(zip(self.cpu_params, self.params, strict=True)):
            state = self.cpu.state.get(p, {})
            counters = _C.counters(getattr(self.cpu, "_rule", ""))
            tensors = [key for key, value in state.items() if isinstance(value, Tensor) and key not in counters]
            for k, name in enumerate(tensors):
                state[name] = change(i, k, state[name])
                self.ours.state[q][name] = self.backend.place(state[name])

    def check(self) -> None:
        """Params, gradients and states are the same bits, and so is the memory around and between their elements."""
        for p, q in zip(self.cpu_params, self.params, strict=True):
            assert_same_memory(q.detach(), p.detach())
            if p.grad is not None:
                assert_same_memory(q.grad, p.grad)
            assert (p in self.cpu.state) == (q in self.ours.state)
        order = {id(p): i for i, p in enumerate(self.cpu_params)}, {id(q): i for i, q in enumerate(self.params)}
        assert [order[1].get(id(q)) for q in self.ours.state] == [order[0].get(id(p)) for p in self.cpu.state]
        for actual, expected in zip(self.ours.state.values(), self.cpu.state.values(), strict=True):
            assert list(actual) == list(expected)
            for name, value in expected.items():
                if isinstance(value, Tensor):
                    assert_same_memory(actual[name], value)
                else:
                    assert actual[name] == value


def trained_twins(backend: Backend, case: Case, there: bool = True, **extra: Any) -> Twins:
    """Over SIZES; they have taken three steps, with counters on the device or on the host."""
    backend.numbers_on_device(there)
    twins = Twins(backend, simple(case, **{**counter_flags(case, there), **extra}), [spread(*size) for size in SIZES])
    twins.train()
    return twins


def copies(optimizer: Any) -> list[Tensor]:
    """Copies of the params and the states, for `assert_untouched`."""
    states = [value for p in params_of(optimizer) for value in optimizer.state.get(p, {}).values()]
    return [t.detach().clone() for t in [*params_of(optimizer), *states] if isinstance(t, Tensor)]


def assert_untouched(optimizer: Any, before: list[Tensor]) -> None:
    for actual, expected in zip(copies(optimizer), before, strict=True):
        assert_same_memory(actual, expected)
