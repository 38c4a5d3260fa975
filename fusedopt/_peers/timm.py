"""timm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .peer import Back, Group, Peer, State
from .shared import ADAFACTOR_STATES, adafactor_hypers, adafactor_refusal, adafactor_states


def _averaged_rates(state: State, group: Group, param: Tensor) -> Mapping[str, Any]:
    return {
        key: torch.tensor(float(state[key]), device="cpu") for key in ("exp_avg_lr_1", "exp_avg_lr_2") if key in state
    }


def _adafactor_hypers(group: Group) -> Mapping[str, Any]:
    # A given lr is the step.
    scaled = group["relative_step"] and group["scale_parameter"]
    return {**adafactor_hypers(group, group["eps"], group["eps_scale"]), "scale_parameter": scaled}


def _refused_adafactor(group: Group) -> str | None:
    if any(p.ndim > 2 for p in group["params"]):
        return "of a tensor of more dimensions it factors the largest two, ours the last two"
    smallest = group["min_dim_size_to_factor"]
    if any(p.ndim == 2 and min(p.shape) <= smallest for p in group["params"]):
        return f"it keeps the whole second moment of matrices with a side of at most {smallest}, ours factors them"
    return adafactor_refusal({**group, "scale_parameter": group["relative_step"] and group["scale_parameter"]})


def _refused_mars(group: Group) -> str | None:
    if group["mars_type"] != "adamw":
        return f"with mars_type={group['mars_type']!r} it steps by the sign of the average"
    if not group["optimize_1d"] and any(p.ndim < 2 for p in group["params"]):
        return "it steps vectors by AdamW, which takes an optimizer of its own"
    return None


def _refused_novograd(group: Group) -> str | None:
    return "with amsgrad=True it divides by the largest second moment so far" if group["amsgrad"] else None


# What its groups have beside hyper-parameters: the first is off in all that ours write.
_CORRECTED = {"corrected_weight_decay": False, "max_lr_snapshot": None, "foreach": None}
_ADAM = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "caution": False, **_CORRECTED}
_FLAGS = {"maximize": False, "capturable": False}


def _counted(step: float) -> Any:
    return torch.tensor(step, device="cpu")


PEERS = {
    # It clips by the constructor's argument, whatever the groups say.
    "Lamb": Peer(
        "LAMB",
        group_step=True,
        once=lambda group: {"max_grad_norm": group["max_grad_norm"]},
        back=Back(
            {
                **_ADAM,
                "bias_correction": True,
                "grad_averaging": True,
                "max_grad_norm": None,
                "trust_clip": False,
                "always_adapt": False,
                "decoupled_decay": False,
            },
            counter=_counted,
            constructor={"max_grad_norm": 1.0},
        ),
    ),
    "Lars": Peer("LARS"),
    "Lion": Peer(
        "Lion",
        back=Back(
            {
                "lr": 1e-4,
                "betas": (0.9, 0.99),
                "weight_decay": 0.0,
                "caution": False,
                "maximize": False,
                **_CORRECTED,
            }
        ),
    ),
    "Adan": Peer("Adan", group_step=True),
    "AdamWLegacy": Peer(
        "AdamW", back=Back({**_ADAM, "amsgrad": False, "clipping_threshold": None, **_FLAGS}, counter=_counted)
    ),
    "NAdamLegacy": Peer("NAdam", hypers={"schedule_decay": "momentum_decay"}, states={"m_schedule": "mu_product"}),
    "RAdamLegacy": Peer("RAdam", fixed={"decoupled_weight_decay": True}),
    "SGDW": Peer("SGD", fixed={"decoupled_weight_decay": True}),
    "RMSpropTF": Peer(
        "RMSprop",
        hypers={"decoupled_decay": "decoupled_weight_decay"},
        fixed={"eps_in_sqrt": True, "initial_accumulator_value": 1.0},
    ),
    "NAdamW": Peer("NAdamW"),
    "Mars": Peer("MARS", refused=_refused_mars),
    "NvNovoGrad": Peer("NovoGrad", states={"exp_avg_sq": "exp_avg_norm_sq"}, refused=_refused_novograd),
    "LaProp": Peer("LaProp", more_states=_averaged_rates),
    "AdaBelief": Peer("AdaBelief"),
    "Adafactor": Peer(
        "Adafactor",
        more_hypers=_adafactor_hypers,
        keeps=ADAFACTOR_STATES,
        more_states=adafactor_states,
        refused=_refused_adafactor,
    ),
}
OTHERS = {
    "Muon": "by default its coefficients are of another set in each iteration, and it steps vectors by AdamW",
}
