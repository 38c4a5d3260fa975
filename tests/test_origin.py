"""A checkpoint of another optimizer is refused before anything is changed; what torch tolerates still loads."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from lives import SUBJECTS, fresh, stepped
from support import assert_identical, make_params, outcome, params_of, save_and_load, snapshot, train
from torch import Tensor
from torch.nn import Parameter

import fusedopt

# Matrices, which all of them step.
BY_NAME = {s.name: dataclasses.replace(s, shapes=((4, 3), (3, 5))) for s in SUBJECTS if s.name != "generic"}
# States of one form, whose groups torch's classes take from each other; and files of one class.
FAMILIES = [
    {"Adam", "AdamW", "AdamW-average", "RAdam", "SparseAdam", "NAdamW", "StableAdamW"},
    {"SGD", "SGD-momentum"},
]
# Adam's step is a tensor and reads more than SparseAdam's file has.
ONE_WAY = {("SparseAdam", other) for other in FAMILIES[0] - {"SparseAdam"}}
# Groups of torch's classes say more than those without amsgrad.
TORCHS = FAMILIES[0] - {"SparseAdam", "NAdamW", "StableAdamW"}
ONE_WAY |= {(torchs, ours) for torchs in TORCHS for ours in ("NAdamW", "StableAdamW")}


def _takes(target: str, source: str) -> bool:
    together = any({target, source} <= family for family in FAMILIES) and (source, target) not in ONE_WAY
    return target == source or together


@cache
def _file(source: str) -> Any:
    """What a class saves; loading it changes nothing in it."""
    return save_and_load(stepped(BY_NAME[source], BY_NAME[source].ours).state_dict())


@pytest.mark.parametrize("target", BY_NAME)
def test_whose_files_a_class_takes(target: str) -> None:
    """Of each pair the file is refused by name, with all as it was, or loads and steps."""
    for source in BY_NAME:
        if {source, target} & {"compiled"} and source != target:
            continue
        for before in (fresh, stepped):
            optimizer = before(BY_NAME[target], BY_NAME[target].ours)
            file = _file(source)
            if _takes(target, source):
                optimizer.load_state_dict(copy.deepcopy(file))
                BY_NAME[target].step(optimizer, 5)
                continue
            state, groups = optimizer.state, optimizer.param_groups
            kept, numbers = snapshot(optimizer), [dict(group) for group in groups]
            with pytest.raises(
                ValueError, match=rf"of another optimizer, .*; load a file of {type(optimizer).__name__}, or"
            ):
                optimizer.load_state_dict(file)
            assert optimizer.state is state
            assert optimizer.param_groups is groups
            assert [dict(group) for group in groups] == numbers
            assert_identical(snapshot(optimizer), kept)
            BY_NAME[target].step(optimizer, 5)


@pytest.mark.parametrize("target", BY_NAME)
def test_files_without_state_are_told_by_their_groups(target: str) -> None:
    """Those that could not be stepped with would raise KeyError at the first step."""
    for source, its in BY_NAME.items():
        if {source, target} & {"compiled"} and source != target:
            continue
        file = fresh(its, its.ours).state_dict()
        if source in ("Adagrad", "ASGD"):
            file["state"] = {}
        optimizer = fresh(BY_NAME[target], BY_NAME[target].ours)
        found = outcome(lambda loaded=optimizer, file=file: loaded.load_state_dict(file))  # type: ignore[misc]
        if found is None:
            BY_NAME[target].step(optimizer, 5)
        else:
            assert not _takes(target, source)
            assert found[1].startswith("param_groups[0] of the file is of another optimizer, ")


def test_what_the_refusal_says() -> None:
    params = [Parameter(torch.ones(4, 3)), Parameter(torch.ones(4, 3))]
    saved = fusedopt.AdamW(params)
    params[1].grad = torch.ones(4, 3)
    saved.step()
    with pytest.raises(
        ValueError,
        match=r"param 1 of group 0: its state in the file is of another optimizer, ADOPT or Adam or .*, by its keys: "
        r"\['exp_avg', 'exp_avg_sq', 'step'\]; Lion keeps \['exp_avg'\]; load a file of Lion, or none to start anew",
    ):
        fusedopt.Lion(params).load_state_dict(
            {**saved.state_dict(), "param_groups": fusedopt.Lion(params).state_dict()["param_groups"]}
        )
    with pytest.raises(
        ValueError,
        match=r"param_groups\[0\] of the file is of another optimizer, SGD, by its keys: .*'dampening'.*; "
        r"AdamW steps by \['amsgrad', 'betas', .*\]; load a file of AdamW, or none to start anew",
    ):
        saved.load_state_dict(fusedopt.SGD(params).state_dict())
    file = copy.deepcopy(saved.state_dict())
    file["state"][1] = {"preconditioner": torch.ones(4, 4)}
    with pytest.raises(ValueError, match=r"is of another optimizer, unknown here, by its keys: \['preconditioner'\]"):
        saved.load_state_dict(file)


def _with_amsgrad(amsgrad: bool) -> Any:
    return fusedopt.AdamW(make_params(), amsgrad=amsgrad)


def _users_keys(optimizer: Any) -> None:
    for p in params_of(optimizer):
        # Another rule has keys of these names, but not these alone.
        optimizer.state[p].update(sum=torch.ones(()), prev=1, mine=[1.0])


class _Halving(fusedopt.SGD):
    """A step of its own, which keeps what no class of the package does."""

    def step(self, closure: Any = None, *, zero_grad: bool = False) -> Any:
        for p in params_of(self):
            self.state[p]["halved"] = self.state[p].get("halved", 0) + 1
            p.data.mul_(0.5)


class _AdamWithNotes(fusedopt.AdamW):
    def step(self, closure: Any = None, *, zero_grad: bool = False) -> Any:
        super().step(closure, zero_grad=zero_grad)
        for p in params_of(self):
            self.state[p]["norm"] = p.norm()


TOLERATED: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "amsgrad on": (lambda: _with_amsgrad(False), lambda: _with_amsgrad(True)),
    "amsgrad off": (lambda: _with_amsgrad(True), lambda: _with_amsgrad(False)),
    "momentum on": (
        lambda: fusedopt.SGD(make_params(), lr=0.1),
        lambda: fusedopt.SGD(make_params(), lr=0.1, momentum=0.9),
    ),
    "momentum off": (
        lambda: fusedopt.SGD(make_params(), lr=0.1, momentum=0.9),
        lambda: fusedopt.SGD(make_params(), lr=0.1),
    ),
    "centered": (
        lambda: fusedopt.RMSprop(make_params(), centered=True, momentum=0.9),
        lambda: fusedopt.RMSprop(make_params()),
    ),
    "a subclass's file": (lambda: _AdamWithNotes(make_params()), lambda: fusedopt.Adam(make_params())),
    "into a subclass": (lambda: torch.optim.AdamW(make_params()), lambda: _AdamWithNotes(make_params())),
    "a subclass with a step of its own": (lambda: _Halving(make_params()), lambda: _Halving(make_params())),
}


@pytest.mark.parametrize("users", [False, True], ids=["plain", "with a user's keys"])
@pytest.mark.parametrize(("source", "target"), TOLERATED.values(), ids=TOLERATED)
def test_what_torch_tolerates_loads(source: Callable[[], Any], target: Callable[[], Any], users: bool) -> None:
    saved, loaded = source(), target()
    train(saved, 2)
    if users:
        _users_keys(saved)
    loaded.load_state_dict(save_and_load(saved.state_dict()))
    train(loaded, 2)


def test_older_and_partial_files_load() -> None:
    saved = fusedopt.AdamW(make_params())
    train(saved, 2)
    file = save_and_load(saved.state_dict())
    for key in ("foreach", "fused", "maximize", "capturable", "differentiable", "decoupled_weight_decay", "amsgrad"):
        file["param_groups"][0].pop(key, None)
    del file["state"][1]
    file["state"][2]["step"] = 2
    loaded = fusedopt.AdamW(make_params())
    loaded.load_state_dict(file)
    train(loaded, 1)


def test_lbfgs_fills_in_what_a_state_lacks() -> None:
    def closure() -> Tensor:
        param.grad = param.detach().clone()
        return 0.5 * param.detach().square().sum()

    param = Parameter(torch.ones(3))
    optimizer = fusedopt.LBFGS([param])
    file = optimizer.state_dict()
    file["state"] = {0: {"mine": 1}}
    optimizer.load_state_dict(file)
    optimizer.step(closure)
    assert optimizer.state[param]["mine"] == 1


def test_a_failing_conversion_leaves_all_as_it_was() -> None:
    """Such as that of a state of another model's."""
    params = [Parameter(torch.ones(70, 70))]
    optimizer = fusedopt.AdamW(params, state_dtype="int8")
    train(optimizer, 2)
    state, groups, kept = optimizer.state, optimizer.param_groups, snapshot(optimizer)
    other = fusedopt.AdamW([Parameter(torch.ones(3, 4, 5))])
    train(other, 1)
    with pytest.raises(ValueError, match="a state in codes has the shape of its param"):
        optimizer.load_state_dict(other.state_dict())
    assert optimizer.state is state
    assert optimizer.param_groups is groups
    assert_identical(snapshot(optimizer), kept)


