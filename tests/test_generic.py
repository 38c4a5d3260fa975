"""A rule written in Python on GenericOptimizer does what torch's class of that rule does, and has torch's manners."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from prototypes import Adam
from support import (
    assert_close,
    assert_identical,
    clone_params,
    give_grads,
    make_params,
    params_of,
    save_and_load,
    snapshot,
    train,
)
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from fusedopt import WeightDecay


def pair(kwargs: dict[str, Any], dtype: torch.dtype = torch.float32, **options: Any) -> tuple[Adam, Optimizer]:
    return Adam(make_params(dtype=dtype), lr=0.01, **options), torch.optim.Adam(
        make_params(dtype=dtype), lr=0.01, foreach=False, **kwargs
    )


VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "adam": ({}, {}),
    "l2": ({"weight_decay": 0.3}, {"weight_decay": WeightDecay(0.3, decoupled=False)}),
    "adamw": ({"weight_decay": 0.3, "decoupled_weight_decay": True}, {"weight_decay": WeightDecay(0.3)}),
    "maximize": ({"maximize": True}, {"maximize": True}),
    "maximize-l2": (
        {"maximize": True, "weight_decay": 0.3},
        {"maximize": True, "weight_decay": WeightDecay(0.3, decoupled=False)},
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128], ids=str)
@pytest.mark.parametrize(("kwargs", "options"), VARIANTS.values(), ids=VARIANTS)
def test_equals_torch(kwargs: dict[str, Any], options: dict[str, Any], dtype: torch.dtype) -> None:
    ours, torchs = pair(kwargs, dtype, **options)
    train(ours, 12)
    train(torchs, 12)
    assert_close(ours, torchs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("kwargs", "options"), VARIANTS.values(), ids=VARIANTS)
def test_equals_torch_in_16_bits(kwargs: dict[str, Any], options: dict[str, Any], dtype: torch.dtype) -> None:
    ours, torchs = pair({**kwargs, "eps": 1e-3}, dtype, eps=1e-3, **options)
    train(ours, 12)
    train(torchs, 12)
    for p, q, start in zip(params_of(ours), params_of(torchs), make_params(dtype=dtype), strict=True):
        torch.testing.assert_close(p, q, rtol=0.02, atol=0.02)
        assert p.numel() == 0 or not torch.equal(p, start)
    assert {v.dtype for s in ours.state.values() for k, v in s.items() if k != "step"} == {dtype}


def test_complex_states_are_stored_as_torchs_and_exchanged_with_it() -> None:
    ours, torchs = pair({}, torch.complex64)
    train(ours)
    torchs.load_state_dict(save_and_load(ours.state_dict()))
    back = Adam(clone_params(params_of(ours)), lr=0.01)
    back.load_state_dict(save_and_load(torchs.state_dict()))
    assert_identical(snapshot(back), snapshot(ours))
    assert all(s["exp_avg"].is_complex() for s in back.state.values())


def test_complex_layouts_and_lazy_conjugates() -> None:
    data = torch.randn(4, 6, dtype=torch.complex64)
    params = [[Parameter(data.clone().t()), Parameter(data.clone()[:, ::2])] for _ in range(2)]
    ours, torchs = Adam(params[0], lr=0.01), torch.optim.Adam(params[1], lr=0.01, foreach=False)
    for optimizer in (ours, torchs):
        for i in range(3):
            give_grads(params_of(optimizer), i)
            p = params_of(optimizer)[0]
            p.grad = p.grad.conj() if optimizer is ours else p.grad.conj().resolve_conj()
            assert p.grad.is_conj() is (optimizer is ours)
            optimizer.step()
    assert_close(ours, torchs)
    assert [s["exp_avg"].stride() for s in ours.state.values()] == [(1, 6), (3, 1)]


def test_state_that_a_step_replaces_adds_and_deletes() -> None:
    class Replacing(Adam):
        def init_state(self, state: dict[str, Any], group: dict[str, Any], param: Tensor) -> None:
            # Of a complex param the halves of a number are far apart here.
            state["last"], state["first"] = torch.zeros(param.t().shape).t(), True

        def step_param(self, state: dict[str, Any], group: dict[str, Any], grad: Tensor, param: Tensor) -> None:
            state.pop("first", None)
            state["last"] = state["last"] + grad
            state["norm"] = state["last"].norm()
            param.sub_(state["last"], alpha=0.1)

    runs = []
    for dtype in (torch.float32, torch.complex64):
        optimizer = Replacing([Parameter(torch.ones(3, dtype=dtype))])
        for _ in range(2):
            params_of(optimizer)[0].grad = torch.full((3,), 2.0, dtype=dtype)
            optimizer.step()
        (state,) = optimizer.state.values()
        assert list(state) == ["step", "last", "norm"]
        assert state["last"].dtype is dtype
        runs.append(params_of(optimizer)[0].detach().real)
    assert_identical(runs[0], runs[1])
    assert runs[0].tolist() == pytest.approx([0.4] * 3)


def test_absolute_decay_ignores_the_learning_rate() -> None:
    ours = Adam(make_params(), lr=0.0, weight_decay=WeightDecay(0.25, absolute=True))
    train(ours, 2)
    for p, start in zip(params_of(ours), make_params(), strict=True):
        torch.testing.assert_close(p, start * 0.75**2)


def test_weight_decay_leaves_the_given_gradient_alone() -> None:
    param, grad = torch.ones(2), torch.ones(2)
    group = {"lr": torch.tensor([0.5]), "weight_decay": 0.5}
    assert WeightDecay(9.0, decoupled=False).apply(param, grad, group).tolist() == [1.5, 1.5]
    assert (param.tolist(), grad.tolist()) == ([1.0, 1.0], [1.0, 1.0])
    assert WeightDecay(9.0).apply(param, grad, group) is grad
    assert param.tolist() == [0.75, 0.75]
    group["weight_decay"] = 0.0
    assert WeightDecay(9.0, decoupled=False).apply(param, grad, group) is grad


def test_groups_are_read_at_each_step() -> None:
    ours, torchs = pair({"weight_decay": 0.1, "decoupled_weight_decay": True}, weight_decay=WeightDecay(0.1))
    for optimizer in (ours, torchs):
        one_cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=8)
        for i in range(6):
            optimizer.param_groups[0]["weight_decay"] = 0.1 * i
            optimizer.param_groups[0]["maximize"] = i == 3
            train(optimizer, 1, first=i)
            one_cycle.step()
    assert_close(ours, torchs)
    assert ours.param_groups[0]["betas"] != (0.9, 0.999)


def test_a_group_added_later_has_its_own_numbers() -> None:
    ours, torchs = pair({"weight_decay": 0.1}, weight_decay=WeightDecay(0.1, decoupled=False))
    for optimizer in (ours, torchs):
        train(optimizer)
        optimizer.add_param_group({"params": make_params(seed=2), "lr": 0.5, "weight_decay": 0.7, "betas": (0.5, 0.6)})
        train(optimizer)
    assert_close(ours, torchs)


def test_tensor_lr_stays_the_same_object() -> None:
    lr = torch.tensor([0.01])
    ours = Adam(make_params(), lr=lr, weight_decay=WeightDecay(0.1))
    torchs = torch.optim.AdamW(make_params(), lr=0.01, weight_decay=0.1, foreach=False)
    train(ours)
    train(torchs)
    lr.fill_(0.1)
    torchs.param_groups[0]["lr"] = 0.1
    train(ours)
    train(torchs)
    assert_close(ours, torchs)
    assert ours.param_groups[0]["lr"] is lr


def test_state_is_made_for_params_with_a_gradient_alone() -> None:
    ours = Adam(make_params())
    first, second = params_of(ours)[:2]
    first.grad = torch.ones_like(first)
    ours.step()
    assert list(ours.state) == [first]
    second.grad = torch.ones_like(second)
    ours.step()
    assert [ours.state[p]["step"].item() for p in (first, second)] == [2.0, 1.0]
    step = ours.state[first]["step"]
    assert (step.dtype, step.shape, step.device.type) == (torch.float32, (), "cpu")
    assert list(ours.state[first]) == ["step", "exp_avg", "exp_avg_sq"]


@pytest.mark.parametrize("options", [{}, {"maximize": True}, {"weight_decay": WeightDecay(0.1)}], ids=str)
def test_the_gradient_is_never_written_nor_kept(options: dict[str, Any]) -> None:
    class Careless(Adam):
        def step_param(self, state: dict[str, Any], group: dict[str, Any], grad: Tensor, param: Tensor) -> None:
            state["kept"] = grad
            grad.mul_(3)
            param.sub_(grad)

    for dtype in (torch.float32, torch.complex64):
        ours = Careless(make_params(dtype=dtype), **options)
        give_grads(params_of(ours), 0)
        before = [(p.grad.clone(), p.grad._version) for p in params_of(ours)]
        ours.step()
        assert_identical([(p.grad, p.grad._version) for p in params_of(ours)], before)
        ours.zero_grad(set_to_none=False)
        assert all(ours.state[p]["kept"].abs().sum() > 0 for p in params_of(ours) if p.numel())


@pytest.mark.parametrize("outer", [True, False])
def test_closure_runs_with_grad_and_its_value_is_returned(outer: bool) -> None:
    ours = Adam([Parameter(torch.ones(2))], lr=0.5)
    (p,) = params_of(ours)

    def closure() -> Tensor:
        assert torch.is_grad_enabled()
        ours.zero_grad()
        loss: Tensor = p.square().sum()
        loss.backward()
        return loss

    with torch.set_grad_enabled(outer):
        assert ours.step(closure).item() == 2.0
        assert torch.is_grad_enabled() is outer
    torch.testing.assert_close(p.detach(), torch.full((2,), 0.5))
    assert ours.step() is None


class Overriding(Adam):
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        return super().step(closure)


@pytest.mark.parametrize("cls", [Adam, Overriding])
def test_hooks_run_once_each_in_torchs_order(cls: type[Adam]) -> None:
    def calls_of(optimizer: Optimizer) -> list[str]:
        log: list[str] = []
        handles = [
            register_optimizer_step_pre_hook(lambda *_: log.append("global pre")),
            register_optimizer_step_post_hook(lambda *_: log.append("global post")),
            optimizer.register_step_pre_hook(lambda *a: log.append(f"pre {len(a[1])}")),
            optimizer.register_step_post_hook(lambda *_: log.append("post")),
        ]
        optimizer.step(lambda: log.append("closure"))  # type: ignore[func-returns-value]
        for handle in handles:
            handle.remove()
        return log

    Adam(make_params()).step()  # torch wraps classes when they are first built
    assert calls_of(cls(make_params())) == calls_of(torch.optim.Adam(make_params()))
    assert calls_of(cls(make_params())) == ["global pre", "pre 2", "closure", "post", "global post"]


def test_pre_hook_replaces_arguments() -> None:
    ours = Adam(make_params())
    ours.register_step_pre_hook(lambda self, args, kwargs: ((self,), {"closure": lambda: "from the hook"}))
    assert ours.step(lambda: "from the caller") == "from the hook"


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x)), lambda x: save_and_load(x, weights_only=False)]
)
def test_copies_are_independent_and_equal(copied: Callable[[Any], Any]) -> None:
    ours = Adam(make_params(), lr=0.1, weight_decay=WeightDecay(0.1, absolute=True), maximize=True)
    train(ours)
    twin = copied(ours)
    before = snapshot(ours)
    train(twin, 2, first=3)
    assert_identical(snapshot(ours), before)
    train(ours, 2, first=3)
    assert_identical(snapshot(twin), snapshot(ours))
    with pytest.raises(ValueError, match="Invalid learning rate: -1"):
        twin.add_param_group({"params": make_params(seed=5), "lr": -1})
