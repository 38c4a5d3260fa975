"""torchao: torch's keys, with states in tensors of a class of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .peer import Group, Peer, State


def _dequantized(state: State, group: Group, param: Tensor) -> Mapping[str, Any]:
    return {key: value.dequantize() for key, value in state.items() if hasattr(value, "scale")}


def _peer(rule: str) -> Peer:
    return Peer(
        rule,
        attributes={"bf16_stochastic_round": False},
        more_hypers=lambda group: {"lr": float(group["lr"])},
        more_states=_dequantized,
        options=lambda group: {"rounding": "stochastic"} if group["bf16_stochastic_round"] else {},
    )


PEERS = {f"{rule}{kind}": _peer(rule) for rule in ("Adam", "AdamW") for kind in ("8bit", "4bit", "Fp8")}
PEERS["_AdamW"] = _peer("AdamW")
OTHERS: Mapping[str, str] = {}
