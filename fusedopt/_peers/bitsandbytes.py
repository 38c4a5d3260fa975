"""bitsandbytes: any rule's numbers are called betas, its states state1 and state2, in 32 bits or in codes of 8."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .peer import Back, Group, Peer, State, largest_shape

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


def _averages(state: State, group: Group, param: Tensor) -> Mapping[str, Any]:
    """AdEMAMix has both averages of the gradient in one tensor, and scales of their own for codes of each."""
    tensors = {**state, **state.get(_WRAPPER, {})}
    if "state1" not in tensors:
        return {}
    fast, slow = (
        _decode({**tensors, "state1": tensors["state1"][i], "absmax1": tensors.get("absmax1", (None, None))[i]}, "1")
        for i in (0, 1)
    )
    return {"exp_avg": fast, "exp_avg_slow": slow, "exp_avg_sq": _decode(tensors, "2")}


def _shape(state: State) -> tuple[int, ...]:
    return largest_shape({**state, **state.get(_WRAPPER, {})})


# Its classes in 8 bits would go on in 32 with such a state.
def _back(group: Mapping[str, Any], *names: str, betas: str | None = None) -> Back:
    def write(state: State, group: Group) -> Mapping[str, Any]:
        kept = {f"state{i}": state[name].float().contiguous() for i, name in enumerate(names, 1) if name in state}
        # Where ours count no steps it only asks whether there has been one. It takes states in the order of a
        # contiguous param.
        return {"step": state.get("step", 1), _WRAPPER: kept} if kept else {}

    hypers = (lambda ours: {"betas": (ours[betas], 0)}) if betas else (lambda ours: {})
    made = {"lr": 1e-3, "betas": (0.0, 0.0), "eps": 0.0, "weight_decay": 0.0, **group}
    return Back(made, hypers, write, loads_float32=True)


def _joined(state: State, group: Group) -> Mapping[str, Any]:
    if "exp_avg" not in state:
        return {}
    fast, slow, squares = (state[key].float().contiguous() for key in ("exp_avg", "exp_avg_slow", "exp_avg_sq"))
    return {"step": state["step"], _WRAPPER: {"state1": torch.stack([fast, slow]), "state2": squares}}


def _kept(count: int) -> frozenset[str]:
    """The keys of so many states, which no class of its own has by torch's names."""
    numbered = {f"{key}{i}" for key in ("state", "absmax", "qmap") for i in range(1, count + 1)}
    return frozenset({_WRAPPER, *numbered})


# Where a constructor has no such argument, its groups have a number that says which class they are of.
def _refused_eps(group: Group) -> str | None:
    return (
        f"its groups have eps=0, and this one {group['eps']}: another class steps by that" if group.get("eps") else None
    )


def _refused_adagrad(group: Group) -> str | None:
    if not any(group["betas"]):
        return None
    return f"its groups have betas of 0, and this one {group['betas']}: another class steps by these"


def _overridden(optimizer: Any) -> str | None:
    """By its GlobalOptimManager a param may have other numbers than its group, which only the process knows."""
    configured = getattr(optimizer, "get_config", None)
    if configured is None:
        return None
    # Those of modules wait for the first step.
    waiting = [(getattr(module, attr), config) for module, attr, config in optimizer.mng.module_weight_config_triple]
    for index, group in enumerate(optimizer.param_groups):
        for at, param in enumerate(group["params"]):
            config = configured(index, at, group)
            for weight, its in waiting:
                config.update(its if weight is param else {})
            said = {**group, "max_unorm": 0.0, "skip_zeros": False}
            for key in ("lr", "betas", "eps", "weight_decay", "alpha", "t_alpha", "t_beta3", "max_unorm", "skip_zeros"):
                if key in said and config.get(key) != said[key]:
                    return f"param {at} of group {index} has {key}={config.get(key)!r}, by override_config or args"
    return None


_MIX = {"alpha": 0.0, "t_alpha": None, "t_beta3": None}
_ADAMW = Peer(
    "AdamW",
    keeps=_kept(2),
    more_states=_states("exp_avg", "exp_avg_sq"),
    back=_back(_MIX, "exp_avg", "exp_avg_sq"),
)
_RULES = {
    # Its Adam decays apart from the gradient, too.
    "Adam": _ADAMW,
    "AdamW": _ADAMW,
    "AdEMAMix": Peer(
        "AdEMAMix",
        keeps=_kept(2),
        more_states=_averages,
        shape=lambda state: _shape(state)[1:],
        back=replace(_back(_MIX), state=_joined),
    ),
    "Lion": Peer(
        "Lion",
        keeps=_kept(1),
        refused=_refused_eps,
        more_states=_states("exp_avg"),
        back=_back({}, "exp_avg"),
    ),
    # It does not read nesterov and dampening.
    "SGD": Peer(
        "SGD",
        keeps=_kept(1),
        refused=_refused_eps,
        more_states=_states("momentum_buffer"),
        more_hypers=lambda group: {"momentum": group["betas"][0]},
        back=_back({}, "momentum_buffer", betas="momentum"),
    ),
    # It does not read momentum.
    "RMSprop": Peer(
        "RMSprop",
        keeps=_kept(1),
        more_states=_states("square_avg"),
        more_hypers=lambda group: {"alpha": group["betas"][0]},
        back=_back({}, "square_avg", betas="alpha"),
    ),
    "Adagrad": Peer(
        "Adagrad",
        keeps=_kept(1),
        refused=_refused_adagrad,
        more_states=_states("sum"),
        back=_back({}, "sum"),
    ),
}
PEERS = {
    f"{paged}{name}{bits}": replace(
        peer,
        own_names=True,
        refused_live=_overridden,
        shape=peer.shape if name == "AdEMAMix" else _shape,
        back=None if bits == "8bit" else peer.back,
    )
    for name, peer in _RULES.items()
    for paged in ("", "Paged")
    for bits in ("", "8bit", "32bit")
}
OTHERS = {
    "LAMB": "the ratio min(1, norm p / norm u) is of p before its decay and never raises a step; on a CPU u counts as "
    "it is before its bias correction",
    "LARS": "the ratio min(1, max_unorm * norm p / norm b) is of the momentum b, after it has been summed",
}
