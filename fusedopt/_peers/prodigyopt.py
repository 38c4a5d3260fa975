"""prodigyopt: its distance is in its groups under our keys; s and p0 are flat, and a p0 of zeros is one zero."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .peer import Group, Peer, State


def _states(state: State, group: Group, param: Tensor) -> Mapping[str, Any]:
    if not state:
        return {}
    zero = torch.zeros_like(param)
    begun = state["p0"].reshape(param.shape) if state["p0"].numel() == param.numel() else zero
    # Without beta1 it keeps no average.
    return {"p0": begun, "s": state["s"].reshape(param.shape), "exp_avg": state.get("exp_avg", zero)}


def _refused(group: Group) -> str | None:
    if group["slice_p"] != 1:
        return f"with slice_p={group['slice_p']} its sums are of some elements, ours of all"
    if group["fsdp_in_use"]:
        return "with fsdp_in_use=True its sums are of the pieces of all processes, ours are where params are DTensors"
    return None


PEERS = {"Prodigy": Peer("Prodigy", adds=frozenset({"d_denom", "d_hat"}), more_states=_states, refused=_refused)}
OTHERS: Mapping[str, str] = {}
