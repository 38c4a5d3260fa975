"""Schedule-Free update rules, as formulas.py has the others."""

from __future__ import annotations

import torch
from terms import Hypers, State, penalised
from torch import Tensor


def _schedule_free(p: Tensor, u: Tensor, s: State, h: Hypers, lr: float, beta1: float) -> Tensor:
    """By the paper, with x: a step of z along u, which is averaged."""
    z, step = s["z"], s["step"]

    def weight(step: float, lr_max: float) -> float:
        return step ** h["r"] * lr_max ** h["weight_lr_power"]

    before, share = float(s["lr_max"]), float(s["newest_share"])
    total = weight(step - 1, before) / share if share else 0.0
    s["lr_max"] = max(lr, before)
    newest = weight(step, s["lr_max"])
    c = s["newest_share"] = newest / (total + newest) if newest else 0.0
    # x goes to the z of before, and what z moves by is added to it.
    x = p + (p - z) * (1 - beta1) / beta1
    change = -lr * penalised(p, u, h["weight_decay"])
    x, s["z"] = (1 - c) * x + c * (z + change), z + change
    return (1 - beta1) * s["z"] + beta1 * x


def _begun(p: Tensor, s: State) -> float:
    """The number of this step. At first z is y."""
    for name, start in (("step", 0), ("newest_share", 0), ("lr_max", 0), ("z", p.clone())):
        s.setdefault(name, start)
    s["step"] = float(s["step"]) + 1
    return float(s["step"])


def _warmed(h: Hypers, step: float) -> float:
    return float(h["lr"]) * (min(step / h["warmup_steps"], 1.0) if h["warmup_steps"] else 1.0)


def sgd_schedule_free(p: Tensor, g: Tensor, s: State, h: Hypers) -> Tensor:
    step = _begun(p, s)
    return _schedule_free(p, g, s, h, _warmed(h, step), h["momentum"])


def adamw_schedule_free(p: Tensor, g: Tensor, s: State, h: Hypers) -> Tensor:
    beta1, beta2 = h["betas"]
    step = _begun(p, s)
    v = s["exp_avg_sq"] = beta2 * s.get("exp_avg_sq", torch.zeros_like(p)) + (1 - beta2) * g * g
    root = (v / (1 - beta2**step)).sqrt() + h["eps"]
    return _schedule_free(p, g / root, s, h, _warmed(h, step), beta1)


def radam_schedule_free(p: Tensor, g: Tensor, s: State, h: Hypers) -> Tensor:
    beta1, beta2 = h["betas"]
    step = _begun(p, s)
    v = s["exp_avg_sq"] = beta2 * s.get("exp_avg_sq", torch.zeros_like(p)) + (1 - beta2) * g * g
    correction, longest = 1 - beta2**step, 2 / (1 - beta2) - 1
    length = longest - 2 * step * beta2**step / correction
    if length <= 4:
        return _schedule_free(p, g, s, h, 0.0 if h["silent_sgd_phase"] else float(h["lr"]), beta1)
    rectified = ((length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)) ** 0.5
    root = (v / correction).sqrt() + h["eps"]
    return _schedule_free(p, g / root, s, h, rectified * float(h["lr"]), beta1)
