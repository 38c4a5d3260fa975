"""A file or optimizer of another class, or of another rule, is refused by its keys and by its maths."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from foreign import ADAFACTOR, FORMS, OPTIMI, Form, foreign_params, live, stand_in
from support import assert_identical, snapshot, train
from torch.nn import Parameter

import fusedopt
from fusedopt._peers import registry


def test_a_file_of_another_class_does_not_start_anew() -> None:
    ours = fusedopt.Lion(foreign_params())
    group = {"lr": 0.1, "betas": (0.9, 0.99), "weight_decay": 0.0, "params": [0, 1, 2]}
    file = {"state": {0: {"momentum_buffer": torch.ones(5, 7)}}, "param_groups": [group]}
    with pytest.raises(ValueError, match=r"param 0 has .'momentum_buffer'., which timm.Lion does not keep, among"):
        fusedopt.load_foreign(ours, file, "timm.Lion")


# What files of other classes hold is told by keys of states and groups, and by shapes. For each class those of whose
# files it takes others', which a step cannot tell from its own; those that are the same rule go on as they would.
_ADAMS = {"deepspeed.DeepSpeedCPUAdam", "deepspeed.FusedAdam", "timm.RAdamLegacy", "timm.NAdamW"}
_BY_ONE_STATE = {f"bitsandbytes.{name}" for name in ("Lion", "SGD", "RMSprop", "Adagrad")}
ALIKE: dict[str, set[str]] = {
    # Without keys of its own in either.
    "timm.AdamWLegacy": _ADAMS,
    "timm.NAdamW": _ADAMS,
    "timm.RAdamLegacy": _ADAMS,
    "deepspeed.DeepSpeedCPUAdam": _ADAMS,
    "deepspeed.FusedAdam": _ADAMS,
    "torchao": _ADAMS,
    "torch_optimizer.Lamb": _ADAMS,
    "torch_optimizer.RAdam": _ADAMS,
    "bitsandbytes.Lion": {"bitsandbytes.SGD"},
    "bitsandbytes.SGD": {"bitsandbytes.Lion"},
    "bitsandbytes.RMSprop": _BY_ONE_STATE,
    "bitsandbytes.Adam": {"bitsandbytes.AdamW"},
    "bitsandbytes.AdamW": {"bitsandbytes.Adam"},
    "optimi.Adam": {"optimi.AdamW"},
    "optimi.AdamW": {"optimi.Adam"},
    "optimi.StableAdamW": {"optimi.Adam", "optimi.AdamW"},
    "schedulefree.RAdamScheduleFree": {"schedulefree.AdamWScheduleFree"},
    "timm.Lion": {"lion_pytorch.Lion", "pytorch_optimizer.Lion"},
    "lion_pytorch.Lion": {"pytorch_optimizer.Lion"},
    "pytorch_optimizer.Lion": {"lion_pytorch.Lion"},
    "timm.SGDW": {"apex.FusedSGD", "transformer_engine.FusedSGD"},
    "apex.FusedSGD": {"transformer_engine.FusedSGD"},
    "transformer_engine.FusedSGD": {"apex.FusedSGD"},
    "transformer_engine.FusedAdam": {"apex.FusedAdam"},
    "apex.FusedLAMB": {"timm.Lamb"},
    "timm.Lamb": {"apex.FusedLAMB"},
    "torch_optimizer.LARS": {"timm.Lars"},
    "transformers.Adafactor": {"torch_optimizer.Adafactor"},
}


def _plain(name: str) -> str:
    name = re.sub(r"Paged|8bit|32bit", "", name)
    return "torchao" if name.startswith("torchao") else name


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_file_is_taken_for_no_other_class_that_it_can_be_told_from(form: Form) -> None:
    whole = form.make(foreign_params(form.dtype))
    train(whole, 2)
    file, own = form.write(whole), _plain(registry.name_of(form.source))
    taken = set()
    for name, peer in registry.PEERS.items():
        rule = peer.rule if isinstance(peer.rule, str) else form.ours
        ours = getattr(fusedopt, rule)(foreign_params(form.dtype))
        before = snapshot(ours), dict(ours.param_groups[0])
        try:
            fusedopt.load_foreign(ours, file, name)
            taken.add(_plain(name))
        except (TypeError, ValueError):
            assert_identical(snapshot(ours), before[0])
            assert ours.param_groups[0] == before[1]
    assert {name for name in taken - {own} if own not in ALIKE.get(name, set())} == set()


def test_a_file_of_torchs_names_is_none_of_bitsandbytes() -> None:
    whole = fusedopt.AdamW(foreign_params())
    train(whole, 1)
    file = whole.state_dict()
    for name in ("Lion", "AdamW", "SGD", "AdEMAMix"):
        ours = getattr(fusedopt, name)(foreign_params())
        with pytest.raises(ValueError, match=r"which bitsandbytes.\w+ does not keep, among|its groups have"):
            fusedopt.load_foreign(ours, file, f"bitsandbytes.{name}")
        assert not ours.state


def test_a_state_of_another_shape_is_refused() -> None:
    """AdEMAMix has both averages in one tensor, and another model has other params."""
    ours = fusedopt.AdamW([Parameter(torch.zeros(3))])
    group = {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1, "params": [0]}
    file = {"state": {0: {"step": 1, "state1": torch.ones(2, 3), "state2": torch.ones(3)}}, "param_groups": [group]}
    with pytest.raises(
        ValueError, match=r"the state of param 0 has \[2, 3\] for 'exp_avg', and the param is \[3\]; give"
    ):
        fusedopt.load_foreign(ours, file, "bitsandbytes.AdamW")
    assert not ours.state


def test_a_group_without_what_every_class_has_is_refused() -> None:
    ours = fusedopt.AdamW(foreign_params())
    group = {"lr": 0.1, "eps": 1e-8, "weight_decay": 0.1, "params": [0, 1, 2]}
    with pytest.raises(
        ValueError, match=r"param_groups\[0\] of the file lacks 'betas', which bitsandbytes.AdamW has; give"
    ):
        fusedopt.load_foreign(ours, {"state": {}, "param_groups": [group]}, "bitsandbytes.AdamW")
    with pytest.raises(
        ValueError, match=r"param_groups\[0\] of the file lacks 'decouple_wd', which optimi.Adam has; give"
    ):
        fusedopt.load_foreign(ours, {"state": {}, "param_groups": [group]}, "optimi.Adam")
    file = {"state": {}, "param_groups": [{**group, "betas": (0.9, 0.99), "caution": False}]}
    with pytest.raises(ValueError, match=r"of the file is of timm by its keys, and not of torchao.AdamW8bit: \['betas"):
        fusedopt.load_foreign(ours, file, "torchao.AdamW8bit")


# What is refused.

_BNB = {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}
_LAMB = {**_BNB, "max_grad_norm": 1.0, "bias_correction": True, "grad_averaging": True}
_MARS = {**_BNB, "gamma": 0.025, "mars_type": "adamw", "optimize_1d": True, "caution": False}
_SGD = {"lr": 0.1, "momentum": 0.9, "dampening": 0.0, "nesterov": False, "weight_decay": 0.1}
_KOZISTR = {**_BNB, "weight_decouple": True, "fixed_decay": False}
_ROWS = {**ADAFACTOR, "weight_decay": 0.0}
_TIMM = {**_ROWS, "eps": 1e-30, "eps_scale": 1e-3, "min_dim_size_to_factor": 16}
# Source, class of ours, group, what its constructor was given, and the line of maths.
REFUSED: dict[str, tuple[str, str, dict[str, Any], dict[str, Any], str]] = {
    "bias correction": ("timm.Adan", "Adan", {**_BNB, "bias_correction": False}, {}, "with bias_correction=False it d"),
    "caution": ("timm.LaProp", "LaProp", {**_BNB, "caution": True}, {}, "with caution=True it leaves out elements"),
    "LARS's decay": ("timm.Lars", "LARS", {**_SGD, "decoupled_decay": True}, {}, "with decoupled_decay=True it dec"),
    "release": (
        "optimi.Lion",
        "Lion",
        {**_BNB, **OPTIMI, "beta1": 0.9, "beta2": 0.99, "gradient_release": True},
        {},
        "with gradient_release=True its states hold groups; fusedopt.step_in_backward",
    ),
    "beta1": ("transformers.Adafactor", "Adafactor", {**_ROWS, "beta1": 0.9}, {}, "it averages its updates by beta1"),
    "decay": ("transformers.Adafactor", "Adafactor", {**_ROWS, "weight_decay": 0.1}, {}, "decays p by weight_decay ti"),
    "small": ("timm.Adafactor", "Adafactor", _TIMM, {}, "it keeps the whole second moment of matrices with a side of"),
    "gc": ("pytorch_optimizer.Lion", "Lion", {**_KOZISTR, "use_gc": True}, {}, "subtracts the mean from gradients"),
    "fixed decay": ("pytorch_optimizer.Lion", "Lion", {**_KOZISTR, "fixed_decay": True}, {}, "with fixed_decay=True"),
    "still": ("pytorch_optimizer.RAdam", "RAdam", _KOZISTR, {}, "without degenerated_to_sgd params stand still in"),
    "threshold": (
        "pytorch_optimizer.RAdam",
        "RAdam",
        _KOZISTR,
        {"degenerated_to_sgd": True, "n_sma_threshold": 4},
        "it rectifies from n_sma_threshold=4 on, ours from 5",
    ),
    "no decay": (
        "pytorch_optimizer.RAdam",
        "RAdam",
        {**_KOZISTR, "weight_decouple": False},
        {"degenerated_to_sgd": True},
        "without weight_decouple it does not decay",
    ),
    "vectors": ("pytorch_optimizer.LARS", "LARS", _SGD, {}, "it leaves out ratio and decay of vectors and scalars"),
    "debias": ("torch_optimizer.Lamb", "LAMB", _BNB, {"debias": True}, "the bias correction is outside of the trust"),
    "adam": ("torch_optimizer.Lamb", "LAMB", _BNB, {"adam": True}, "with adam=True the trust ratio is 1"),
    "Lion's way": (
        "timm.Mars",
        "MARS",
        {**_MARS, "mars_type": "lion"},
        {},
        "with mars_type='lion' it steps by the sign of the average",
    ),
    "MARS's vectors": (
        "timm.Mars",
        "MARS",
        {**_MARS, "optimize_1d": False},
        {},
        "it steps vectors by AdamW, which takes an",
    ),
    "masters": ("apex.FusedAdam", "AdamW", _BNB, {"master_weights": True}, "its master weights are neither in its"),
    "after": ("apex.FusedSGD", "SGD", _SGD, {"wd_after_momentum": True}, "adds weight_decay [*] p to the momentum"),
    "TE's": ("transformer_engine.FusedSGD", "SGD", _SGD, {"wd_after_momentum": True}, "[*] p to the momentum, where"),
    "L2": ("apex.FusedLAMB", "LAMB", _LAMB, {"adam_w_mode": False}, "adds weight_decay [*] p to the gradient, where"),
}


@pytest.mark.parametrize(("source", "name", "group", "told", "line"), REFUSED.values(), ids=REFUSED)
def test_another_rule_is_refused_by_its_maths(
    source: str, name: str, group: dict[str, Any], told: dict[str, Any], line: str
) -> None:
    optimizer = getattr(fusedopt, name)(foreign_params())
    train(optimizer, 1)
    kept, numbers = snapshot(optimizer), dict(optimizer.param_groups[0])
    file = {"state": {}, "param_groups": [{**group, "params": [0, 1, 2]}]}
    match = rf"{source} does not step as fusedopt.{name} does, by its param_groups\[0\]: .*{line}"
    with pytest.raises(ValueError, match=match):
        fusedopt.load_foreign(optimizer, file, source, **told)
    assert_identical(snapshot(optimizer), kept)
    assert optimizer.param_groups[0] == numbers


def test_convolutions_of_timms_adafactor_are_refused() -> None:
    group = {**_TIMM, "params": [0]}
    optimizer = fusedopt.Adafactor([Parameter(torch.zeros(20, 20, 3, 3))])
    with pytest.raises(ValueError, match="of a tensor of more dimensions it factors the largest two, ours the last"):
        fusedopt.load_foreign(optimizer, {"state": {}, "param_groups": [group]}, "timm.Adafactor")


@pytest.mark.parametrize("name", registry.OTHERS)
def test_what_no_class_has_the_rule_of_is_refused(name: str) -> None:
    theirs = live(name, foreign_params(), {"lr": 0.1})
    with pytest.raises(TypeError, match=f"fusedopt has no class with the rule of {name}: .*; construct one anew"):
        fusedopt.replace(theirs)
    with pytest.raises(TypeError, match=f"fusedopt has no class with the rule of {name}: "):
        fusedopt.load_foreign(fusedopt.SGD(foreign_params()), theirs.state_dict(), name)


def _load(name: str, source: str, sizes: int = 3, **told: Any) -> None:
    group = {**_BNB, "bias_correction": True, "params": list(range(sizes))}
    fusedopt.load_foreign(
        getattr(fusedopt, name)(foreign_params()), {"state": {}, "param_groups": [group]}, source, **told
    )


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(
        TypeError, match=r"bitsandbytes.Adam steps as fusedopt.AdamW does; load its file into one of the"
    ):
        _load("Adam", "bitsandbytes.optim.Adam")
    with pytest.raises(TypeError, match=r"knows no optimizer lion_pytorch.Tiger; it knows lion_pytorch.Lion"):
        _load("Lion", "lion_pytorch.Tiger")
    with pytest.raises(TypeError, match=r"knows no optimizer zoo.Lion; it knows apex, bitsandbytes, deepspeed, "):
        _load("Lion", "zoo.Lion")
    with pytest.raises(TypeError, match=r"DeepSpeedCPUAdam has no 'adamw' beside its groups; .* \['adam_w_mode'\]"):
        _load("Adam", "deepspeed.DeepSpeedCPUAdam", adamw=False)
    with pytest.raises(TypeError, match="Lion has no 'maximize' beside its groups; give any of none"):
        _load("Lion", "timm.Lion", maximize=False)
    with pytest.raises(
        ValueError, match=r"the file has groups of \[2\] params, and the optimizer of \[3\]; give one o"
    ):
        _load("AdamW", "bitsandbytes.AdamW", sizes=2)


@pytest.mark.parametrize(
    ("source", "told", "said"),
    [
        ("deepspeed.DeepSpeedCPUAdam", {"adam_w_mode": "False"}, "adam_w_mode is 'False'; give True or False"),
        ("deepspeed.DeepSpeedCPUAdam", {"adam_w_mode": None}, "adam_w_mode is None; give True or False"),
        ("lion_pytorch.Lion", {"_init_lr": "1e-4"}, "_init_lr is '1e-4'; give a number"),
        (None, {}, "None names no optimizer; give a class, or its name such as 'bitsandbytes.AdamW'"),
        ("", {}, "'' names no optimizer; "),
    ],
)
def test_what_is_told_in_words_is_refused(source: Any, told: dict[str, Any], said: str) -> None:
    for call in (fusedopt.load_foreign, lambda o, _, *rest, **more: fusedopt.foreign_state_dict(o, *rest, **more)):
        ours = fusedopt.AdamW(foreign_params())
        before = snapshot(ours)
        with pytest.raises(TypeError, match=re.escape(said)):
            call(ours, {"state": {}, "param_groups": []}, source, **told)
        assert_identical(snapshot(ours), before)


def test_what_is_no_file_or_no_optimizer_of_ours_is_named() -> None:
    file = {"state": {}, "param_groups": [{**_BNB, "params": [0, 1, 2]}]}
    with pytest.raises(TypeError, match=r"this is a torch.AdamW; give one of ours, as fusedopt.replace\(\) makes it"):
        fusedopt.load_foreign(torch.optim.AdamW(foreign_params()), file, "bitsandbytes.AdamW")
    with pytest.raises(TypeError, match=r"load its file into one of these, not into a fusedopt.SGD"):
        fusedopt.load_foreign(fusedopt.SGD(foreign_params()), file, "bitsandbytes.AdamW")
    for other in ({"optimizer": file}, {"state": {}}, None):
        with pytest.raises(ValueError, match=r"the file has no 'state' and 'param_groups'; give what the other's st"):
            fusedopt.load_foreign(fusedopt.AdamW(foreign_params()), other, "bitsandbytes.AdamW")  # type: ignore[arg-type]


def test_without_a_decay_adam_and_adamw_are_one() -> None:
    group = {**_BNB, "weight_decay": 0, "params": [0, 1, 2]}
    optimizer = fusedopt.Adam(foreign_params())
    fusedopt.load_foreign(optimizer, {"state": {}, "param_groups": [group]}, "bitsandbytes.Adam8bit")
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.99)


def test_a_subclass_of_theirs_is_refused() -> None:
    base = stand_in("bitsandbytes.optim.adamw.AdamW")

    class Mine(base):  # type: ignore[misc, valid-type]
        pass

    with pytest.raises(TypeError, match=r"fusedopt has no replacement for .*Mine"):
        fusedopt.replace(Mine(foreign_params(), dict(_BNB)))
