"""Groups and state are the truth: whatever anybody has made of them, the next step goes on from it as torch's does."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import pytest
import torch
from cases import ONE_PER_OPTIMIZER, Case
from support import assert_close, make_params, params_of, train
from tiers import of_a_kind, thinned
from torch.nn import Parameter
from torch.optim import Optimizer


# Each edits an optimizer in mid training; `fresh` makes the params it may bring in.
def _add_group(optimizer: Optimizer, fresh: list[Parameter]) -> None:
    own = {"weight_decay": 0.3} if "d_coef" in optimizer.defaults else {"lr": 0.01}
    optimizer.add_param_group({"params": fresh, **own})


def _append(optimizer: Optimizer, fresh: list[Parameter]) -> None:
    optimizer.param_groups[0]["params"].append(fresh[0])


def _replace_params(optimizer: Optimizer, fresh: list[Parameter]) -> None:
    optimizer.param_groups[0]["params"] = fresh


def _swap_one(optimizer: Optimizer, fresh: list[Parameter]) -> None:
    optimizer.param_groups[0]["params"][1] = fresh[1]


def _reverse(optimizer: Optimizer, fresh: list[Parameter]) -> None:
    optimizer.param_groups[0]["params"].reverse()


def _empty(optimizer: Optimizer, fresh: list[Parameter]) -> None:
    optimizer.param_groups[0]["params"] = []


def _remove_group(optimizer: Optimizer, fresh: list[Parameter]) -> None:
    optimizer.param_groups.pop(0)
    optimizer.add_param_group({"params": fresh})


def _new_groups(optimizer: Optimizer, fresh: list[Parameter]) -> None:
    optimizer.param_groups = [{**g, "lr": 0.02} for g in optimizer.param_groups]


def _new_data(optimizer: Optimizer, fresh: list[Parameter]) -> None:
    for p, q in zip(params_of(optimizer), fresh, strict=True):
        p.data = q.data


def _edit_state(optimizer: Optimizer, fresh: list[Parameter]) -> None:
    for state in optimizer.state.values():
        for value in state.values():
            value.mul_(2)


def _replace_state_tensors(optimizer: Optimizer, fresh: list[Parameter]) -> None:
    for state in optimizer.state.values():
        for key, value in state.items():
            state[key] = value * 2


def _clear_state(optimizer: Optimizer, fresh: list[Parameter]) -> None:
    optimizer.state.clear()


def _clear_one_state(optimizer: Optimizer, fresh: list[Parameter]) -> None:
    optimizer.state[optimizer.param_groups[0]["params"][0]] = {}


def _new_state(optimizer: Optimizer, fresh: list[Parameter]) -> None:
    copies = {p: {k: v.clone() * 2 for k, v in s.items()} for p, s in optimizer.state.items()}
    optimizer.state = defaultdict(dict, copies)


EDITS = [
    _add_group, _append, _replace_params, _swap_one, _reverse, _empty, _remove_group, _new_groups, _new_data,
    _edit_state, _replace_state_tensors, _clear_state, _clear_one_state, _new_state,
]  # fmt: skip


@thinned("the plan knows states and numbers, not rules", keep=of_a_kind)
@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__.strip("_").replace("_", "-"))
@pytest.mark.parametrize("case", ONE_PER_OPTIMIZER, ids=str)
def test_groups_and_state_are_the_truth(case: Case, edit: Callable[[Optimizer, list[Parameter]], None]) -> None:
    ours, torchs = case.ours(make_params()), case.torchs(make_params())
    untouched = params_of(ours), params_of(torchs)
    for optimizer in (ours, torchs):
        train(optimizer, 3)
        edit(optimizer, make_params(seed=1))
        train(optimizer, 3, first=3)
    assert_close(ours, torchs)
    for p, q in zip(*untouched, strict=True):  # params that were taken out stay where they were
        torch.testing.assert_close(p, q)
