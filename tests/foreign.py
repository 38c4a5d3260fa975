"""Files of other packages' optimizers, in the form that those document, made of what ours have kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from support import save_and_load
from torch.nn import Parameter

import fusedopt

SHAPES = ((5, 7), (64, 65), (9,))
State = dict[str, Any]


def foreign_params(dtype: torch.dtype = torch.float32) -> list[Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]


def _step(state: State) -> int:
    return int(state["step"])


@dataclass(frozen=True)
class Form:
    """How a package writes what a class of ours has kept."""

    source: str
    ours: str
    kwargs: dict[str, Any]
    # Keys of a group that are theirs, and names of theirs by ours.
    group: dict[str, Any]
    hypers: Mapping[str, str | None] = field(default_factory=dict)
    state: Callable[[State], State] = dict
    told: dict[str, Any] = field(default_factory=dict)
    group_step: bool = False
    dtype: torch.dtype = torch.float32
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.source}{list(self.told.items()) or ''}{list(self.options.values()) or ''}"

    def make(self, params: list[Parameter]) -> Any:
        return getattr(fusedopt, self.ours)(params, **self.kwargs, **self.options)

    def write(self, ours: Any) -> dict[str, Any]:
        file = ours.state_dict()
        named = {self.hypers.get(key, key): value for key, value in file["param_groups"][0].items()}
        keys = ("lr", "betas", "eps", "weight_decay", "momentum", "params", *self.hypers.values())
        group = {key: value for key, value in named.items() if key in keys and key is not None}
        steps = {"step": _step(file["state"][0])} if self.group_step else {}
        state = {index: self.state(its) for index, its in file["state"].items()}
        return save_and_load({"state": state, "param_groups": [{**group, **self.group, **steps}]})


def _without_step(state: State) -> State:
    return {key: value for key, value in state.items() if key != "step"}


def _bnb(*names: str) -> Callable[[State], State]:
    def write(state: State) -> State:
        tensors = {f"state{i}": state[name] for i, name in enumerate(names, 1)}
        return {"step": 3, "__bnb_optimizer_quant_state__": tensors}

    return write


def _mixed(state: State) -> State:
    """Both averages of the gradient in one tensor."""
    averages = torch.stack([state["exp_avg"], state["exp_avg_slow"]])
    return {"step": 3, "__bnb_optimizer_quant_state__": {"state1": averages, "state2": state["exp_avg_sq"]}}


def _optimi(**betas: float) -> Callable[[State], State]:
    """Its averages are divided by 1 - beta^t already."""

    def write(state: State) -> State:
        made = {name: state[name] / (1 - beta**3) for name, beta in betas.items()}
        return {**made, "kahan_comp": state.get("compensation")}

    return write


def _adan(state: State) -> State:
    made = _optimi(exp_avg=0.98, exp_avg_diff=0.92, exp_avg_sq=0.99)(state)
    return {**made, "prev_grad": state["neg_pre_grad"]}


def _rows(state: State) -> State:
    made = {"step": _step(state), "RMS": torch.tensor(1.0)}
    if "variance" in state:
        return {**made, "exp_avg_sq": state["variance"]}
    return {**made, "exp_avg_sq_row": state["row_var"].squeeze(-1), "exp_avg_sq_col": state["col_var"].squeeze(-2)}


def _master(key: str) -> Callable[[State], State]:
    def write(state: State) -> State:
        return {**_without_step(state), "master_param": state[key], key: None}

    return write


OPTIMI = {"decouple_lr": False, "max_lr": None, "kahan_sum": None, "gradient_release": False, "foreach": None}
ADAFACTOR = {
    "lr": None,
    "eps": (1e-30, 1e-3),
    "clip_threshold": 1.0,
    "decay_rate": -0.8,
    "beta1": None,
    "scale_parameter": True,
    "relative_step": True,
    "warmup_init": False,
}
_ADAM = {"lr": 0.01, "weight_decay": 0.1}
_APART = {"weight_decay": 0.1, "nesterov": True, "decoupled_weight_decay": True}
_TENSORFLOW = {"eps_in_sqrt": True, "lr_in_momentum": True, "initial_accumulator_value": 1.0}
_GIVEN = {"scale_parameter": False, "relative_step": False}
_WARM = {"warmup_init": True, "scale_parameter": False}
_TE = {"dtype": torch.bfloat16, "group_step": True}
FORMS = [
    Form("bitsandbytes.optim.AdamW", "AdamW", _ADAM, {"alpha": 0.0}, state=_bnb("exp_avg", "exp_avg_sq")),
    Form("bitsandbytes.PagedAdam32bit", "AdamW", _ADAM, {"t_alpha": None}, state=_bnb("exp_avg", "exp_avg_sq")),
    Form(
        "bitsandbytes.AdEMAMix",
        "AdEMAMix",
        {**_ADAM, "alpha": 3.0, "t_alpha": 9, "t_beta3": 7},
        {"alpha": 3.0, "t_alpha": 9, "t_beta3": 7},
        state=_mixed,
    ),
    Form("bitsandbytes.Lion", "Lion", _ADAM, {"eps": 0.0}, state=_bnb("exp_avg")),
    Form(
        "bitsandbytes.SGD",
        "SGD",
        {"lr": 0.01, "momentum": 0.9},
        {"betas": (0.9, 0), "eps": 0.0},
        {"momentum": None},
        _bnb("momentum_buffer"),
    ),
    Form("bitsandbytes.RMSprop", "RMSprop", {"alpha": 0.9}, {"betas": (0.9, 0)}, {"alpha": None}, _bnb("square_avg")),
    Form("bitsandbytes.Adagrad", "Adagrad", {"lr": 0.01}, {"betas": (0.0, 0.0)}, state=_bnb("sum")),
    Form("deepspeed.ops.adam.DeepSpeedCPUAdam", "AdamW", _ADAM, {"bias_correction": True}),
    Form("deepspeed.DeepSpeedCPUAdam", "Adam", _ADAM, {"amsgrad": False}, told={"adam_w_mode": False}),
    Form("deepspeed.FusedAdam", "AdamW", _ADAM, {"bias_correction": True}),
    Form("deepspeed.DeepSpeedCPUAdagrad", "Adagrad", {}, {}, state=lambda s: {"step": 3, "exp_avg_sq": s["sum"]}),
    Form(
        "optimi.AdamW",
        "AdamW",
        _ADAM,
        {**OPTIMI, "beta1": 0.9, "beta2": 0.999, "decouple_wd": True},
        {"betas": None},
        _optimi(exp_avg=0.9, exp_avg_sq=0.999),
        group_step=True,
    ),
    Form(
        "optimi.Adam",
        "AdamW",
        {"lr": 0.01, "weight_decay": 0.1},
        {**OPTIMI, "beta1": 0.9, "beta2": 0.999, "decouple_wd": False, "decouple_lr": True, "max_lr": 0.5}
        | {"weight_decay": 0.05},
        {"betas": None},
        _optimi(exp_avg=0.9, exp_avg_sq=0.999),
        group_step=True,
    ),
    Form(
        "optimi.Adan",
        "Adan",
        {"lr": 0.01, "weight_decay": 0.1},
        {**OPTIMI, "beta1": 0.98, "beta2": 0.92, "beta3": 0.99, "adam_wd": False},
        {"betas": None},
        _adan,
        group_step=True,
    ),
    Form(
        "optimi.SGD",
        "SGD",
        {"lr": 0.01, "momentum": 0.9, "dampening": 0.9},
        {**OPTIMI, "dampening": True, "decouple_wd": False, "torch_init": False},
        state=lambda s: {"exp_avg": s["momentum_buffer"], "kahan_comp": None},
    ),
    Form("optimi.Lion", "Lion", _ADAM, {**OPTIMI, "beta1": 0.9, "beta2": 0.99}, {"betas": None}),
    Form(
        "optimi.AdamW",
        "AdamW",
        {"lr": 0.01},
        {**OPTIMI, "beta1": 0.9, "beta2": 0.999, "decouple_wd": True, "kahan_sum": True},
        {"betas": None},
        _optimi(exp_avg=0.9, exp_avg_sq=0.999),
        group_step=True,
        dtype=torch.bfloat16,
        options={"rounding": "kahan"},
    ),
    Form(
        "timm.optim.lamb.Lamb",
        "LAMB",
        {**_ADAM, "max_grad_norm": 2.0},
        {"max_grad_norm": 2.0, "decoupled_decay": False, "trust_clip": False, "always_adapt": False},
        state=_without_step,
        group_step=True,
    ),
    Form("timm.Adan", "Adan", _ADAM, {"no_prox": False, "caution": False}, state=_without_step, group_step=True),
    Form("timm.AdamWLegacy", "AdamW", {**_ADAM, "caution": True}, {"caution": True, "corrected_weight_decay": False}),
    Form("timm.Lion", "Lion", {**_ADAM, "caution": True}, {"caution": True}),
    Form("timm.Mars", "MARS", _ADAM, {"optimize_1d": True, "mars_type": "adamw", "caution": False}),
    Form("timm.Lars", "LARS", {"lr": 0.1, "momentum": 0.9}, {"trust_coeff": 0.001, "dampening": 0}),
    Form(
        "timm.NAdamLegacy",
        "NAdam",
        {"lr": 0.01},
        {"schedule_decay": 4e-3},
        state=lambda s: {
            "m_schedule": s["mu_product"].item(),
            **{key: s[key] for key in ("step", "exp_avg", "exp_avg_sq")},
        },
    ),
    Form("timm.RAdamLegacy", "RAdam", {**_ADAM, "decoupled_weight_decay": True}, {}),
    Form("timm.SGDW", "SGD", {"lr": 0.01, "momentum": 0.9, **_APART}, {"nesterov": True, "caution": False}),
    Form(
        "timm.RMSpropTF",
        "RMSprop",
        {**_ADAM, **_TENSORFLOW, "momentum": 0.9},
        {"alpha": 0.99, "eps": 1e-8, "centered": False, "decoupled_decay": False, "lr_in_momentum": True},
    ),
    Form(
        "timm.NvNovoGrad",
        "NovoGrad",
        _ADAM,
        {"amsgrad": False, "grad_averaging": False, "decoupled_decay": False, "corrected_weight_decay": False},
        state=lambda s: {"step": _step(s), "exp_avg": s["exp_avg"], "exp_avg_sq": s["exp_avg_norm_sq"]},
    ),
    Form(
        "prodigyopt.Prodigy",
        "Prodigy",
        {"d0": 1e-3, "weight_decay": 0.1},
        {"slice_p": 1, "fsdp_in_use": False},
        {key: key for key in fusedopt.Prodigy([torch.zeros(1)]).defaults},
        lambda s: {**s, "step": _step(s), "s": s["s"].flatten(), "p0": s["p0"].flatten()},
    ),
    Form("timm.NAdamW", "NAdamW", _ADAM, {"caution": False}),
    Form("sophia_opt.SophiaG", "SophiaG", {**_ADAM, "rho": 0.1, "bs": 64}, {"rho": 0.1}, told={"bs": 64}),
    Form(
        "timm.LaProp",
        "LaProp",
        _ADAM,
        {"caution": False},
        state=lambda s: {**s, "exp_avg_lr_1": s["exp_avg_lr_1"].item()},
    ),
    Form(
        "timm.AdaBelief",
        "AdaBelief",
        {**_ADAM, "amsgrad": True, "rectify": False},
        {"amsgrad": True, "rectify": False, "decoupled_decay": True, "fixed_decay": False, "degenerated_to_sgd": True},
        state=lambda s: {**s, "step": _step(s)},
    ),
    *[
        Form(
            f"schedulefree.{name}",
            name,
            {"lr": 0.01, "r": r},
            {
                "k": 3,
                "lr_max": 0.01,
                "weight_sum": weights * 0.01**2,
                "weight_lr_power": 2.0,
                "r": r,
                "train_mode": True,
            },
            state=lambda s: {key: value for key, value in s.items() if key in ("z", "exp_avg_sq")},
        )
        for name, r, weights in (("AdamWScheduleFree", 0.0, 3), ("SGDScheduleFree", 1.0, 6))
    ],
    Form("lion_pytorch.Lion", "Lion", _ADAM, {}),
    Form(
        "lion_pytorch.Lion",
        "Lion",
        {"lr": 0.01, "weight_decay": 0.1},
        {"weight_decay": 0.002},
        told={"decoupled_wd": True, "_init_lr": 0.02},
    ),
    Form(
        "pytorch_optimizer.NovoGrad",
        "NovoGrad",
        {**_ADAM, "decoupled_decay": True},
        {"grad_averaging": False, "fixed_decay": False},
        {"decoupled_decay": "weight_decouple"},
        lambda s: {"moments": s["exp_avg"], "grads_ema": s["exp_avg_norm_sq"]},
        group_step=True,
    ),
    Form(
        "pytorch_optimizer.Adan",
        "Adan",
        {**_ADAM, "no_prox": True},
        {"max_grad_norm": 0.0},
        {"no_prox": "weight_decouple"},
        lambda s: {"previous_grad": s["neg_pre_grad"], **{k: s[k] for k in ("exp_avg", "exp_avg_diff", "exp_avg_sq")}},
        group_step=True,
    ),
    Form("pytorch_optimizer.AdaMax", "Adamax", {"lr": 0.01}, {}, state=_without_step, group_step=True),
    Form(
        "pytorch_optimizer.Lion",
        "Lion",
        {**_ADAM, "maximize": True},
        {"weight_decouple": True, "fixed_decay": False, "step": 3},
        told={"maximize": True},
    ),
    Form("transformers.Adafactor", "Adafactor", {"eps": (1e-30, 1e-3)}, ADAFACTOR, state=_rows),
    *[
        Form(
            "transformers.Adafactor",
            "Adafactor",
            {"eps": (1e-30, 1e-3), **kwargs},
            {**ADAFACTOR, **kwargs},
            {"weight_decay": "weight_decay"},
            _rows,
        )
        for kwargs in ({"lr": 1e-3, "weight_decay": 0.1, **_GIVEN}, {"lr": 0.02, "relative_step": False})
    ],
    Form("transformers.Adafactor", "Adafactor", {"eps": (1e-30, 1e-3), **_WARM}, {**ADAFACTOR, **_WARM}, state=_rows),
    Form(
        "torch_optimizer.Adafactor",
        "Adafactor",
        {"eps": (1e-30, 1e-3)},
        {**ADAFACTOR, "eps2": (1e-30, 1e-3)},
        {"eps": None},
        _rows,
    ),
    Form(
        "torch_optimizer.Lamb",
        "LAMB",
        {**_ADAM, "bias_correction": False, "always_adapt": True, "clamp_value": 0.5},
        {},
        state=lambda s: {**s, "step": 3, "weight_norm": 1.0, "adam_norm": 1.0, "trust_ratio": 1.0},
        told={"clamp_value": 0.5},
    ),
    Form("torch_optimizer.LARS", "LARS", {"lr": 0.1, "momentum": 0.9}, {}, {"trust_coeff": "trust_coefficient"}),
    Form("apex.optimizers.FusedAdam", "AdamW", _ADAM, {"bias_correction": True}, state=_without_step, group_step=True),
    Form("apex.FusedSGD", "SGD", {"lr": 0.01, "momentum": 0.9}, {"dampening": 0.0, "nesterov": False}),
    Form(
        "apex.FusedLAMB",
        "LAMB",
        {**_ADAM, "max_grad_norm": 1.0, "always_adapt": True},
        {"max_grad_norm": 1.0, "bias_correction": True, "grad_averaging": True},
        state=_without_step,
        group_step=True,
        told={"use_nvlamb": True},
    ),
    Form(
        "transformer_engine.pytorch.optimizers.FusedAdam",
        "AdamW",
        _ADAM,
        {"bias_correction": True},
        state=_master("master"),
        options={"master_weights": "float32"},
        **_TE,
    ),
    Form(
        "transformer_engine.FusedAdam",
        "AdamW",
        _ADAM,
        {},
        state=_master("remainder"),
        options={"master_weights": "remainder"},
        **_TE,
    ),
    Form("transformer_engine.FusedSGD", "SGD", {"lr": 0.01, "momentum": 0.9}, {"dampening": 0.0}),
]


def stand_in(path: str, **members: Any) -> Any:
    """A class in the place of a package's."""
    module, _, name = path.rpartition(".")
    return type(name, (torch.optim.Optimizer,), {"__module__": module, **members})


def live(path: str, params: list[Parameter], defaults: dict[str, Any], **attributes: Any) -> Any:
    optimizer = stand_in(path)(params, defaults)
    vars(optimizer).update(attributes)
    return optimizer
