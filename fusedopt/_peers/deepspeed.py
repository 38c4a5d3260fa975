"""DeepSpeed: torch's names, with states in float32 whatever the params are, and steps as int."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .peer import Back, Group, Peer, State
from .shared import adam_or_adamw


def _wide(state: State, group: Group) -> Mapping[str, Any]:
    kept = ("exp_avg", "exp_avg_sq")
    return {"step": state["step"], **{key: state[key].float() for key in kept if key in state}} if state else {}


_ADAM = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "bias_correction": True, "amsgrad": False}
_ADAGRAD = {"lr": 1e-2, "eps": 1e-10, "weight_decay": 0.0, "amsgrad": False}
PEERS = {
    "DeepSpeedCPUAdam": Peer(adam_or_adamw, attributes={"adam_w_mode": True}, back=Back(_ADAM, state=_wide)),
    "FusedAdam": Peer(adam_or_adamw, attributes={"adam_w_mode": True}),
    "DeepSpeedCPUAdagrad": Peer("Adagrad", states={"exp_avg_sq": "sum"}, back=Back(_ADAGRAD, state=_wide)),
}
OTHERS = {"DeepSpeedCPULion": "an element whose update is 0 moves by lr, where ours has sign(0) = 0"}
