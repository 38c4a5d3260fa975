"""A float64 reference of the update rules, against which errors are measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from formulas import RULES, State
from formulas_joint import JOINT, Part
from references import twin
from support import COUNTERS
from torch import Tensor


class Oracle:
    """One param group in float64: `params[i]` and `state[i]` follow the tensors it was built from, under torch's keys.

    Complex tensors are held as pairs of reals. `hypers` may be edited between steps.
    """

    def __init__(self, optimizer: str, kwargs: Mapping[str, Any], params: Sequence[Tensor]) -> None:
        # The twin supplies the defaults of the arguments, never any arithmetic.
        made = twin(optimizer, kwargs)([torch.zeros(1)], **kwargs)
        defaults = {**made.defaults, **{k: v for k, v in made.param_groups[0].items() if k != "params"}}
        self.rule, self.joint = RULES.get(optimizer), JOINT.get(optimizer)
        self.hypers: dict[str, Any] = defaults
        self.params = [float64(p) for p in params]
        self.state: list[State] = [{} for _ in params]

    def adopt(self, params: Sequence[Tensor], states: Sequence[Mapping[str, Any]]) -> None:
        """Continues from the params and states of a live optimizer."""
        self.params = [float64(p) for p in params]
        self.state = [{k: v if k in COUNTERS else float64(v) for k, v in s.items() if v is not None} for s in states]

    def step(self, grads: Sequence[Tensor | None], grad_scale: float = 1.0) -> None:
        sign = -1 if self.hypers["maximize"] else 1
        parts = {
            i: Part(self.params[i], sign * float64(grad) / grad_scale, self.state[i], self.hypers)
            for i, grad in enumerate(grads)
            if grad is not None
        }
        if self.joint is not None:
            results = self.joint(list(parts.values()), [self.hypers]) if parts else []
        else:
            assert self.rule is not None
            results = [self.rule(*part) for part in parts.values()]
        for i, result in zip(parts, results, strict=True):
            self.params[i] = result


def float64(tensor: Tensor) -> Tensor:
    """An independent contiguous float64 copy; complex values become pairs of reals."""
    tensor = tensor.detach()
    real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return real.to(torch.float64, memory_format=torch.contiguous_format, copy=True)


def ulp_error(actual: Tensor, expected64: Tensor, magnitude: Tensor | None = None) -> Tensor:
    """The error of each element of `actual` in units of the last place of `magnitude` (by default of `expected64`).

    The unit is that of `actual`'s dtype. Equal infinities and NaN in both count as no error, any other non-finite value
    as an infinite one.
    """
    value = float64(actual)
    info = torch.finfo(actual.dtype)
    # Below the smallest normal number the spacing no longer shrinks; frexp would give 0 the exponent of 1.
    size = (expected64 if magnitude is None else magnitude).abs().clamp_min(info.tiny)
    unit = info.eps * torch.exp2(torch.frexp(size).exponent.double() - 1)
    error = (value - expected64).abs() / unit
    same = (value == expected64) | (value.isnan() & expected64.isnan())
    return torch.where(same, 0.0, error.nan_to_num(nan=torch.inf))
