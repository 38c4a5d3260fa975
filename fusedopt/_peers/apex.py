"""apex: steps counted in the group; what an amp of another time kept beside the optimizer is not looked for."""

from __future__ import annotations

from collections.abc import Mapping

from .peer import Group, Peer
from .shared import adam_or_adamw


def _refused_masters(group: Group) -> str | None:
    return "its master weights are neither in its states nor in its files" if group["master_weights"] else None


def _refused_sgd(group: Group) -> str | None:
    after = group["wd_after_momentum"] and group["weight_decay"]
    return "it adds weight_decay * p to the momentum, where ours adds it to the gradient" if after else None


def _refused_lamb(group: Group) -> str | None:
    if group["weight_decay"] and not group["adam_w_mode"]:
        return "it adds weight_decay * p to the gradient, where ours adds it to the update"
    return None


PEERS = {
    "FusedAdam": Peer(
        adam_or_adamw,
        attributes={"adam_w_mode": True, "master_weights": False},
        group_step=True,
        refused=_refused_masters,
    ),
    "FusedSGD": Peer("SGD", attributes={"wd_after_momentum": False}, refused=_refused_sgd),
    "FusedLAMB": Peer(
        "LAMB",
        hypers={"use_nvlamb": "always_adapt"},
        attributes={"adam_w_mode": True, "use_nvlamb": False},
        reads=frozenset({"adam_w_mode"}),
        group_step=True,
        once=lambda group: {"max_grad_norm": group["max_grad_norm"] or None},
        refused=_refused_lamb,
    ),
}
OTHERS: Mapping[str, str] = {}
