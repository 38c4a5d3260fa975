"""Transformer Engine: steps counted in the group, master weights or their lower halves in the state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .peer import Group, Peer, State
from .shared import adam_or_adamw


def _masters(state: State, group: Group, param: Tensor) -> Mapping[str, Any]:
    kept = state.get("master_param")
    if kept is None or param.dtype not in (torch.bfloat16, torch.float16):
        return {}
    # Both count the lower half as a signed number from the rounded param.
    return {"remainder" if kept.dtype == torch.int16 else "master": kept}


def _options(group: Group) -> Mapping[str, Any]:
    if not group["master_weights"]:
        return {}
    return {"master_weights": "remainder" if group["store_param_remainders"] else "float32"}


PEERS = {
    "FusedAdam": Peer(
        adam_or_adamw,
        attributes={"adam_w_mode": True, "master_weights": False, "store_param_remainders": False},
        group_step=True,
        keeps=frozenset({"master_param"}),
        more_states=_masters,
        options=_options,
    ),
    "FusedSGD": Peer(
        "SGD",
        attributes={"wd_after_momentum": False},
        refused=lambda group: (
            "it adds weight_decay * p to the momentum, where ours adds it to the gradient"
            if group["wd_after_momentum"] and group["weight_decay"]
            else None
        ),
    ),
}
OTHERS: Mapping[str, str] = {}
