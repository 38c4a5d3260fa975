"""Files of other packages' optimizers are refused when they are loaded, by name and with all left as it was."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import CASES
from support import EMULATED, assert_identical, give_grads, snapshot
from torch import Tensor
from torch.nn import Parameter
from torch.testing._internal.two_tensor import TwoTensor

import fusedopt
from fusedopt import _C
from fusedopt._peers.registry import PEERS
from fusedopt._peers.signs import CONVERTED, SETTINGS

SHAPE = (4, 3)


def _params() -> list[Parameter]:
    return [Parameter(torch.ones(SHAPE)), Parameter(torch.ones(SHAPE))]


def _like() -> Tensor:
    return torch.full(SHAPE, 0.5)


def _stepped(cls: Any, **kwargs: Any) -> Any:
    optimizer = cls(_params(), lr=0.1, **kwargs)
    give_grads(optimizer.param_groups[0]["params"], 1)
    optimizer.step()
    return optimizer


def _file(optimizer: Any, state: dict[Any, Any], **group: Any) -> dict[str, Any]:
    """The optimizer's own, with another state and more in its group."""
    return {
        "state": {0: state, 1: dict(state)},
        "param_groups": [{**optimizer.state_dict()["param_groups"][0], **group}],
    }


def _refuse(optimizer: Any, file: dict[str, Any], match: str) -> None:
    state, groups = optimizer.state, optimizer.param_groups
    kept, numbers = snapshot(optimizer), [dict(group) for group in groups]
    with pytest.raises(ValueError, match=match):
        optimizer.load_state_dict(file)
    assert optimizer.state is state
    assert optimizer.param_groups is groups
    assert [dict(group) for group in groups] == numbers
    assert_identical(snapshot(optimizer), kept)


BNB = {"step": 2, "__bnb_optimizer_quant_state__": {"state1": _like()}}
OPTIMI = {"exp_avg": _like(), "kahan_comp": None}
HEAVYBALL = {0: {"step": torch.tensor(2), "heavyball_momentum_momentum_0": _like()}}

# Class, its arguments, a state as the other package keeps it, and what the refusal says of it.
STATES: dict[str, tuple[str, dict[str, Any], dict[Any, Any], str]] = {
    "bitsandbytes.Lion": ("Lion", {}, BNB, "of another optimizer, bitsandbytes, by its keys: .*'step'"),
    "bitsandbytes.SGD": ("SGD", {"momentum": 0.9}, BNB, "of another optimizer, bitsandbytes"),
    "bitsandbytes.SGD, flat": ("LARS", {"momentum": 0.9}, {"state1": _like()}, "another optimizer, bitsandbytes"),
    "bitsandbytes.Muon": ("Muon", {}, BNB, "of another optimizer, bitsandbytes"),
    "bitsandbytes.AdamW": ("AdamW", {}, BNB, r"lacks \['exp_avg', 'exp_avg_sq'\], .*, as bitsandbytes has; load a"),
    "optimi.SGD": ("SGD", {"momentum": 0.9}, OPTIMI, "param 0 of group 0: .* another optimizer, optimi, by its keys"),
    "optimi.SGD without momentum": ("SGD", {}, {"kahan_comp": None}, "of another optimizer, optimi, by its keys"),
    "optimi.AdamW": ("AdamW", {}, {**OPTIMI, "exp_avg_sq": _like()}, r"lacks \['step'\], which AdamW keeps, .* optimi"),
    "heavyball.SGD": ("SGD", {"momentum": 0.9}, HEAVYBALL, r"another optimizer, heavyball, by its keys: \['0'\]"),
    "heavyball.AdamW": ("AdamW", {}, HEAVYBALL, r"another optimizer, heavyball, by its keys: \['0'\]"),
    "prodigyopt": ("Lion", {}, {"s": _like(), "p0": _like()}, "of another optimizer, prodigyopt"),
    "DAdaptSGD": ("SGD", {"momentum": 0.9}, {"z": _like(), "s": _like(), "x0": _like()}, "optimizer, dadaptation"),
    "ScheduleFree SGD": ("SGD", {"momentum": 0.9}, {"z": _like()}, "of another optimizer, unknown here"),
    "another RMSprop": ("RMSprop", {}, {"z": _like()}, "of another optimizer, unknown here"),
    "timm.NAdamW": (
        "NAdam",
        {},
        {"step": torch.tensor(2.0), "exp_avg": _like(), "exp_avg_sq": _like()},
        "its state in the file is of another optimizer, ADOPT or Adam or .*, by its keys",
    ),
    "transformers.Adafactor": (
        "Adafactor",
        {},
        {"step": 2, "exp_avg_sq_row": torch.ones(4), "exp_avg_sq_col": torch.ones(3)},
        r"lacks \['col_var', 'row_var'\], which Adafactor keeps, .*, as Adafactor of transformers or timm has",
    ),
    "pytorch_optimizer.Adan": (
        "Adan",
        {},
        {"exp_avg": _like(), "exp_avg_sq": _like(), "exp_avg_diff": _like(), "previous_grad": _like()},
        "lacks .*'step'.*, as pytorch_optimizer has",
    ),
}


