"""Update rules whose sums are over all params of an optimizer: all params at once, and what their groups keep."""

from __future__ import annotations

import math
from collections.abc import Callable, MutableMapping, Sequence
from typing import Any, NamedTuple

import torch
from terms import State, penalised
from torch import Tensor


class Part(NamedTuple):
    """A param with its gradient, its state and its group, of which it keeps some numbers."""

    p: Tensor
    g: Tensor
    s: State
    h: MutableMapping[str, Any]


JointRule = Callable[[Sequence[Part], Sequence[MutableMapping[str, Any]]], list[Tensor]]


def prodigy(parts: Sequence[Part], groups: Sequence[MutableMapping[str, Any]]) -> list[Tensor]:
    first = groups[0]
    beta1, beta2 = first["betas"]
    beta3 = math.sqrt(beta2) if first["beta3"] is None else first["beta3"]
    d, d_max, d0, k = (float(first[key]) for key in ("d", "d_max", "d0", "k"))
    correction = math.sqrt(1 - beta2 ** (k + 1)) / (1 - beta1 ** (k + 1)) if first["use_bias_correction"] else 1.0
    agreed = could = 0.0
    for p, g, s, h in parts:
        s["step"] = float(s.get("step", 0)) + 1
        for name, start in (("exp_avg", 0), ("exp_avg_sq", 0), ("s", 0), ("p0", p)):
            s.setdefault(name, p.clone() if start is p else torch.zeros_like(p))
        lr = float(h["lr"])
        if lr == 0:
            continue
        g = g if h["decouple"] else penalised(p, g, h["weight_decay"])
        dlr = d * lr * correction
        agreed += d / d0 * dlr * float((g * (s["p0"] - p)).double().sum())
        s["exp_avg"] = beta1 * s["exp_avg"] + d * (1 - beta1) * g
        s["exp_avg_sq"] = beta2 * s["exp_avg_sq"] + d * d * (1 - beta2) * g * g
        s["s"] = beta3 * s["s"] + d / d0 * (d if h["safeguard_warmup"] else dlr) * g
        could += float(s["s"].abs().double().sum())
    if could == 0:
        return [part.p for part in parts]
    for h in groups:
        h["k"] = k + 1
    # Of what is not finite no distance can be made.
    finite = math.isfinite(agreed) and math.isfinite(could)
    numerator = beta3 * float(first["d_numerator"]) + agreed
    hat = first["d_coef"] * numerator / could
    before = d
    if finite:
        d = max(d, hat) if d == d0 else d
        d_max = max(d_max, hat)
        d = min(d_max, d * first["growth_rate"])
        for h in groups:
            h.update({"d": d, "d_max": d_max, "d_numerator": numerator})
    result = []
    for p, _, s, h in parts:
        dlr = before * float(h["lr"]) * correction
        decay = h["weight_decay"] if h["decouple"] else 0
        result.append((1 - dlr * decay) * p - dlr * s["exp_avg"] / (s["exp_avg_sq"].sqrt() + d * h["eps"]))
    return result


JOINT: dict[str, JointRule] = {"Prodigy": prodigy}
