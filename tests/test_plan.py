"""The cached plan is never stale: whatever is edited between two steps, the next step sees it."""

from __future__ import annotations

import copy
import threading
import weakref
from collections import defaultdict
from collections.abc import Callable

import pytest
import torch
from cases import ONE_PER_OPTIMIZER, Case, named
from support import assert_identical
from tiers import of_a_kind, thinned
from torch.optim import Optimizer

import fusedopt

SIZES = [(5, 3), (7,), (64,), (130,)]


class Twins:
    """The same params in one of our optimizers and in torch's for-loop, stepped side by side."""

    def __init__(self, case: Case) -> None:
        values = [torch.randn(size) for size in SIZES]
        self.params = [[torch.nn.Parameter(v.clone()) for v in values] for _ in range(2)]
        self.optimizers: list[Optimizer] = [case.ours(self.params[0]), case.torchs(self.params[1])]
        for _ in range(3):
            self.step()

    def step(self) -> None:
        grads = [torch.randn(size) for size in SIZES]
        for params, optimizer in zip(self.params, self.optimizers, strict=True):
            for param, grad in zip(params, grads, strict=True):
                param.grad = grad.reshape(param.shape).clone()
            optimizer.step()

    def edit(self, change: Callable[[Optimizer, list[torch.nn.Parameter]], None]) -> None:
        for params, optimizer in zip(self.params, self.optimizers, strict=True):
            change(optimizer, params)

    def check(self) -> None:
        for _ in range(3):
            self.step()
        for ours, theirs in zip(*self.params, strict=True):
            torch.testing.assert_close(ours, theirs)
            state, expected = (o.state.get(p, {}) for o, p in zip(self.optimizers, (ours, theirs), strict=True))
            assert list(state) == list(expected)
            for key in state:
                torch.testing.assert_close(state[key], expected[key])


def halve_lr(optimizer: Optimizer, params: list[torch.nn.Parameter]) -> None:
    optimizer.param_groups[0]["lr"] *= 0.5


def tensor_lr_changed_in_place(optimizer: Optimizer, params: list[torch.nn.Parameter]) -> None:
    group = optimizer.param_groups[0]
    group["lr"] = torch.tensor(group["lr"])
    optimizer.step()
    group["lr"].mul_(3)


def swap_data(optimizer: Optimizer, params: list[torch.nn.Parameter]) -> None:
    for param in params:
        param.data = param.data * 2


def swap_data_for_another_shape(optimizer: Optimizer, params: list[torch.nn.Parameter]) -> None:
    params[0].data = params[0].data.reshape(3, 5)
    params[0].grad = None
    optimizer.state.pop(params[0])


def swap_data_for_strided(optimizer: Optimizer, params: list[torch.nn.Parameter]) -> None:
    wide = torch.zeros(130, 3)
    wide[:, 1] = params[3].data
    params[3].data = wide[:, 1]


def replace_state_tensors(optimizer: Optimizer, params: list[torch.nn.Parameter]) -> None:
    for state in optimizer.state.values():
        for key in state:
            state[key] = state[key] * 0.5 if key != "step" else state[key] + 5


def edit_state_in_place(optimizer: Optimizer, params: list[torch.nn.Parameter]) -> None:
    for state in optimizer.state.values():
        for value in state.values():
            value.mul_(0.5) if value.dim() else value.add_(7)


def set_state_storage(optimizer: Optimizer, params: list[torch.nn.Parameter]) -> None:
    for state in optimizer.state.values():
        for value in state.values():
            value.data = value.data.clone() + (value.dim() == 0)


def replace_state_dicts(optimizer: Optimizer, params: list[torch.nn.Parameter]) -> None:
    for param in list(optimizer.state):
        optimizer.state[param] = {key: value * 0.25 for key, value in optimizer.state[param].items()}


def reorder_state(optimizer: Optimizer, params: list[torch.nn.Parameter]) -> None:
    for param in reversed(list(optimizer.state)):
        optimizer.state[param] = optimizer.state.pop(param)


def reorder_keys(optimizer: Optimizer, params: list[torch.nn.Parameter]) -> None:
    """Also replaces the key objects: strings read from a file are equal to ours, not identical."""
    for state in optimizer.state.values():
        entries = [("".join(list(key)), value) for key, value in reversed(state.items())]
        state.clear()
        state.update(entries)


def replace_whole_state(optimizer: Optimizer, params: list[torch.nn.Parameter]) -> None:
    fresh: defaultdict[torch.Tensor, dict[str, torch.Tensor]] = defaultdict(dict)
    fresh.update(
        {p: {k: v.clone() * 0.5 if v.dim() else v.clone() for k, v in s.items()} for p, s in optimizer.state.items()}
    )
    optimizer.state = fresh


