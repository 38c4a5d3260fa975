"""What real runs bring along: groups of several settings, params that are late or in another order, numbers of one."""

from __future__ import annotations

import warnings
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from foreign import OPTIMI, foreign_params, live
from torch import Tensor
from torch.nn import Parameter
from torch.optim import lr_scheduler

import fusedopt

ADAM: dict[str, Any] = {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}
OF_OPTIMI = {"lr": 0.1, "beta1": 0.9, "beta2": 0.99, "eps": 1e-6, "weight_decay": 0.1, "step": 0, **OPTIMI}
OF_OPTIMI |= {"gradient_release": False, "decouple_lr": False, "decouple_wd": True, "kahan_sum": None}


def _groups(*settings: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"params": [p], **its} for p, its in zip(foreign_params(), settings, strict=False)]


def _optimi(*settings: dict[str, Any]) -> Any:
    return live("optimi.adamw.AdamW", _groups(*settings), OF_OPTIMI)  # type: ignore[arg-type]


@pytest.mark.parametrize("file", [True, False])
def test_groups_of_two_rules_are_refused(file: bool) -> None:
    theirs, ours = _optimi({}, {"decouple_wd": False}), fusedopt.AdamW(_groups({}, {}))
    load = partial(fusedopt.load_foreign, ours, theirs.state_dict(), "optimi.AdamW")
    with pytest.raises(ValueError, match=r"param_groups\[1\] of optimi.AdamW steps as fusedopt.Adam does, and"):
        load() if file else fusedopt.replace(theirs)


def test_without_a_decay_a_group_is_of_either_rule() -> None:
    still = {"weight_decay": 0.0, "decouple_wd": False}
    for settings in ([{}, still], [still, {}]):
        ours: Any = fusedopt.replace(_optimi(*settings))
        assert type(ours) is fusedopt.AdamW
        assert sorted(group["weight_decay"] for group in ours.param_groups) == [0.0, 0.1]


@pytest.mark.parametrize(("kahan", "rounding"), [(None, "kahan"), (True, "kahan"), (False, "nearest")])
def test_kahan_summation_that_only_a_first_step_turns_on_goes_along(kahan: bool | None, rounding: str) -> None:
    params = foreign_params(torch.bfloat16)
    ours: Any = fusedopt.replace(live("optimi.adamw.AdamW", params, {**OF_OPTIMI, "kahan_sum": kahan}))
    assert ours.rounding == rounding


def test_kahan_summation_of_one_group_is_not_the_others() -> None:
    params = foreign_params(torch.bfloat16)
    groups = [{"params": [params[0]], "kahan_sum": False}, {"params": params[1:], "kahan_sum": True}]
    theirs = live("optimi.adamw.AdamW", groups, OF_OPTIMI)  # type: ignore[arg-type]
    steered = theirs.param_groups
    ours: Any = fusedopt.replace(theirs)
    for param in params:
        param.grad = torch.full_like(param, 2**-12)
    ours.step()
    kept = ["compensation" in ours.state[param] for param in params]
    assert kept == [False] + [True] * (len(params) - 1)
    assert ours.param_groups is steered
    assert [group.get("rounding") for group in steered] == [None, "kahan"]


def test_bounds_of_one_cycle_are_not_taken_for_optimis() -> None:
    theirs = _optimi({})
    schedule = lr_scheduler.OneCycleLR(theirs, max_lr=0.2, total_steps=9, cycle_momentum=False)
    ours: Any = fusedopt.replace(theirs)
    ours.step()
    schedule.step()
    (group,) = ours.param_groups
    assert group["lr"] == schedule.get_last_lr()[0] > group["initial_lr"]


@pytest.mark.parametrize("dampening", [False, True])
def test_a_cycle_of_momenta_that_ours_do_not_follow_is_refused(dampening: bool) -> None:
    """Of bitsandbytes' SGD the momentum is a beta; the scheduler raised a KeyError later. Dampening stayed behind."""
    own = {"momentum": 0.9, "dampening": dampening} if dampening else {"betas": (0.9, 0.0), "eps": 0.0}
    name = "optimi.sgd.SGD" if dampening else "bitsandbytes.optim.sgd.SGD"
    defaults = {"lr": 0.1, "weight_decay": 0.0, **own, **({**OPTIMI, "decouple_wd": False} if dampening else {})}
    said = "dampening=True follows the momentum" if dampening else "a scheduler cycles 'betas' of this bitsandbytes.SGD"
    more = {} if dampening else {"mng": SimpleNamespace(module_weight_config_triple=[]), "get_config": _plain}
    theirs = live(name, foreign_params(), defaults, **more)
    lr_scheduler.OneCycleLR(theirs, max_lr=0.2, total_steps=9)
    before = dict(theirs.param_groups[0])
    with pytest.raises(ValueError, match=said):
        fusedopt.replace(theirs)
    assert theirs.param_groups[0] == before


