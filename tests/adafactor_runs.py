"""Shapes, options and runs of Adafactor that its test files share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from support import params_of
from torch import Tensor
from torch.nn import Parameter

import fusedopt

Shape = tuple[int, ...]

# Vectors and scalars; tall, wide and odd matrices around strips of 8 rows, tiles of 64 and chunks of 1,024 columns;
# batches of matrices of one strip, two, some, and more than a tile's.
VECTORS: tuple[Shape, ...] = ((), (1,), (9,), (1024,), (1025,), (9000,))
MATRICES: tuple[Shape, ...] = (
    *((1, 1), (1, 5), (5, 1), (5, 7), (8, 16), (9, 16), (17, 33), (64, 100), (65, 257), (200, 3), (3, 1500)),
    (70, 1030),
)
BATCHES: tuple[Shape, ...] = ((3, 5, 7), (20, 3, 3), (4, 3, 5, 6), (2, 1, 1, 4), (3, 9, 2), (2, 30, 4), (2, 100, 9))
SHAPES = (*VECTORS, *MATRICES, *BATCHES)

OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "decay": {"weight_decay": 0.1, "lr": 0.05},
    "maximize": {"maximize": True, "d": 1.5},
    "eps": {"eps": (1e-3, 0.5), "beta2_decay": -0.5},
    "clipped": {"lr": 0.1, "d": 1.0, "beta2_decay": -2.0},
}
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def random(shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal numbers spread over some orders of magnitude."""
    numbers = torch.randn(shape, dtype=torch.float64) * torch.exp2(torch.randn(shape, dtype=torch.float64))
    return numbers.to(dtype)


def make(dtype: torch.dtype = torch.float32, shapes: Sequence[Shape] = SHAPES) -> list[Parameter]:
    return [Parameter(random(shape, dtype)) for shape in shapes]


def twins(params: Sequence[Tensor], dtype: torch.dtype | None = None) -> list[Parameter]:
    return [Parameter(p.detach().to(dtype or p.dtype, copy=True)) for p in params]


def feed(optimizers: Sequence[torch.optim.Optimizer], dtype: torch.dtype | None = None) -> None:
    """Equal gradients for all."""
    for params in zip(*(params_of(optimizer) for optimizer in optimizers), strict=True):
        grad = random(params[0].shape, dtype or params[0].dtype)
        for p in params:
            p.grad = grad.to(p.dtype, copy=True)


def explicit(options: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """The options with the dtype's epsilon written out, for a run in another dtype."""
    return {"eps": (torch.finfo(dtype).eps, 1e-3), **options}


def continued(optimizer: Any, dtype: torch.dtype, **options: Any) -> torch.optim.Adafactor:
    """torch's for-loop in `dtype`, over copies of an optimizer's params, gradients and states."""
    params = params_of(optimizer)
    copies = twins(params, dtype)
    theirs = torch.optim.Adafactor(copies, **options)
    for p, q in zip(params, copies, strict=True):
        q.grad = p.grad.to(dtype, copy=True)
        for key, value in optimizer.state.get(p, {}).items():
            theirs.state[q][key] = value.clone() if key == "step" else value.to(dtype, copy=True)
    return theirs


def states(optimizer: Any) -> list[dict[str, Tensor]]:
    return [{k: v for k, v in optimizer.state[p].items() if k != "step"} for p in params_of(optimizer)]


def trained(
    steps: int = 3, dtype: torch.dtype = torch.float32, shapes: Sequence[Shape] = SHAPES, **options: Any
) -> Any:
    optimizer = fusedopt.Adafactor(make(dtype, shapes), **options)
    for _ in range(steps):
        feed([optimizer])
        optimizer.step()
    return optimizer
