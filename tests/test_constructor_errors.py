"""Bad arguments raise the type and the text, up to the colon, that the installed torch raises for them."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import ONE_PER_TWIN, Case
from support import make_params, outcome
from tiers import thinned
from torch.nn import Parameter

import fusedopt

OPTIMIZERS = [
    cls
    for cls in map(fusedopt.__dict__.get, fusedopt.__all__)
    if isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer) and cls is not fusedopt.GenericOptimizer
]
TWINS = [case.optimizer for case in ONE_PER_TWIN]


def named_for(optimizer: str) -> Case:
    return next(case for case in ONE_PER_TWIN if case.optimizer == optimizer)


def _shared() -> list[Any]:
    p = Parameter(torch.zeros(2))
    return [{"params": [p]}, {"params": [p]}]


@dataclass(frozen=True)
class Bad:
    """A constructor call that torch refuses, if not for every optimizer that has these arguments."""

    name: str
    kwargs: dict[str, Any] = field(default_factory=dict)
    params: Callable[[], Any] = make_params
    unknown: bool = False

    def __str__(self) -> str:
        return self.name

    @property
    def optimizers(self) -> list[str]:
        known = [name for name in TWINS if not getattr(fusedopt, name)._beyond.keys() & self.kwargs.keys()]
        # What a newer torch takes ours refuses in words of its own.
        takers = [
            name
            for name in known
            if all(map(named_for(name).torch_takes, self.kwargs))
            or (self.unknown and not any(map(named_for(name).takes, self.kwargs)))
        ]
        return [name for name in takers if outcome(lambda: self.build(torch.optim, name)) is not None]  # noqa: B023

    def build(self, namespace: Any, optimizer: str) -> Any:
        return getattr(namespace, optimizer)(self.params(), **self.kwargs)


HALF, TWO = torch.tensor(0.5), torch.tensor([0.5, 0.5])
NAN = float("nan")

BAD_HYPERS = [
    Bad("lr-negative", {"lr": -1.0}),
    Bad("lr-nan", {"lr": NAN}),
    Bad("lr-tensor-negative", {"lr": torch.tensor(-1.0)}),
    Bad("lr-tensor-of-two", {"lr": TWO}),
    Bad("lr-tensor-empty", {"lr": torch.empty(0)}),
    Bad("lr-tensor-foreach", {"lr": HALF, "foreach": True}),
    Bad("weight-decay-negative", {"weight_decay": -0.1}),
    Bad("weight-decay-nan", {"weight_decay": NAN}),
    Bad("eps-negative", {"eps": -1e-8}),
    Bad("eps-nan", {"eps": NAN}),
    Bad("alpha-negative", {"alpha": -0.1}),
    Bad("rho-negative", {"rho": -0.1}),
    Bad("rho-above-one", {"rho": 1.1}),
    Bad("lr-decay-negative", {"lr_decay": -0.1}),
    Bad("lr-decay-nan", {"lr_decay": NAN}),
    Bad("initial-accumulator-negative", {"initial_accumulator_value": -0.1}),
    Bad("momentum-decay-negative", {"momentum_decay": -0.1}),
    Bad("etas-swapped", {"etas": (1.2, 0.5)}),
    Bad("eta-minus-zero", {"etas": (0.0, 1.2)}),
    Bad("eta-plus-one", {"etas": (0.5, 1.0)}),
    Bad("etas-nan", {"etas": (NAN, 1.2)}),
    Bad("etas-one", {"etas": (0.5,)}),
    Bad("momentum-negative", {"momentum": -0.9}),
    Bad("beta1-one", {"betas": (1.0, 0.9)}),
    Bad("beta1-negative", {"betas": (-0.1, 0.9)}),
    Bad("beta2-one", {"betas": (0.9, 1.0)}),
    Bad("beta2-negative", {"betas": (0.9, -0.1)}),
    Bad("beta2-nan", {"betas": (0.9, NAN)}),
    Bad("betas-mixed", {"betas": (0.5, HALF)}),
    Bad("betas-mixed-other-way", {"betas": (HALF, 0.5)}),
    Bad("betas-int", {"betas": (0, 0)}),
    Bad("beta1-tensor-of-two", {"betas": (TWO, HALF)}),
    Bad("beta2-tensor-of-two", {"betas": (HALF, TWO)}),
    Bad("betas-tensor-foreach", {"betas": (HALF, HALF), "foreach": True}),
    Bad("betas-one", {"betas": (0.9,)}),
    Bad("nesterov-alone", {"nesterov": True}),
    Bad("nesterov-dampened", {"nesterov": True, "momentum": 0.9, "dampening": 0.1}),
    Bad("fused-foreach", {"fused": True, "foreach": True}),
    Bad("fused-differentiable", {"fused": True, "differentiable": True}),
    Bad("unknown-keyword", {"learning_rate": 0.1}, unknown=True),
    Bad("decoupled-given-to-adamw", {"decoupled_weight_decay": True}, unknown=True),
]

BAD_PARAMS = [
    Bad("bare-tensor", params=lambda: torch.zeros(3)),
    Bad("empty-list", params=list),
    Bad("empty-generator", params=lambda: iter(())),
    Bad("none", params=lambda: None),
    Bad("numbers", params=lambda: [1.0, 2.0]),
    Bad("a-number-among-tensors", params=lambda: [*make_params(), 3]),
    Bad("set-in-group", params=lambda: [{"params": set(make_params())}]),
    Bad("group-without-params", params=lambda: [{"lr": 0.1}]),
    Bad("tensor-after-group", params=lambda: [{"params": make_params()}, torch.zeros(2)]),
    Bad("group-after-tensor", params=lambda: [torch.zeros(2), {"params": make_params()}]),
    Bad("non-leaf", params=lambda: [make_params()[0] * 2]),
    Bad("shared-between-groups", params=_shared),
    Bad("named-and-unnamed", params=lambda: [("a", make_params()[0]), make_params()[0]]),
    Bad("named-and-unnamed-groups", params=lambda: [{"params": [("a", make_params()[0])]}, {"params": make_params()}]),
    # Hyper-parameters are looked at first: with both wrong, the lr is what torch names.
    Bad("lr-before-empty-list", {"lr": -1.0}, params=list),
    Bad("lr-before-bare-tensor", {"lr": -1.0}, params=lambda: torch.zeros(3)),
    Bad("eps-before-non-leaf", {"eps": -1.0}, lambda: [make_params()[0] * 2]),
]

CALLS = [
    pytest.param(bad, optimizer, id=f"{optimizer.lower()}-{bad}")
    for bad in [*BAD_HYPERS, *BAD_PARAMS]
    for optimizer in bad.optimizers
]


@pytest.mark.parametrize("bad", [*BAD_HYPERS, *BAD_PARAMS], ids=str)
def test_each_is_bad_for_an_optimizer(bad: Bad) -> None:
    assert bad.optimizers, "torch accepts this: the row tests nothing"


@thinned("the constructors are torch's own")
@pytest.mark.parametrize(("bad", "optimizer"), CALLS)
def test_raises_as_torch(bad: Bad, optimizer: str) -> None:
    theirs = outcome(lambda: bad.build(torch.optim, optimizer))
    assert outcome(lambda: bad.build(fusedopt, optimizer)) == theirs is not None


@pytest.mark.parametrize("optimizer", TWINS)
def test_too_many_positional_arguments(optimizer: str) -> None:
    arguments = [make_params(), *[0.5] * 12]
    assert outcome(lambda: getattr(fusedopt, optimizer)(*arguments)) == outcome(
        lambda: getattr(torch.optim, optimizer)(*arguments)
    )


NO_NUMBERS: list[tuple[dict[str, Any], str]] = [
    ({"lr": "0.1"}, "lr is '0.1'; give a number"),
    ({"lr": None}, "lr is None; give a number"),
    ({"eps": "1e-8"}, "eps is '1e-8'; give a number"),
    ({"weight_decay": ""}, "weight_decay is ''; give a number"),
    ({"momentum": b"0.9"}, "momentum is b'0.9'; give a number"),
    ({"betas": "0.9, 0.99"}, "betas is '0.9, 0.99'; give"),
    ({"betas": ["0.9", "0.99"]}, r"betas\[0\] is '0.9'; give a number"),
    ({"etas": (0.5, "1.2")}, r"etas\[1\] is '1.2'; give a number"),
    ({"max_iter": "20"}, "max_iter is '20'; give a number"),
    ({"ns_coefficients": (3.0, -4.0, "2")}, r"ns_coefficients\[2\] is '2'; give a number"),
]


@pytest.mark.parametrize(("kwargs", "text"), NO_NUMBERS, ids=str)
@pytest.mark.parametrize("cls", OPTIMIZERS, ids=lambda cls: cls.__name__)
def test_text_and_nothing_are_no_numbers(cls: Any, kwargs: dict[str, Any], text: str) -> None:
    """As a configuration may have them; torch's comparisons would not say which of the arguments it was."""
    if not kwargs.keys() <= inspect.signature(cls).parameters.keys():
        pytest.skip("has no such argument")
    matrix = [Parameter(torch.zeros(2, 2))]
    with pytest.raises(TypeError, match=f"^{text}"):
        cls(matrix, **kwargs)
    with pytest.raises(TypeError, match=f"^{text}"):
        cls([{"params": matrix, **kwargs}])
    if cls is not fusedopt.LBFGS:
        optimizer = cls(matrix)
        with pytest.raises(TypeError, match=f"^{text}"):
            optimizer.add_param_group({"params": [Parameter(torch.zeros(2, 2))], **kwargs})
        assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("name", ["max_grad_norm", "ema_decay"])
