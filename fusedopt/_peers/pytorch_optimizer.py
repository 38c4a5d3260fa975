"""pytorch_optimizer: steps counted in the group, maximize kept beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .peer import Group, Peer

_ATTRIBUTES: Mapping[str, Any] = {"maximize": False}
_EXTRAS = {
    "adam_debias": "it does not divide by 1 - beta1^t",
    "ams_bound": "it divides by the largest second moment so far",
}


def _refused(group: Group) -> str | None:
    return next((line for key, line in _EXTRAS.items() if group.get(key)), None)


def _refused_radam(group: Group) -> str | None:
    if not group["degenerated_to_sgd"]:
        return "without degenerated_to_sgd params stand still in the first steps, where ours go along exp_avg"
    if group["n_sma_threshold"] != 5:
        return f"it rectifies from n_sma_threshold={group['n_sma_threshold']} on, ours from 5"
    if group["weight_decay"] and not group["weight_decouple"]:
        return "without weight_decouple it does not decay"
    return _refused(group)


def _refused_lars(group: Group) -> str | None:
    if any(p.ndim < 2 for p in group["params"]):
        return "it leaves out ratio and decay of vectors and scalars, ours does not"
    return _refused(group)


def _refused_novograd(group: Group) -> str | None:
    if group["grad_averaging"]:
        return "with grad_averaging=True it begins with the whole of the first step, ours with 1 - beta1 of it"
    return _refused(group)


PEERS = {
    "Lion": Peer("Lion", attributes=_ATTRIBUTES, refused=_refused),
    "AdaMax": Peer("Adamax", attributes=_ATTRIBUTES, group_step=True, refused=_refused),
    "RAdam": Peer(
        "RAdam",
        attributes={**_ATTRIBUTES, "degenerated_to_sgd": False, "n_sma_threshold": 5},
        group_step=True,
        fixed={"decoupled_weight_decay": True},
        refused=_refused_radam,
    ),
    "Adan": Peer(
        "Adan",
        attributes=_ATTRIBUTES,
        hypers={"weight_decouple": "no_prox"},
        states={"previous_grad": "neg_pre_grad"},
        group_step=True,
        refused=_refused,
        once=lambda group: {"max_grad_norm": group["max_grad_norm"] or None},
    ),
    "NovoGrad": Peer(
        "NovoGrad",
        attributes=_ATTRIBUTES,
        hypers={"weight_decouple": "decoupled_decay"},
        states={"grads_ema": "exp_avg_norm_sq", "moments": "exp_avg"},
        group_step=True,
        refused=_refused_novograd,
    ),
    "LARS": Peer(
        "LARS",
        attributes=_ATTRIBUTES,
        hypers={"trust_coefficient": "trust_coeff"},
        fixed={"eps": 0.0, "always_adapt": True},
        refused=_refused_lars,
    ),
}
OTHERS = {
    "Lamb": "it corrects the first moment alone, outside of the ratio, holds norm p at 10 or below and decays p first",
    "AdaFactor": "it keeps an average of its updates, in bfloat16",
    "Muon": "it steps groups without use_muon by AdamW; torch's Muon and AdamW are an optimizer each",
}
