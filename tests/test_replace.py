"""`fusedopt.replace` turns a live torch optimizer into ours without losing its groups, its state or its schedule."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import prototypes
import pytest
import torch
from cases import ONE_PER_TWIN, TWINS, Case
from support import assert_close, assert_identical, make_params, params_of, train
from torch.optim import lr_scheduler

import fusedopt


@pytest.mark.parametrize("case", TWINS, ids=str)
def test_training_goes_on_from_the_same_place(case: Case) -> None:
    def groups(params: list[Any]) -> list[dict[str, Any]]:
        return [{"params": params[:2], "lr": 0.02}, {"params": params[2:], "note": "mine"}]

    params = make_params()
    torchs, whole = case.torchs(groups(params)), case.torchs(groups(make_params()))
    train(whole, 6)
    train(torchs)
    saved = copy.deepcopy(torchs.state_dict())
    ours = fusedopt.replace(torchs)

    assert type(ours) is getattr(fusedopt, case.optimizer)
    assert [p is q for p, q in zip(params_of(ours), params, strict=True)] == [True] * len(params)
    assert_identical(ours.state_dict(), saved)
    for key, value in torchs.defaults.items():
        assert type(ours.defaults[key]) is type(value)
        assert ours.defaults[key] == value
    train(ours, 3, first=3)
    assert_close(ours, whole)


@pytest.mark.parametrize("case", ONE_PER_TWIN, ids=str)
def test_before_the_first_step(case: Case) -> None:
    ours, torchs = fusedopt.replace(case.torchs(make_params())), case.torchs(make_params())
    assert bool(ours.state) == case.starts_with_state
    train(ours)
    train(torchs)
    assert_close(ours, torchs)


@pytest.mark.parametrize("case", ONE_PER_TWIN, ids=str)
def test_schedules_go_on(case: Case) -> None:
    torchs, whole = case.torchs(make_params()), case.torchs(make_params())
    first = lr_scheduler.ExponentialLR(torchs, 0.5)
    train(torchs, 1)
    first.step()
    ours = fusedopt.replace(torchs)
    assert ours.param_groups[0]["initial_lr"] == case.kwargs["lr"]
    rest = lr_scheduler.ExponentialLR(ours, 0.5, last_epoch=1)  # needs initial_lr
    rest.load_state_dict(first.state_dict())
    schedule = lr_scheduler.ExponentialLR(whole, 0.5)
    for i in range(4):
        train(whole, 1, first=i)
        schedule.step()
        if i:
            train(ours, 1, first=i)
            rest.step()
    assert_close(ours, whole)


def test_a_scheduler_of_the_old_one_does_not_miss_its_steps() -> None:
    """It warned that the first value was skipped, where it was made before and replace() came before the first step."""
    torchs = torch.optim.AdamW(make_params(), lr=0.1)
    schedule = lr_scheduler.ExponentialLR(torchs, 0.5)
    ours = fusedopt.replace(torchs)
    train(ours, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        schedule.step()
    assert ours.param_groups[0]["lr"] == 0.05


@pytest.mark.parametrize("make", [fusedopt.AdamW, fusedopt.LBFGS, prototypes.Adam])
def test_one_of_ours_is_returned_as_it_is(make: Any) -> None:
    ours = make(make_params())
    assert fusedopt.replace(ours) is ours


def test_hooks_stay_behind() -> None:
    calls: list[str] = []
    torchs = torch.optim.AdamW(make_params())
    torchs.register_step_pre_hook(lambda *_: calls.append("pre"))
    torchs.register_step_post_hook(lambda *_: calls.append("post"))
    torchs.register_state_dict_post_hook(lambda *_: calls.append("state dict"))
    torchs.register_load_state_dict_pre_hook(lambda *_: calls.append("load"))
    ours = fusedopt.replace(torchs)
    calls.clear()
    train(ours, 1)
    ours.load_state_dict(ours.state_dict())
    assert calls == []


def test_names_and_tensor_hypers_are_kept() -> None:
    lr, beta = torch.tensor(0.25), torch.tensor(0.5)
    torchs = torch.optim.AdamW([("w", make_params()[0])], lr=lr, betas=(beta, beta))
    group = fusedopt.replace(torchs).param_groups[0]
    assert group["param_names"] == ["w"]
    assert group["lr"] is lr
    assert group["betas"][0] is beta


def test_a_class_without_a_counterpart_is_named() -> None:
    class Unheard(torch.optim.Optimizer):
        pass

    with pytest.raises(TypeError, match="Unheard"):
        fusedopt.replace(Unheard(make_params(), {}))


@pytest.mark.parametrize("thing", [None, [torch.zeros(3)], torch.nn.Linear(2, 2)], ids=["None", "list", "module"])
def test_what_is_no_optimizer_is_refused(thing: Any) -> None:
    with pytest.raises(TypeError, match=type(thing).__name__):
        fusedopt.replace(thing)