def test_options_are_no_text(name: str) -> None:
    text = f"{name}(:| is) '0.1'; (use|give) a number"
    with pytest.raises(TypeError, match=text):
        fusedopt.SGD(make_params(), **{name: "0.1"})
    optimizer = fusedopt.SGD(make_params(), ema_decay=0.9)
    with pytest.raises(TypeError, match=text):
        setattr(optimizer, name, "0.1")


def test_one_number_is_not_several() -> None:
    with pytest.raises(TypeError, match=r"betas is 0\.9; give 2 numbers"):
        fusedopt.AdamW([{"params": make_params(), "betas": 0.9}])
    with pytest.raises(TypeError, match=r"betas is 0\.9; give 3 numbers"):
        fusedopt.Adan(make_params(), betas=0.9)  # type: ignore[arg-type]


@pytest.mark.parametrize("optimizer", TWINS)
def test_groups_are_held_to_the_constructor_of_the_installed_torch(optimizer: str) -> None:
    """Also those that only some classes refuse: a negative alpha is ASGD's business and not RMSprop's."""
    for bad in BAD_HYPERS:
        alone = next(iter(bad.kwargs.values()), None)
        if (
            len(bad.kwargs) != 1
            or isinstance(alone, torch.Tensor)
            or not named_for(optimizer).torch_takes(next(iter(bad.kwargs)))
            or getattr(fusedopt, optimizer)._beyond.keys() & bad.kwargs.keys()
        ):
            continue
        if any(isinstance(value, torch.Tensor) for value in (alone if isinstance(alone, tuple) else ())):
            continue
        theirs = outcome(lambda: bad.build(torch.optim, optimizer))  # noqa: B023
        groups = [{"params": bad.params(), **bad.kwargs}]
        if theirs is not None and "betas must be either" not in theirs[1]:
            assert outcome(lambda: getattr(fusedopt, optimizer)(groups)) == theirs, bad  # noqa: B023


