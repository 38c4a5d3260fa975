"""What is to be measured: an optimizer over a suite, and against whom."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .placement import CONTIGUOUS
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
    # Other data have gone through the processor's caches before every step, as forward and backward send them.
    cold: bool = False
    # All gradients are zeros, as for rows of an embedding that a batch does not name, and so are averages of them.
    resting: bool = False

    @property
    def name(self) -> str:
        suffix = "" if self.dtype == torch.float32 else f"-{short(self.dtype)}"
        suffix += f"-{short(self.state_dtype)}-state" if self.state_dtype else ""
        suffix += "" if self.layout == CONTIGUOUS else f"-{self.layout}"
        suffix += "" if self.groups is None else f"-{self.groups}groups"
        suffix += "-resting" if self.resting else ""
        suffix += "-cold" if self.cold else "-fresh" if self.fresh else ""
        return f"{self.suite.name}-{self.optimizer}{suffix}".lower()

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
            "cold": self.cold,
            "resting": self.resting,
        }

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
