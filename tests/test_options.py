"""Options are the optimizer's; those about all params together are no group's; none is assigned later."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
from cases import ONE_PER_OPTIMIZER, Case
from options import steps
from support import assert_identical, make_params, save_and_load, snapshot, train
from torch.nn import Parameter

import fusedopt
from fusedopt._core.arguments import Options
from fusedopt._core.group_options import OF_GROUPS

VALUES: dict[str, Any] = {
    "max_grad_norm": 1.0,
    "ema_decay": 0.9,
    "state_dtype": "int8",
    "master_weights": "float32",
    "rounding": "kahan",
    "rounding_seed": 3,
    "offload": "cpu",
}
every_option = pytest.mark.parametrize("name", [name for name in Options._fields if name not in OF_GROUPS])


def _averaged(**kwargs: Any) -> Any:
    return fusedopt.AdamW(make_params(), ema_decay=0.9, **kwargs)


def test_these_are_all_options() -> None:
    ours, theirs = (inspect.signature(package.AdamW).parameters for package in (fusedopt, torch.optim))
    assert set(ours) - set(theirs) - fusedopt.AdamW._beyond.keys() == set(Options._fields) == set(VALUES)


@every_option
@pytest.mark.parametrize("case", ONE_PER_OPTIMIZER, ids=str)
def test_an_option_of_a_group_is_refused(case: Case, name: str) -> None:
    groups = [{"params": make_params()}, {"params": make_params(seed=1), name: VALUES[name]}]
    text = rf"param_groups\[1\] has '{name}', which is an option of the optimizer, one for all of its groups"
    with pytest.raises(ValueError, match=text):
        case.ours(groups)
    optimizer = case.ours(groups[:1])
    with pytest.raises(ValueError, match=text):
        optimizer.add_param_group(groups[1])
    assert len(optimizer.param_groups) == 1
    train(optimizer, 1)


@every_option
@pytest.mark.parametrize("cls", ["AdamW", "SGD", "Lion", "LAMB", "Adafactor", "Muon"])
def test_an_option_that_a_group_is_given_later_is_refused_at_the_step(cls: str, name: str) -> None:
    params = [Parameter(torch.ones(2, 2))]
    optimizer = getattr(fusedopt, cls)(params)
    params[0].grad = torch.ones(2, 2)
    optimizer.step()
    before = snapshot(optimizer)
    optimizer.param_groups[0][name] = VALUES[name]
    with pytest.raises(ValueError, match=rf"param_groups\[0\].*'{name}'.* is an option of the optimizer, one for all"):
        optimizer.step()
    assert_identical(snapshot(optimizer), before)
    del optimizer.param_groups[0][name]
    optimizer.step()


@every_option
def test_an_option_in_the_groups_of_a_file_is_refused(name: str) -> None:
    optimizer = fusedopt.AdamW(make_params(), lr=0.5)
    train(optimizer, 2)
    file = copy.deepcopy(optimizer.state_dict())
    file["param_groups"][0] |= {name: VALUES[name], "lr": 0.25}
    train(optimizer, 1)
    before, groups = snapshot(optimizer), optimizer.param_groups
    with pytest.raises(ValueError, match=rf"param_groups\[0\] has '{name}', which is an option of the optimizer"):
        optimizer.load_state_dict(file)
    assert optimizer.param_groups is groups
    assert groups[0]["lr"] == 0.5
    assert_identical(snapshot(optimizer), before)


def test_an_option_in_the_groups_of_a_live_optimizer_is_refused() -> None:
    theirs = torch.optim.AdamW([{"params": make_params(), "max_grad_norm": 1.0}])
    with pytest.raises(ValueError, match=r"param_groups\[0\] has 'max_grad_norm'"):
        fusedopt.replace(theirs)


@pytest.mark.parametrize("name", [name for name in Options._fields if name not in ("max_grad_norm", "ema_decay")])
@pytest.mark.parametrize("make", [fusedopt.AdamW, fusedopt.Adafactor, fusedopt.Muon, fusedopt.SparseAdam])
def test_what_decides_about_storage_is_not_assigned_later(make: Any, name: str) -> None:
    optimizer = make([Parameter(torch.ones(4, 3))])
    before = getattr(optimizer, name)
    with pytest.raises(AttributeError, match=rf"{name} is fixed by the constructor.* construct the optimizer anew"):
        setattr(optimizer, name, VALUES[name])
    assert getattr(optimizer, name) == before


def test_options_tell_their_values() -> None:
    def told(**options: Any) -> list[Any]:
        param = Parameter(torch.ones(3, dtype=torch.bfloat16))
        optimizer = fusedopt.AdamW([param], **options)
        for made in (optimizer, copy.deepcopy(optimizer)):
            again = fusedopt.AdamW([param], **{name: getattr(made, name) for name in Options._fields})
            assert [getattr(again, name) for name in Options._fields] == [
                getattr(optimizer, name) for name in Options._fields
            ]
        return [getattr(optimizer, name) for name in Options._fields]

    assert told() == [None, None, None, None, "nearest", 0, None]
    assert told(max_grad_norm=2, ema_decay=0.5)[:2] == [2.0, 0.5]
    assert told(master_weights="remainder")[3:5] == ["remainder", "nearest"]
    assert told(master_weights="float32")[3] == "float32"
    assert told(rounding="kahan")[3:5] == [None, "kahan"]
    assert told(rounding="stochastic", rounding_seed=7)[4:6] == ["stochastic", 7]
    assert told(offload="cpu")[6] == "cpu"
    assert told(state_dtype={"exp_avg": "int8"})[2] == {"exp_avg": "int8"}


@pytest.mark.parametrize("value", [-1, float("nan"), "1", "max", [1.0]])
def test_a_norm_that_is_no_number_is_refused(value: Any) -> None:
    for act in (
        lambda: fusedopt.AdamW(make_params(), max_grad_norm=value),
        lambda: setattr(fusedopt.AdamW(make_params()), "max_grad_norm", value),
        lambda: fusedopt.AdamW(make_params()).load_state_dict(
            fusedopt.AdamW(make_params()).state_dict() | {"max_grad_norm": value}
        ),
    ):
        with pytest.raises((TypeError, ValueError), match=r"max_grad_norm is .*; give a number of at least 0, or None"):
            act()


@pytest.mark.parametrize("case", ONE_PER_OPTIMIZER, ids=str)
def test_a_norm_is_loaded_as_a_learning_rate_is(case: Case) -> None:
    clipping = case.ours(make_params(), max_grad_norm=0.5)
    train(clipping, 2)
    file = save_and_load(clipping.state_dict())
    assert file["max_grad_norm"] == 0.5
    resumed: Any = case.ours([Parameter(p.detach().clone()) for p in clipping.param_groups[0]["params"]])
    resumed.load_state_dict(file)
    assert resumed.max_grad_norm == 0.5
    train(clipping, 2, first=2)
    train(resumed, 2, first=2)
    assert_identical(snapshot(resumed), snapshot(clipping))
    if case.has_twin:
        theirs = case.torchs(make_params())
        theirs.load_state_dict(file)
        train(theirs, 1)
        assert set(theirs.state_dict()) == {"state", "param_groups"}


def test_numbers_that_a_file_lacks_stay() -> None:
    optimizer = fusedopt.AdamW(make_params(), max_grad_norm=0.5, ema_decay=0.75)
    assert set(fusedopt.AdamW(make_params()).state_dict()) == {"state", "param_groups"}
    optimizer.load_state_dict(torch.optim.AdamW(make_params()).state_dict())
    assert (optimizer.max_grad_norm, optimizer.ema_decay) == (0.5, 0.75)


def test_the_factor_of_an_average_is_loaded_where_there_is_one() -> None:
    saved = steps(_averaged())
    saved.ema_decay = 0.75
    file = save_and_load(saved.state_dict())
    assert file["ema_decay"] == 0.75
    resumed = _averaged()
    resumed.load_state_dict(file)
    assert resumed.ema_decay == 0.75
    plain = fusedopt.AdamW(make_params())
    with pytest.warns(UserWarning, match="'ema' is kept as it is, since nothing averages any more"):
        plain.load_state_dict(file)
    assert plain.ema_decay is None
    with pytest.raises(ValueError, match="Invalid ema_decay: 2"):
        resumed.load_state_dict(file | {"ema_decay": 2})
    assert resumed.ema_decay == 0.75


def test_hooks_see_and_may_change_the_numbers() -> None:
    optimizer = fusedopt.AdamW(make_params(), max_grad_norm=0.5)
    optimizer.register_state_dict_post_hook(lambda _, file: {**file, "max_grad_norm": file["max_grad_norm"] * 4})
    file = optimizer.state_dict()
    assert file["max_grad_norm"] == 2.0
    optimizer.register_load_state_dict_pre_hook(lambda _, file: {**file, "max_grad_norm": 3.0})
    seen: list[Any] = []
    optimizer.register_load_state_dict_post_hook(lambda its: seen.append(its.max_grad_norm))  # type: ignore[attr-defined]
    optimizer.load_state_dict(file)
    assert seen == [3.0]


def test_repr_tells_the_options_after_torchs() -> None:
    plain = fusedopt.AdamW([Parameter(torch.ones(2))])
    assert "Options" not in repr(plain)
    options = {"max_grad_norm": 2.0, "ema_decay": 0.5, "state_dtype": {"exp_avg": "int8"}, "rounding": "stochastic"}
    told = repr(fusedopt.AdamW([Parameter(torch.ones(2))], **options, rounding_seed=7))
    assert told == repr(plain).removesuffix(")") + (
        "Options\n    max_grad_norm: 2.0\n    ema_decay: 0.5\n    state_dtype: {'exp_avg': 'int8'}\n"
        "    rounding: stochastic\n    rounding_seed: 7\n)"
    )