def test_a_negative_alpha_is_refused_where_torch_refuses_it() -> None:
    for name in ("ASGD", "RMSprop"):
        theirs = outcome(lambda: getattr(torch.optim, name)(make_params(), alpha=-0.5))  # noqa: B023
        assert outcome(lambda: getattr(fusedopt, name)(make_params(), alpha=-0.5)) == theirs  # noqa: B023
        groups = [{"params": make_params(), "alpha": -0.5}]
        assert outcome(lambda: getattr(fusedopt, name)(groups)) == theirs  # noqa: B023


@pytest.mark.parametrize("cls", OPTIMIZERS, ids=lambda cls: cls.__name__)
def test_fused_is_held_to_the_same_everywhere(cls: Any) -> None:
    """In the words that torch has for the classes that it has fused steps of."""
    matrix = [Parameter(torch.zeros(2, 2))]
    with pytest.raises(RuntimeError, match="`fused` and `foreach` cannot be `True` together"):
        cls(matrix, fused=True, foreach=True)
    if "differentiable" in inspect.signature(cls).parameters:
        with pytest.raises(RuntimeError, match="`fused` does not support `differentiable`"):
            cls(matrix, fused=True, differentiable=True)


NEW_GROUPS: dict[str, Callable[[Parameter], Any]] = {
    "not-a-dict": lambda p: [p],
    "set": lambda p: {"params": set(make_params())},
    "no-params": lambda p: {"lr": 0.1},
    "number": lambda p: {"params": [1]},
    "non-leaf": lambda p: {"params": [p * 2]},
    "already-in-a-group": lambda p: {"params": [p]},
    "named-after-unnamed": lambda p: {"params": [("a", make_params()[0])]},
}