def _plain(group_index: int, index: int, group: dict[str, Any]) -> dict[str, Any]:
    numbers = {key: group[key] for key in ("lr", "betas", "eps", "weight_decay")}
    return {**numbers, "max_unorm": 0.0, "skip_zeros": False}


def _named(names: list[str]) -> list[tuple[str, Parameter]]:
    return [(name, Parameter(torch.ones(4))) for name in names]


def test_params_in_another_order_are_told_by_their_names() -> None:
    theirs = live("timm.optim.adamw.AdamWLegacy", _named(["a", "b", "c"]), ADAM)  # type: ignore[arg-type]
    file = theirs.state_dict()
    if "param_names" not in file["param_groups"][0]:
        pytest.skip("this torch keeps no names")
    with pytest.raises(ValueError, match="its params in another order, by their names: where it has 'b' the optimizer"):
        fusedopt.load_foreign(fusedopt.AdamW(_named(["a", "c", "b"])), file, "timm.AdamWLegacy")
    # A wrapper's names are others, of the same params.
    for names in (["a", "b", "c"], ["module.a", "module.b", "module.c"]):
        fusedopt.load_foreign(fusedopt.AdamW(_named(names)), file, "timm.AdamWLegacy")


@pytest.mark.parametrize("second", [1.0, 3.0])
def test_a_norm_that_groups_of_a_file_differ_in_is_refused(second: float) -> None:
    lamb = {**ADAM, "max_grad_norm": 1.0}
    theirs = live("timm.optim.lamb.Lamb", _groups({}, {"max_grad_norm": second}), lamb)  # type: ignore[arg-type]
    ours = fusedopt.LAMB(_groups({}, {}))
    if second == 1.0:
        fusedopt.load_foreign(ours, theirs.state_dict(), "timm.Lamb")
        return
    with pytest.raises(ValueError, match=r"differ in .'max_grad_norm'., which timm.Lamb has once, by its constructor"):
        fusedopt.load_foreign(ours, theirs.state_dict(), "timm.Lamb")


@pytest.mark.parametrize("late", [True, False])
def test_a_param_without_a_state_in_a_group_that_has_counted_is_told(late: bool) -> None:
    params = foreign_params()
    theirs = live("timm.optim.lamb.Lamb", params, {**ADAM, "max_grad_norm": 1.0})
    for p in params[late:]:
        theirs.state[p] = {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
    theirs.param_groups[0]["step"] = torch.tensor(5.0)
    if late:
        with pytest.warns(UserWarning, match=r"params \[0\] have no state yet: timm.Lamb would begin with the count"):
            fusedopt.replace(theirs)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            fusedopt.replace(theirs)


def _bitsandbytes(param: Tensor, config: dict[str, Any], waiting: list[Any] | None = None) -> Any:
    """With what GlobalOptimManager has for the second param."""

    def configured(group_index: int, index: int, group: dict[str, Any]) -> dict[str, Any]:
        return {**_plain(group_index, index, group), **(config if index == 1 else {})}

    manager = SimpleNamespace(module_weight_config_triple=waiting or [])
    params = [Parameter(torch.ones(4)), param]
    return live("bitsandbytes.optim.adamw.AdamW", params, ADAM, get_config=configured, mng=manager)  # type: ignore[list-item]


@pytest.mark.parametrize("config", [{"lr": 0.5}, {"betas": (0.5, 0.5)}, {"max_unorm": 1.0}, {"skip_zeros": True}])
def test_a_param_that_bitsandbytes_steps_by_other_numbers_is_refused(config: dict[str, Any]) -> None:
    theirs = _bitsandbytes(Parameter(torch.ones(4)), config)
    ((key, value),) = config.items()
    with pytest.raises(ValueError, match=r"bitsandbytes.AdamW does not step as ours would: param 1 of group 0") as told:
        fusedopt.replace(theirs)
    assert f"has {key}={value!r}" in str(told.value)


def test_what_waits_for_the_first_step_of_bitsandbytes_is_seen() -> None:
    module = torch.nn.Linear(4, 1)
    wide = (module, "weight", {"optim_bits": 32})
    fusedopt.replace(_bitsandbytes(module.weight, {}, [wide]))
    with pytest.raises(ValueError, match=r"param 1 of group 0 has lr=0.5"):
        fusedopt.replace(_bitsandbytes(module.weight, {}, [wide, (module, "weight", {"lr": 0.5})]))