@pytest.mark.parametrize(("name", "kwargs", "state", "match"), STATES.values(), ids=STATES)
def test_a_state_of_another_package_is_refused(
    name: str, kwargs: dict[str, Any], state: dict[Any, Any], match: str
) -> None:
    if not hasattr(fusedopt, name):
        pytest.skip("Muon came with torch 2.9")
    optimizer = _stepped(getattr(fusedopt, name), **kwargs)
    _refuse(optimizer, _file(optimizer, state), match)


@pytest.mark.skipif(EMULATED, reason="a shared object has kernels for a GPU, not for the emulator")
def test_a_rule_of_the_users_own_is_asked_too() -> None:
    from lives import HEAVY_BALL

    optimizer = _stepped(fusedopt.compile_rule(HEAVY_BALL, name="HeavyBall"))
    _refuse(optimizer, _file(optimizer, OPTIMI), "of another optimizer, optimi, by its keys")


SAYS_APART = ("decoupled_decay", "weight_decouple", "decouple_wd", "adamw_mode", "adam_w_mode", "decouple", "decoupled")
# What makes another rule of a class, and what does not, for each line of the table.
SETTINGS_BY_KEY: dict[tuple[str, str], tuple[dict[str, Any], dict[str, Any]]] = {
    ("caution", "LaProp"): ({"caution": True}, {"caution": False}),
    ("cautious", "AdamW"): ({"cautious": True}, {"cautious": False}),
    ("caution", "SGD"): ({"caution": False, "weight_decay": 0.1}, {"caution": False, "weight_decay": 0.0}),
    **{(key, "SGD"): ({key: True, "weight_decay": 0.1}, {key: True, "weight_decay": 0.0}) for key in SAYS_APART},
    **{
        (key, "StableAdamW"): ({key: False, "weight_decay": 0.1}, {key: True, "weight_decay": 0.1})
        for key in SAYS_APART
    },
    ("corrected_weight_decay", "Lion"): (
        {"corrected_weight_decay": True, "weight_decay": 0.1},
        {"corrected_weight_decay": True, "weight_decay": 0.0},
    ),
    ("decouple_lr", "AdamW"): (
        {"decouple_lr": True, "weight_decay": 0.1},
        {"decouple_lr": False, "weight_decay": 0.1},
    ),
    ("fixed_decay", "Lion"): (
        {"fixed_decay": True, "weight_decay": 0.1},
        {"fixed_decay": True, "weight_decay": 0.0},
    ),
    ("decoupled_decay", "RMSprop"): (
        {"decoupled_decay": False},
        {"decoupled_decay": False, "eps_in_sqrt": True},
    ),
    ("bias_correction", "Adan"): ({"bias_correction": False}, {"bias_correction": True}),
    ("beta1", "Adafactor"): ({"beta1": 0.9}, {"beta1": None}),
    ("beta1", "Lion"): ({"beta1": 0.5}, {"beta1": 0.9}),
    ("use_gc", "Lion"): ({"use_gc": True}, {"use_gc": False}),
    ("adanorm", "Lion"): ({"adanorm": True}, {"adanorm": False}),
    ("clipping_threshold", "AdamW"): ({"clipping_threshold": 1.0}, {"clipping_threshold": None}),
    ("d_coef", "AdamW"): ({"d_coef": 1.0}, {"d": 1.0}),
    ("numerator_weighted", "Lion"): ({"numerator_weighted": 0.0}, {"k": 2}),
    ("d", "Lion"): ({"d": 0.5}, {"d": 1.0}),
    ("weight_lr_power", "SGD"): ({"weight_lr_power": 2.0}, {"warmup_steps": 0}),
}


def test_where_a_file_can_be_converted_the_refusal_says_so() -> None:
    optimizer = _stepped(fusedopt.Lion)
    _refuse(optimizer, _file(optimizer, BNB), "or none to start anew, or convert this one by fusedopt.load_foreign$")
    _refuse(optimizer, _file(optimizer, HEAVYBALL), "or none to start anew$")
    packages = {name.partition(".")[0] for name in PEERS}
    for name in CONVERTED:
        assert any(package in name.lower() for package in packages), name


def test_every_setting_has_its_line() -> None:
    assert [setting.key for setting in SETTINGS] == [key for key, _ in SETTINGS_BY_KEY]