@pytest.mark.parametrize("cls", OPTIMIZERS, ids=lambda cls: cls.__name__)
def test_a_set_of_params_warns_where_torch_warns_of_it(cls: Any) -> None:
    """From torch 2.15 on: the order of a set is another in every run."""

    def warned_by(constructor: Any) -> list[tuple[type[Warning], str]]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            constructor({Parameter(torch.zeros(2, 2))})
        return [(warning.category, str(warning.message)) for warning in caught]

    theirs = warned_by(getattr(torch.optim, cls.__name__, torch.optim.SGD))
    assert warned_by(cls) == theirs
    assert bool(theirs) == (tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 15))


@thinned("the constructors are torch's own")
@pytest.mark.parametrize("group", NEW_GROUPS.values(), ids=NEW_GROUPS)
@pytest.mark.parametrize("optimizer", TWINS)
def test_add_param_group_raises_as_torch(optimizer: str, group: Callable[[Parameter], Any]) -> None:
    def act(namespace: Any) -> tuple[Any, int]:
        params = make_params()
        built = getattr(namespace, optimizer)(params)
        result = outcome(lambda: built.add_param_group(group(params[0])))
        return result, len(built.param_groups)

    theirs = act(torch.optim)
    assert theirs[0] is not None
    assert theirs[1] == 1
    assert act(fusedopt) == theirs


LOADS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "another-number-of-groups": lambda d: d["param_groups"].append(d["param_groups"][0]),
    "another-number-of-params": lambda d: d["param_groups"][0]["params"].append(99),
    "no-state": lambda d: d.pop("state"),
    "no-groups": lambda d: d.pop("param_groups"),
}


@thinned("the constructors are torch's own")
@pytest.mark.parametrize("damage", LOADS.values(), ids=LOADS)
@pytest.mark.parametrize("optimizer", TWINS)
def test_load_state_dict_raises_as_torch(optimizer: str, damage: Callable[[dict[str, Any]], Any]) -> None:
    def act(namespace: Any) -> Any:
        built = getattr(namespace, optimizer)(make_params())
        state_dict = built.state_dict()
        damage(state_dict)
        return outcome(lambda: built.load_state_dict(state_dict))

    theirs = act(torch.optim)
    assert theirs is not None
    assert act(fusedopt) == theirs


def test_an_older_torch_has_no_muon_and_that_is_said() -> None:
    """In a program whose torch lacks it, as the older ones do."""
    script = """
import torch
if hasattr(torch.optim, "Muon"):
    del torch.optim.Muon
import fusedopt
for module, name in ((fusedopt, "Muon"), (fusedopt.functional, "muon"), (fusedopt, "Muons")):
    assert not hasattr(module, name)
    assert name not in module.__all__
    try:
        getattr(module, name)
    except AttributeError as error:
        print(error)
"""
    root = str(Path(fusedopt.__file__).parent.parent)
    command = [sys.executable, "-c", script]
    said = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": root})
    since = f"is for a newer torch: torch.optim.Muon came with 2.9, and this is {torch.__version__}"
    assert said.stdout.splitlines() == [
        f"fusedopt.Muon {since}",
        f"fusedopt.functional.muon {since}",
        "module 'fusedopt' has no attribute 'Muons'",
    ]
