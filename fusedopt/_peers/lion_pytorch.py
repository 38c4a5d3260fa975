"""lion-pytorch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .peer import Back, Group, Peer, State


def _hypers(group: Group) -> Mapping[str, Any]:
    return {"weight_decay": group["weight_decay"] / group["_init_lr"]} if group["decoupled_wd"] else {}


def _average(state: State, group: Group) -> Mapping[str, Any]:
    return {"exp_avg": state["exp_avg"]} if "exp_avg" in state else {}


def _decay(ours: Group) -> Mapping[str, Any]:
    return {"weight_decay": ours["weight_decay"] * ours["_init_lr"]} if ours["decoupled_wd"] else {}


# The rate that a constructor was given is what a scheduler has kept, if there is one.
PEERS = {
    "Lion": Peer(
        "Lion",
        attributes={"decoupled_wd": False, "_init_lr": 1e-4},
        more_hypers=_hypers,
        back=Back({"lr": 1e-4, "betas": (0.9, 0.99), "weight_decay": 0.0}, _decay, _average),
    )
}
OTHERS: Mapping[str, str] = {}