@pytest.mark.parametrize(
    ("setting", "case"),
    list(zip(SETTINGS, SETTINGS_BY_KEY, strict=False)),
    ids=lambda x: str(x) if isinstance(x, tuple) else "",
)
def test_a_setting_that_makes_another_rule_is_refused(setting: Any, case: tuple[str, str]) -> None:
    refused, taken = SETTINGS_BY_KEY[case]
    key, name = case
    optimizer = _stepped(getattr(fusedopt, name))
    file = optimizer.state_dict()
    state = file["state"].get(0, {})
    maths = re.escape(setting.maths)
    match = rf"param_groups\[0\] of the file has {key}=.*, which {name} does not know: {maths}; load a file of"
    _refuse(optimizer, _file(optimizer, state, **refused), match)
    optimizer.load_state_dict(_file(optimizer, state, **taken))
    optimizer.step()


# Each class with each such setting: where it is the class's own, where it makes no other rule, and else it is refused.
CLASSES = sorted(
    name for name in fusedopt.__all__ if name in {case.optimizer for case in CASES} | {"SparseAdam", "Muon"}
)
APART = {
    *("Adafactor", "AdamAtan2", "AdamW", "AdamWScheduleFree", "Adan", "AdEMAMix", "LaProp", "Lion", "MARS", "Muon"),
    *("NAdamW", "RAdamScheduleFree", "SophiaG", "StableAdamW"),
    # By a hyper-parameter, as they are by default.
    *("AdaBelief", "Prodigy"),
}
# Those that add it to the gradient, by default at least.
ADDED = {
    *("ADOPT", "ASGD", "Adadelta", "Adagrad", "Adam", "Adamax", "LAMB", "LARS", "NAdam", "NovoGrad", "RAdam"),
    *("RMSprop", "SGD", "SGDScheduleFree"),
}
WITHOUT_DECAY = {"Rprop", "SparseAdam"}
WITHOUT_CORRECTION = {
    *("ADOPT", "ASGD", "Adadelta", "Adafactor", "Adagrad", "LARS", "Lion", "Muon", "NovoGrad", "Prodigy", "RMSprop"),
    *("Rprop", "SGD", "SGDScheduleFree", "SophiaG"),
}
ALL, NONE = set(CLASSES), set[str]()
VALUES: dict[tuple[str, Any], tuple[set[str], set[str]]] = {
    ("caution", True): ({"Adam", "AdamW", "Adan", "LAMB", "Lion"}, NONE),
    ("decoupled_decay", True): ({"AdaBelief", "LAMB", "NovoGrad"}, (APART | WITHOUT_DECAY) - {"AdaBelief"}),
    # Of timm's RMSpropTF alone, which says so.
    ("decoupled_decay", False): ({"AdaBelief", "LAMB", "NovoGrad"}, ALL - APART - {"LAMB", "NovoGrad", "RMSprop"}),
    ("weight_decouple", True): (NONE, APART | WITHOUT_DECAY),
    ("weight_decouple", False): (NONE, ALL - APART | {"Adan"}),
    ("decouple_wd", True): (NONE, APART | WITHOUT_DECAY),
    ("decouple_wd", False): (NONE, ALL - APART),
    ("adamw_mode", True): (NONE, APART | WITHOUT_DECAY),
    ("adamw_mode", False): (NONE, ALL - APART),
    ("adam_w_mode", False): (NONE, ALL - APART),
    ("corrected_weight_decay", True): (NONE, WITHOUT_DECAY),
    ("decouple_lr", True): (NONE, WITHOUT_DECAY),
    ("fixed_decay", True): ({"AdaBelief"}, WITHOUT_DECAY),
    ("d", 0.5): ({"Adafactor", "Prodigy"}, NONE),
    ("beta1", 0.3): (NONE, NONE),
    ("bias_correction", False): ({"Adam", "AdamW", "LAMB"}, WITHOUT_CORRECTION),
    ("use_gc", True): (NONE, NONE),
}


def test_each_class_says_where_its_decay_is() -> None:
    """A new one is put into one of these, and if that is APART also into what fusedopt/_peers/signs.py has of them."""
    assert not ALL - APART - ADDED - WITHOUT_DECAY
    assert not APART & ADDED