def clear_one_state(optimizer: Optimizer, params: list[torch.nn.Parameter]) -> None:
    optimizer.state[params[1]].clear()


def delete_all_state(optimizer: Optimizer, params: list[torch.nn.Parameter]) -> None:
    optimizer.state.clear()


def add_extra_keys(optimizer: Optimizer, params: list[torch.nn.Parameter]) -> None:
    for param in params:
        optimizer.state[param]["note"] = torch.tensor(1.0)
    optimizer.state[params[0]]["note"] = torch.tensor(2.0)
    optimizer.param_groups[0]["comment"] = ["mine"]


def remove_a_param(optimizer: Optimizer, params: list[torch.nn.Parameter]) -> None:
    optimizer.param_groups[0]["params"] = [params[0], params[2], params[3]]


def reorder_params(optimizer: Optimizer, params: list[torch.nn.Parameter]) -> None:
    optimizer.param_groups[0]["params"].reverse()


def split_group(optimizer: Optimizer, params: list[torch.nn.Parameter]) -> None:
    group = optimizer.param_groups[0]
    optimizer.param_groups.append({**group, "params": group["params"][2:], "lr": group["lr"] * 3})
    group["params"] = group["params"][:2]


def replace_groups(optimizer: Optimizer, params: list[torch.nn.Parameter]) -> None:
    optimizer.param_groups = [{**g, "params": list(g["params"]), "lr": g["lr"] * 2} for g in optimizer.param_groups]


def empty_group(optimizer: Optimizer, params: list[torch.nn.Parameter]) -> None:
    optimizer.param_groups[0]["params"] = []


def reload(optimizer: Optimizer, params: list[torch.nn.Parameter]) -> None:
    snapshot = copy.deepcopy(optimizer.state_dict())
    optimizer.step()
    optimizer.load_state_dict(snapshot)


def turn_to_maximize(optimizer: Optimizer, params: list[torch.nn.Parameter]) -> None:
    optimizer.param_groups[0]["maximize"] = True


EDITS = [
    value for value in list(globals().values()) if callable(value) and getattr(value, "__module__", "") == __name__
]
EDITS = [edit for edit in EDITS if not isinstance(edit, type)]


@thinned("the plan knows states and numbers, not rules", keep=of_a_kind)
@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
@pytest.mark.parametrize("case", ONE_PER_OPTIMIZER, ids=str)
def test_edit_is_seen(case: Case, edit: Callable[[Optimizer, list[torch.nn.Parameter]], None]) -> None:
    twins = Twins(case)
    twins.edit(edit)
    twins.check()


@pytest.mark.parametrize("case", ONE_PER_OPTIMIZER, ids=str)
def test_grads_are_read_anew(case: Case) -> None:
    """A gradient tensor replaced, resized through .data, or missing for a changing subset."""
    twins = Twins(case)
    for missing in ([0], [1, 2], [], [3], [0, 1, 2, 3]):
        grads = [torch.randn(size) for size in SIZES]
        for params, optimizer in zip(twins.params, twins.optimizers, strict=True):
            for i, param in enumerate(params):
                param.grad = None if i in missing else grads[i].clone()
            optimizer.step()
    twins.check()


@pytest.mark.parametrize("case", ONE_PER_OPTIMIZER, ids=str)
def test_the_plan_keeps_no_tensor_alive(case: Case) -> None:
    param = torch.nn.Parameter(torch.randn(9))
    param.grad = torch.randn(9)
    optimizer = case.ours([param])
    optimizer.step()
    states = [weakref.ref(value) for value in optimizer.state[param].values()]
    grad = weakref.ref(param.grad)
    optimizer.state.clear()
    param.grad = None
    assert grad() is None
    assert states
    assert all(state() is None for state in states)


@pytest.mark.parametrize("case", ONE_PER_OPTIMIZER, ids=str)
def test_recycled_addresses_are_no_stale_hits(case: Case) -> None:
    """New objects often land where freed ones were; an equal address must not pass for an equal object."""
    twins = Twins(case)
    for round_ in range(20):

        def renew(optimizer: Optimizer, params: list[torch.nn.Parameter]) -> None:
            for param in params:
                entry = {k: v.clone() for k, v in optimizer.state[param].items()}
                del optimizer.state[param]
                optimizer.state[param] = entry
            optimizer.param_groups[0]["lr"] = 0.01 + round_ * 1e-3  # noqa: B023

        twins.edit(renew)
        twins.step()
    twins.check()


