"""A slow and obvious float64 reference of the update rules, against which errors are measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

State = dict[str, Any]
Hypers = Mapping[str, Any]
Rule = Callable[[Tensor, Tensor, State, Hypers], Tensor]


def sgd(p: Tensor, g: Tensor, s: State, h: Hypers) -> Tensor:
    g = g + h["weight_decay"] * p
    momentum = h["momentum"]
    if momentum != 0:
        previous = s.get("momentum_buffer")
        # The first buffer is the gradient itself: neither momentum nor dampening applies to it.
        s["momentum_buffer"] = g.clone() if previous is None else momentum * previous + (1 - h["dampening"]) * g
        g = g + momentum * s["momentum_buffer"] if h["nesterov"] else s["momentum_buffer"]
    return p - float(h["lr"]) * g


def adam(p: Tensor, g: Tensor, s: State, h: Hypers) -> Tensor:
    beta1, beta2 = (float(beta) for beta in h["betas"])
    lr = float(h["lr"])
    if h["decoupled_weight_decay"]:
        p = p * (1 - lr * h["weight_decay"])
    else:
        g = g + h["weight_decay"] * p
    zero = torch.zeros_like(p)
    step = s["step"] = float(s.get("step", 0)) + 1
    m = s["exp_avg"] = beta1 * s.get("exp_avg", zero) + (1 - beta1) * g
    v = s["exp_avg_sq"] = beta2 * s.get("exp_avg_sq", zero) + (1 - beta2) * g * g
    if h["amsgrad"]:
        v = s["max_exp_avg_sq"] = torch.maximum(s.get("max_exp_avg_sq", zero), v)
    m_hat = m / (1 - beta1**step)
    v_hat = v / (1 - beta2**step)
    return p - lr * m_hat / (v_hat.sqrt() + h["eps"])


def rmsprop(p: Tensor, g: Tensor, s: State, h: Hypers) -> Tensor:
    alpha, lr = h["alpha"], float(h["lr"])
    g = g + h["weight_decay"] * p
    zero = torch.zeros_like(p)
    s["step"] = float(s.get("step", 0)) + 1
    v = s["square_avg"] = alpha * s.get("square_avg", zero) + (1 - alpha) * g * g
    if h["centered"]:
        mean = s["grad_avg"] = alpha * s.get("grad_avg", zero) + (1 - alpha) * g
        # A variance: only rounding can bring it below zero.
        v = (v - mean * mean).clamp_min(0)
    change = g / (v.sqrt() + h["eps"])
    if h["momentum"] > 0:
        change = s["momentum_buffer"] = h["momentum"] * s.get("momentum_buffer", zero) + change
    return p - lr * change


RULES: dict[str, Rule] = {"SGD": sgd, "Adam": adam, "AdamW": adam, "RMSprop": rmsprop}


class Oracle:
    """One param group in float64: `params[i]` and `state[i]` follow the tensors it was built from, under torch's keys.

    Complex tensors are held as pairs of reals. `hypers` may be edited between steps.
    """

    def __init__(self, optimizer: str, kwargs: Mapping[str, Any], params: Sequence[Tensor]) -> None:
        # torch's class supplies the defaults of the arguments, never any arithmetic.
        defaults = getattr(torch.optim, optimizer)([torch.zeros(1)], **kwargs).defaults
        self.rule = RULES[optimizer]
        self.hypers: dict[str, Any] = {"decoupled_weight_decay": optimizer == "AdamW", **defaults}
        self.params = [float64(p) for p in params]
        self.state: list[State] = [{} for _ in params]

    def adopt(self, params: Sequence[Tensor], states: Sequence[Mapping[str, Any]]) -> None:
        """Continues from the params and states of a live optimizer."""
        self.params = [float64(p) for p in params]
        self.state = [{k: float64(v) if k != "step" else v for k, v in s.items() if v is not None} for s in states]

    def step(self, grads: Sequence[Tensor | None], grad_scale: float = 1.0) -> None:
        for i, grad in enumerate(grads):
            if grad is None:
                continue
            g = float64(grad) / grad_scale
            if self.hypers["maximize"]:
                g = -g
            self.params[i] = self.rule(self.params[i], g, self.state[i], self.hypers)


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
