"""optimi: betas one by one, steps counted in the group, averages that are divided by 1 - beta^t as they are kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .peer import Group, Peer, State


def _hypers(group: Group) -> Mapping[str, Any]:
    others = (group["beta3"],) if "beta3" in group else ()
    made: dict[str, Any] = {"betas": (group["beta1"], group["beta2"], *others)}
    if group["decouple_lr"]:
        # (lr / max_lr) * weight_decay, as lr times what follows.
        made["weight_decay"] = group["weight_decay"] / group["max_lr"]
    return made


def _sgd_hypers(group: Group) -> Mapping[str, Any]:
    apart = bool(group["decouple_wd"] or group["decouple_lr"])
    decay = group["weight_decay"] / group["max_lr"] if group["decouple_lr"] else group["weight_decay"]
    dampening = group["momentum"] if group["dampening"] else 0.0
    return {"dampening": dampening, "weight_decay": decay, "decoupled_weight_decay": apart}


def _kahan(state: State, param: Tensor) -> dict[str, Any]:
    lost = state.get("kahan_comp")
    # Without Kahan summation there is None, or a single byte.
    return {"compensation": lost} if isinstance(lost, Tensor) and lost.shape == param.shape else {}


def _biased(averages: Mapping[str, str]) -> Any:
    def convert(state: State, group: Group, param: Tensor) -> Mapping[str, Any]:
        if not state:
            return {}
        t = int(group["step"])
        made = {name: state[name].float() * (1 - group[beta] ** t) for name, beta in averages.items()}
        return {**{name: value.to(state[name].dtype) for name, value in made.items()}, **_kahan(state, param)}

    return convert


def _sgd_states(state: State, group: Group, param: Tensor) -> Mapping[str, Any]:
    # With dampening the first gradient is weighed, too, where ours is not.
    starts = not state and group["dampening"] and group["momentum"] != 0
    return {**({"momentum_buffer": torch.zeros_like(param)} if starts else {}), **_kahan(state, param)}


def _refused(group: Group) -> str | None:
    if group["gradient_release"]:
        return "with gradient_release=True its states hold groups; fusedopt.step_in_backward releases gradients here"
    return None


def _sgd_refused(group: Group) -> str | None:
    if group["dampening"] and "base_momentum" in group:
        return "dampening=True follows the momentum, which a scheduler cycles; ours is a number"
    return _refused(group)


def _adam(group: Group) -> str:
    return "AdamW" if group["decouple_wd"] or group["decouple_lr"] else "Adam"


def _options(group: Group) -> Mapping[str, Any]:
    # Its first step makes True of None, where there are params in 16 bits.
    return {} if group["kahan_sum"] is False else {"rounding": "kahan"}


_READS = frozenset({"beta1", "decouple_wd", "decouple_lr"})
_LOST = frozenset({"kahan_comp"})
_ADAM = Peer(
    _adam,
    keeps=_LOST,
    group_step=True,
    more_hypers=_hypers,
    more_states=_biased({"exp_avg": "beta1", "exp_avg_sq": "beta2"}),
    reads=_READS,
    refused=_refused,
    options=_options,
)
PEERS = {
    "Adam": _ADAM,
    "AdamW": _ADAM,
    "StableAdamW": replace(_ADAM, rule="StableAdamW"),
    "Adan": Peer(
        "Adan",
        keeps=_LOST,
        states={"prev_grad": "neg_pre_grad"},
        group_step=True,
        more_hypers=_hypers,
        more_states=_biased({"exp_avg": "beta1", "exp_avg_diff": "beta2", "exp_avg_sq": "beta3"}),
        # Its adam_wd is False from the first step on, whatever it was given.
        fixed={"no_prox": False},
        reads=_READS,
        refused=_refused,
        options=_options,
    ),
    "Lion": Peer(
        "Lion",
        keeps=_LOST,
        more_hypers=_hypers,
        more_states=lambda state, group, param: _kahan(state, param),
        reads=_READS,
        refused=_refused,
        options=_options,
    ),
    "SGD": Peer(
        "SGD",
        keeps=_LOST,
        states={"exp_avg": "momentum_buffer"},
        more_hypers=_sgd_hypers,
        more_states=_sgd_states,
        reads=_READS,
        refused=_sgd_refused,
        options=_options,
    ),
}
OTHERS = {
    "RAdam": "eps is added to the root after its correction, where ours adds it before",
    "Ranger": "every k steps p goes half the way back to where it was, for which ours have no state",
}