def test_deep_copies_have_plans_of_their_own() -> None:
    twins = Twins(named("adam"))
    ours = twins.optimizers[0]
    before = [p.detach().clone() for p in twins.params[0]]
    other = copy.deepcopy(ours)
    for param in other.param_groups[0]["params"]:
        param.grad = torch.ones_like(param)
    other.step()
    for param, value in zip(twins.params[0], before, strict=True):
        assert torch.equal(param, value)
    twins.check()


def test_different_optimizers_in_different_threads() -> None:
    case = named("adamw")
    values = [torch.randn(300_000), torch.randn(11)]
    grads = [[torch.randn_like(v) for v in values] for _ in range(10)]

    def train(params: list[torch.nn.Parameter]) -> None:
        optimizer = case.ours(params)
        for step in grads:
            for param, grad in zip(params, step, strict=True):
                param.grad = grad
            optimizer.step()

    everyone = [[torch.nn.Parameter(v.clone()) for v in values] for _ in range(5)]
    train(everyone[0])
    threads = [threading.Thread(target=train, args=(params,)) for params in everyone[1:]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for params in everyone[1:]:
        for param, expected in zip(params, everyone[0], strict=True):
            assert torch.equal(param, expected)


def test_state_and_groups_may_be_properties() -> None:
    """Wrappers that subclass keep both elsewhere."""
    inner = fusedopt.SGD([torch.nn.Parameter(torch.ones(3))], lr=0.5, momentum=0.9)

    class Outer(fusedopt.SGD):
        def __init__(self) -> None:
            self._optimizer_step_pre_hooks = self._optimizer_step_post_hooks = {}

        state = property(lambda self: inner.state)
        param_groups = property(lambda self: inner.param_groups)

    param = inner.param_groups[0]["params"][0]
    param.grad = torch.ones(3)
    Outer().step()
    assert param.tolist() == [0.5, 0.5, 0.5]
    assert inner.state[param]["momentum_buffer"].tolist() == [1.0, 1.0, 1.0]


def _grad_of_one_is_missing(optimizer: Optimizer, params: list[torch.nn.Parameter]) -> None:
    params[-1].grad = None


def _state_of_one_is_another(optimizer: Optimizer, params: list[torch.nn.Parameter]) -> None:
    state = optimizer.state[params[len(params) // 2]]
    state["exp_avg"] = state["exp_avg"] * 2


def _state_of_one_is_double(optimizer: Optimizer, params: list[torch.nn.Parameter]) -> None:
    state = optimizer.state[params[-1]]
    state["exp_avg"].data = state["exp_avg"].double()


def _memory_of_one_is_shared_until_written(optimizer: Optimizer, params: list[torch.nn.Parameter]) -> None:
    state = optimizer.state[params[-1]]
    state["exp_avg_sq"] = torch._lazy_clone(state["exp_avg_sq"])


@pytest.mark.parametrize(
    "edit",
    [
        _grad_of_one_is_missing,
        _state_of_one_is_another,
        _state_of_one_is_double,
        _memory_of_one_is_shared_until_written,
    ],
)
def test_what_several_threads_find_is_what_one_finds(
    edit: Callable[[Optimizer, list[torch.nn.Parameter]], None],
) -> None:
    """So many params that looking at them is shared out, which this many elements alone would not be."""
    values = [torch.randn(64) for _ in range(2000)]
    made = [[torch.nn.Parameter(v.clone()) for v in values] for _ in range(2)]
    optimizers = [fusedopt.AdamW(params) for params in made]
    before = torch.get_num_threads()
    try:
        for step in range(6):
            for threads, params, optimizer in zip((1, 2), made, optimizers, strict=True):
                torch.set_num_threads(threads)
                for i, param in enumerate(params):
                    param.grad = torch.full_like(param, (i + step) % 7 - 3.0)
                if step == 4:
                    edit(optimizer, params)
                optimizer.step()
    finally:
        torch.set_num_threads(before)
    assert_identical(optimizers[1].state_dict(), optimizers[0].state_dict())
    assert_identical(made[1], made[0])


def test_an_error_that_several_threads_meet_is_told_and_nothing_is_written() -> None:
    params = [torch.nn.Parameter(torch.ones(64)) for _ in range(2000)]
    optimizer = fusedopt.AdamW(params)
    for _ in range(3):
        for param in params:
            param.grad = torch.ones_like(param)
        optimizer.step()
    kept = params[0].detach().clone()
    optimizer.state[params[-1]]["exp_avg"] = torch.zeros(63)
    with pytest.raises(RuntimeError, match="param 1999 of group 0: its state 'exp_avg' has shape"):
        optimizer.step()
    assert_identical([params[0].detach()], [kept])