@pytest.mark.parametrize("draws", [-1, 2**70, None, "seven", [1]], ids=str)
@pytest.mark.parametrize("stepped", [False, True])
def test_a_number_of_draws_that_is_none_leaves_all_as_it_was(draws: Any, stepped: bool) -> None:
    """Read after groups and state, since a file that lacks it is as old as its counters say."""
    optimizer = fusedopt.AdamW(make_params(), state_dtype="int8", rounding="stochastic", max_grad_norm=1.0)
    train(optimizer, 2 * stepped)
    state, groups, kept = optimizer.state, optimizer.param_groups, snapshot(optimizer)
    other = fusedopt.AdamW(make_params(), lr=0.5, state_dtype="int8", rounding="stochastic", max_grad_norm=2.0)
    train(other, 1)
    with pytest.raises((TypeError, ValueError)):
        optimizer.load_state_dict({**other.state_dict(), "rounding_draws": draws})
    assert optimizer.state is state
    assert optimizer.param_groups is groups
    assert optimizer.max_grad_norm == 1.0
    assert_identical(snapshot(optimizer), kept)


def test_a_counter_that_tells_no_steps_leaves_all_as_it_was() -> None:
    optimizer = fusedopt.AdamW(make_params(), rounding="stochastic", state_dtype="bfloat16")
    train(optimizer, 1)
    state, groups = optimizer.state, optimizer.param_groups
    file = optimizer.state_dict()
    del file["rounding_draws"]
    for step in (torch.tensor(torch.nan), torch.tensor(1.0, device="meta"), [1]):
        file["state"][0]["step"] = step
        with pytest.raises((TypeError, ValueError, RuntimeError)):
            optimizer.load_state_dict(file)
        assert optimizer.state is state
        assert optimizer.param_groups is groups
