"""What several packages have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .peer import Group, State


def adam_or_adamw(group: Group) -> str:
    return "AdamW" if group["adam_w_mode"] else "Adam"


def adafactor_refusal(group: Group) -> str | None:
    """Of the Adafactor that fairseq had first, by what ours has not."""
    lines = {
        "it averages its updates by beta1": group["beta1"] is not None,
        "it decays p by weight_decay times its step, which follows t or the size of p, ours by lr * weight_decay": (
            group["weight_decay"] != 0 and (group["relative_step"] or group["scale_parameter"])
        ),
    }
    return next((line for line, holds in lines.items() if holds), None)


def adafactor_hypers(group: Group, eps1: float, eps2: float) -> Mapping[str, Any]:
    # A relative step is at most 1e-2.
    lr = 1e-2 if group["relative_step"] else group["lr"]
    return {"lr": lr, "eps": (eps1, eps2), "beta2_decay": group["decay_rate"], "d": group["clip_threshold"]}


ADAFACTOR_STATES = frozenset({"exp_avg_sq_row", "exp_avg_sq_col", "exp_avg_sq"})


def adafactor_states(state: State, group: Group, param: Tensor) -> Mapping[str, Any]:
    if "exp_avg_sq_row" in state:
        return {"row_var": state["exp_avg_sq_row"].unsqueeze(-1), "col_var": state["exp_avg_sq_col"].unsqueeze(-2)}
    return {"variance": state["exp_avg_sq"]} if "exp_avg_sq" in state else {}
