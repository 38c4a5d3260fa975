"""Drives optimizers over copies of the same tensors with the same gradients, whatever their layouts and dtypes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from support import COUNTERS, params_of
from torch import Tensor
from torch.nn import Parameter

GradientRun = list[list[Tensor | None]]


def leaves(values: Iterable[Tensor]) -> list[Parameter]:
    """Parameters over contiguous copies."""
    return [Parameter(value.detach().clone(memory_format=torch.contiguous_format)) for value in values]


def random_gradients(
    params: Sequence[Tensor], steps: int, seed: int = 1, dtype: torch.dtype | None = None
) -> GradientRun:
    """Contiguous standard normal gradients: per step, one per param."""
    generator = torch.Generator().manual_seed(seed)
    return [
        [torch.randn(p.shape, generator=generator, dtype=_working(p.dtype)).to(dtype or p.dtype) for p in params]
        for _ in range(steps)
    ]


def _working(dtype: torch.dtype) -> torch.dtype:
    return {torch.bfloat16: torch.float32, torch.float16: torch.float32}.get(dtype, dtype)


def give(param: Tensor, grad: Tensor | None) -> None:
    """Assigns a gradient that may be of another dtype than the param, which torch refuses by default."""
    if grad is None or grad.dtype == param.dtype:
        param.grad = grad
    elif hasattr(torch.Tensor, "grad_dtype"):
        param.grad_dtype = None
        param.grad = grad
    else:
        data = param.data
        param.data = data.to(grad.dtype)
        param.grad = grad
        param.data = data


def train(optimizer: torch.optim.Optimizer, run: GradientRun) -> list[Tensor]:
    """One step per entry of `run`; returns the optimizer's params."""
    params = params_of(optimizer)
    for grads in run:
        for param, grad in zip(params, grads, strict=True):
            give(param, grad)
        optimizer.step()
    return params


def state_tensors(optimizer: torch.optim.Optimizer, param: Tensor) -> dict[str, Tensor]:
    """The state of a param without its counters, nor SGD's placeholder for a buffer that it does not use."""
    return {k: v for k, v in optimizer.state[param].items() if isinstance(v, Tensor) and k not in COUNTERS}
