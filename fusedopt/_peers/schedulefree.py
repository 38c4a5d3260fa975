"""schedulefree: steps, the largest learning rate and the weights so far are counted in the group."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .peer import Group, Peer, State


def _counters(state: State, group: Group, param: Tensor) -> Mapping[str, Any]:
    if not state:
        return {}
    step, lr_max, total = group["k"], max(group["lr_max"], 0.0), group["weight_sum"]
    newest = step ** group["r"] * lr_max ** group["weight_lr_power"]
    share = torch.tensor(newest / total if total else 0.0, device="cpu")
    return {"step": step, "newest_share": share, "lr_max": torch.tensor(lr_max, device="cpu")}


PEERS = {
    name: Peer(name, more_states=_counters) for name in ("AdamWScheduleFree", "RAdamScheduleFree", "SGDScheduleFree")
}
OTHERS: Mapping[str, str] = {}
