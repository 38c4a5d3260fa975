"""The optimizers that are more than one pass, with rules of the same form as those in formulas.py where one has any."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from cases import Case
from formulas import Hypers, Rule, State
from torch import Tensor

Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Other(Case):
    """A case whose names are not those of a rule, with what its walks may begin with."""

    keeps: tuple[str, ...] = ()
    shapes: Shapes = ((1,), (7,), (5, 7), (600,), (4, 3, 5, 6), (3, 1700))
    dtypes: tuple[str, ...] = ("float32", "float32", "bfloat16", "float16", "float64")
    layouts: tuple[str, ...] = ("contiguous", "gaps", "transposed", "channels_last")
    # What it does not take, or what means something else to it.
    without: tuple[str, ...] = ()

    @property
    def states(self) -> list[str]:
        return list(self.keeps)

    @property
    def counters(self) -> list[str]:
        return ["step"]


def adafactor(p: Tensor, g: Tensor, s: State, h: Hypers) -> Tensor:
    lr, (eps1, eps2) = float(h["lr"]), h["eps"]
    eps1 = h["dtype_eps"] if eps1 is None else eps1
    step = s["step"] = float(s.get("step", 0)) + 1
    forget = step ** h["beta2_decay"]
    size = max(eps2, float(p.square().mean().sqrt()))
    p = p * (1 - lr * h["weight_decay"])

    def averaged(key: str, value: Tensor) -> Tensor:
        s[key] = s.get(key, torch.zeros_like(value)) * (1 - forget) + forget * value
        made: Tensor = s[key]
        return made

    if p.ndim > 1:
        row = averaged("row_var", g.square().mean(-1, keepdim=True))
        column = averaged("col_var", g.square().mean(-2, keepdim=True))
        v = row * column / row.mean(-2, keepdim=True).clamp_min(eps1)
    else:
        v = averaged("variance", g.square())
    u = g / v.sqrt().clamp_min(eps1)
    shorten = max(1.0, float(u.square().mean().sqrt()) / h["d"])
    return p - size * min(lr, step**-0.5) / shorten * u


def sparse_adam(p: Tensor, g: Tensor, s: State, h: Hypers) -> Tensor:
    """Rows that the gradient does not hold are NaN in it."""
    (beta1, beta2), zero = h["betas"], torch.zeros_like(p)
    held = ~g.isnan()
    step = s["step"] = float(s.get("step", 0)) + 1
    m, v = s.get("exp_avg", zero), s.get("exp_avg_sq", zero)
    s["exp_avg"] = m = torch.where(held, beta1 * m + (1 - beta1) * g, m)
    s["exp_avg_sq"] = v = torch.where(held, beta2 * v + (1 - beta2) * g * g, v)
    change = float(h["lr"]) * (1 - beta2**step) ** 0.5 / (1 - beta1**step) * m / (v.sqrt() + h["eps"])
    return torch.where(held, p - change, p)


RULES: dict[str, Rule] = {"Adafactor": adafactor, "SparseAdam": sparse_adam}

_FACTORED = ("row_var", "col_var", "variance")
_MATRICES: Shapes = ((5, 7), (64, 16), (3, 170))
_ODD_GRADIENTS = ("wide", "shared", "expanded", "gaps", "transposed", "zeros")
_SCALING = ("step_with_scaler", "overflow")
# Of sparse gradients: torch's own step, which rounds elsewhere, takes what has gaps or another dtype.
_DENSE = (*_SCALING, "backward", "relay", "replace_data", "wide", "shared", "copy_params")
_SEARCHES = ("add_group", "edit_options", "backward", "step_and_clear", "clip", "copy_params")


def _adafactor(suffix: str, **kwargs: Any) -> Other:
    # Squares that float16 cannot hold have no rounding that one could bound a step by.
    dtypes = ("float32", "bfloat16", "float64")
    return Other(f"adafactor{suffix}", "Adafactor", kwargs, _FACTORED, dtypes=dtypes, without=("wide", "copy_params"))


def _muon(suffix: str, **kwargs: Any) -> Other:
    without = ("wide", "copy_params")
    return Other(f"muon{suffix}", "Muon", {"lr": 0.02, **kwargs}, ("momentum_buffer",), _MATRICES, without=without)


def _lbfgs(suffix: str, **kwargs: Any) -> Other:
    kwargs = {"lr": 0.5, "max_iter": 3, "history_size": 4, **kwargs}
    without = (*_SCALING, *_ODD_GRADIENTS, *_SEARCHES)
    return Other(f"lbfgs{suffix}", "LBFGS", kwargs, dtypes=("float32", "float64"), without=without)


OTHERS = [
    _adafactor("", lr=0.05),
    _adafactor("-decay-maximize", lr=0.02, weight_decay=0.1, eps=(1e-3, 0.5), d=1.5, beta2_decay=-0.5, maximize=True),
    Other("sparseadam", "SparseAdam", {"lr": 2e-3}, ("exp_avg", "exp_avg_sq"), without=_DENSE, layouts=("contiguous",)),
    _muon(""),
    _muon("-plain", nesterov=False, adjust_lr_fn="match_rms_adamw"),
    _lbfgs(""),
    _lbfgs("-search", line_search_fn="strong_wolfe"),
]
