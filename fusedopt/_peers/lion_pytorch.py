"""lion-pytorch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .peer import Group, Peer


def _hypers(group: Group) -> Mapping[str, Any]:
    return {"weight_decay": group["weight_decay"] / group["_init_lr"]} if group["decoupled_wd"] else {}


# The rate that a constructor was given is what a scheduler has kept, if there is one.
PEERS = {"Lion": Peer("Lion", attributes={"decoupled_wd": False, "_init_lr": 1e-4}, more_hypers=_hypers)}
OTHERS: Mapping[str, str] = {}