@pytest.mark.parametrize(("key", "value"), VALUES, ids=str)
@pytest.mark.parametrize("name", CLASSES)
def test_a_setting_is_the_classs_own_or_of_no_matter_or_refused(name: str, key: str, value: Any) -> None:
    own, alike = VALUES[key, value]
    cls = getattr(fusedopt, name)
    optimizer = cls([Parameter(torch.ones(SHAPE))]) if name == "SparseAdam" else _stepped(cls)
    file = optimizer.state_dict()
    group = {**file["param_groups"][0], key: value}
    if name not in WITHOUT_DECAY:
        group["weight_decay"] = 0.1
    file["param_groups"] = [group]
    known = {*cls._beyond, *_C.rules()[cls._rule]["hypers"]} if name != "Muon" else NONE
    assert (key in known) == (name in own)
    if name in own or name in alike:
        optimizer.load_state_dict(file)
        assert (optimizer.param_groups[0][key] == value) or name not in own
    else:
        _refuse(optimizer, file, rf"param_groups\[0\] of the file has {key}={value}, which {name} does not know: it ")


def test_a_key_that_the_class_has_is_its_own() -> None:
    optimizer = _stepped(fusedopt.LAMB, bias_correction=False)
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.step()

    class Cautious(fusedopt.Lion):
        def __init__(self, params: Any, lr: float) -> None:
            super().__init__(params, lr)
            self.defaults["caution"] = True
            self.param_groups[0]["caution"] = True

    own = _stepped(Cautious)
    own.load_state_dict(own.state_dict())


def test_a_group_that_cannot_be_stepped_by_is_refused() -> None:
    optimizer = _stepped(fusedopt.AdamW)
    file = optimizer.state_dict()
    group = {key: value for key, value in file["param_groups"][0].items() if key != "betas"}
    theirs = {**group, "beta1": 0.9, "beta2": 0.99, "decouple_lr": False, "max_lr": None}
    match = r"param_groups\[0\] of the file lacks \['betas'\], by which AdamW steps, .*, as optimi has; load a file of"
    _refuse(optimizer, {**file, "param_groups": [theirs]}, match)


# Tensor subclasses.


def _wrap(value: Tensor) -> TwoTensor:
    return TwoTensor(value.clone(), value.clone())


def _adamw(state: dict[str, Any]) -> None:
    state["exp_avg"] = _wrap(state["exp_avg"])


def _momentum(state: dict[str, Any]) -> None:
    state["momentum_buffer"] = _wrap(state["momentum_buffer"])


def _variance(state: dict[str, Any]) -> None:
    key = "exp_avg" if "exp_avg" in state else "row_var"
    state[key] = _wrap(state[key])


WRAPPED: dict[str, tuple[Callable[[], Any], Callable[[dict[str, Any]], None]]] = {
    "AdamW": (lambda: _stepped(fusedopt.AdamW, weight_decay=0.5), _adamw),
    "Lion": (lambda: _stepped(fusedopt.Lion, weight_decay=0.5), _adamw),
    "Adafactor": (lambda: _stepped(fusedopt.Adafactor, weight_decay=0.5), _variance),
    "Muon": (lambda: _stepped(fusedopt.Muon), _momentum),
}
if not hasattr(torch.optim, "Muon"):
    del WRAPPED["Muon"]


@pytest.mark.parametrize(("make", "wrap"), WRAPPED.values(), ids=WRAPPED)
def test_states_of_another_tensor_class_are_refused_at_load(
    make: Callable[[], Any], wrap: Callable[[dict[str, Any]], None]
) -> None:
    optimizer, file = make(), make().state_dict()
    wrap(file["state"][1])
    match = "param 1 of group 0: '.*' of its state in the file is a .*TwoTensor, which no step here can read; load a"
    _refuse(optimizer, file, match)


@pytest.mark.parametrize(("make", "wrap"), WRAPPED.values(), ids=WRAPPED)
def test_states_of_another_tensor_class_are_refused_before_the_step(
    make: Callable[[], Any], wrap: Callable[[dict[str, Any]], None]
) -> None:
    """torch's own step would decay the param and count before it comes upon them."""
    optimizer = make()
    params = optimizer.param_groups[0]["params"]
    wrap(optimizer.state[params[1]])
    before = [p.detach().clone() for p in params]
    steps = [optimizer.state[p]["step"].clone() for p in params if "step" in optimizer.state[p]]
    give_grads(params, 2)
    with pytest.raises(RuntimeError, match=r"'.*' of a param of shape \[4, 3\] is a .*TwoTensor, which no step here"):
        optimizer.step()
    assert_identical([p.detach() for p in params], before)
    assert_identical([optimizer.state[p]["step"] for p in params if "step" in optimizer.state[p]], steps)


def test_states_of_the_params_own_class_are_not() -> None:
    """As those of sharded params are."""
    param = Parameter(_wrap(torch.ones(SHAPE)))
    optimizer = fusedopt.AdamW([param])
    for _ in range(2):
        param.grad = _wrap(_like())
        optimizer.step()
        optimizer.load_state_dict(optimizer.state_dict())
    assert isinstance(optimizer.state[param]["exp_avg"], TwoTensor)
