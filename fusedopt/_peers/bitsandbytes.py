"""bitsandbytes: any rule's numbers are called betas, its states state1 and state2, in 32 bits or in codes of 8."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .peer import Group, Peer, State

# Its files have the tensors of a state in a dict of their own, a live optimizer has not.
_WRAPPER = "__bnb_optimizer_quant_state__"
_BLOCK = 256


def _in_memory_order(tensor: Tensor) -> Tensor:
    """Its kernels walk memory, and make params contiguous but not the states that were made before."""
    return tensor.as_strided((tensor.numel(),), (1,))


def _decode(state: State, which: str) -> Tensor:
    kept = state["state" + which]
    flat = _in_memory_order(kept)
    if flat.dtype == torch.uint8:
        scales = state["absmax" + which].repeat_interleave(_BLOCK)[: flat.numel()]
        flat = state["qmap" + which][flat.int()] * scales
    return flat.view(kept.shape)


def _states(*names: str) -> Any:
    def convert(state: State, group: Group, param: Tensor) -> Mapping[str, Any]:
        tensors = {**state, **state.get(_WRAPPER, {})}
        return {name: _decode(tensors, str(i)) for i, name in enumerate(names, 1) if f"state{i}" in tensors}

    return convert


_RULES = {
    # Its Adam decays apart from the gradient, too.
    "Adam": Peer("AdamW", more_states=_states("exp_avg", "exp_avg_sq")),
    "AdamW": Peer("AdamW", more_states=_states("exp_avg", "exp_avg_sq")),
    "Lion": Peer("Lion", more_states=_states("exp_avg")),
    # It does not read nesterov and dampening.
    "SGD": Peer("SGD", more_states=_states("momentum_buffer"), more_hypers=lambda g: {"momentum": g["betas"][0]}),
    # It does not read momentum.
    "RMSprop": Peer("RMSprop", more_states=_states("square_avg"), more_hypers=lambda g: {"alpha": g["betas"][0]}),
    "Adagrad": Peer("Adagrad", more_states=_states("sum")),
}
PEERS = {
    f"{paged}{name}{bits}": peer
    for name, peer in _RULES.items()
    for paged in ("", "Paged")
    for bits in ("", "8bit", "32bit")
}
OTHERS = {
    "LAMB": "p decays first, and the ratio min(1, max_unorm * norm p / norm u) never raises a step",
    "LARS": "the ratio min(1, max_unorm * norm p / norm b) is of the momentum b, after it has been summed",
    "AdEMAMix": "its state has both averages of the gradient in one tensor, where ours has two",
}
