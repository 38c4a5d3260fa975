"""The table that drives the suite: one `Case` per variant of an optimizer, named as torch.optim names it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

import fusedopt


@dataclass(frozen=True)
class Case:
    """One optimizer with one set of arguments, buildable as ours, as torch's for-loop and as any torch variant."""

    name: str
    optimizer: str
    kwargs: dict[str, Any] = field(default_factory=dict)

    def ours(self, params: Iterable[Any], **extra: Any) -> torch.optim.Optimizer:
        cls: Callable[..., torch.optim.Optimizer] = getattr(fusedopt, self.optimizer)
        return cls(params, **{**self.kwargs, **extra})

    def torchs(self, params: Iterable[Any], **extra: Any) -> torch.optim.Optimizer:
        """torch's for-loop unless `extra` asks for foreach or fused."""
        cls: Callable[..., torch.optim.Optimizer] = getattr(torch.optim, self.optimizer)
        return cls(params, **{**self.kwargs, "foreach": False, **extra})

    def __str__(self) -> str:
        return self.name


def _case(optimizer: str, suffix: str = "", **kwargs: Any) -> Case:
    return Case(f"{optimizer.lower()}{'-' + suffix if suffix else ''}", optimizer, kwargs)


CASES = [
    _case("SGD", lr=0.05),
    _case("SGD", "decay", lr=0.05, weight_decay=0.1),
    _case("SGD", "maximize", lr=0.05, maximize=True),
    _case("SGD", "momentum", lr=0.05, momentum=0.9),
    _case("SGD", "dampening", lr=0.05, momentum=0.9, dampening=0.3, weight_decay=0.02),
    _case("SGD", "nesterov", lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.02),
    _case("SGD", "nesterov-maximize", lr=0.05, momentum=0.7, nesterov=True, maximize=True),
    _case("Adam", lr=2e-3),
    _case("Adam", "decay", lr=2e-3, weight_decay=0.1),
    _case("Adam", "amsgrad", lr=2e-3, amsgrad=True, weight_decay=0.01),
    _case("Adam", "maximize", lr=2e-3, maximize=True, weight_decay=0.01),
    _case("Adam", "betas", lr=2e-3, betas=(0.3, 0.6), eps=1e-6),
    _case("Adam", "decoupled", lr=2e-3, weight_decay=0.1, decoupled_weight_decay=True),
    _case("AdamW", lr=2e-3),
    _case("AdamW", "amsgrad", lr=2e-3, amsgrad=True),
    _case("AdamW", "amsgrad-maximize", lr=2e-3, amsgrad=True, maximize=True, weight_decay=0.1),
    _case("RMSprop", lr=2e-3),
    _case("RMSprop", "decay", lr=2e-3, weight_decay=0.1),
    _case("RMSprop", "momentum", lr=2e-3, momentum=0.9),
    _case("RMSprop", "centered", lr=2e-3, centered=True, alpha=0.9),
    _case("RMSprop", "centered-momentum", lr=2e-3, centered=True, momentum=0.8, maximize=True, weight_decay=0.01),
]

ONE_PER_OPTIMIZER = [case for case in CASES if case.name in ("sgd-momentum", "adam", "adamw", "rmsprop")]
