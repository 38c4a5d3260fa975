"""What one step reads, writes and leaves alone: gradients, versions, closures, hyper-parameters, forks."""

from __future__ import annotations

import inspect
import os
import signal
import time
from typing import Any

import prototypes
import pytest
import torch
from cases import CASES, ONE_PER_OPTIMIZER, Case, named
from support import (
    assert_close,
    assert_identical,
    give_grads,
    make_params,
    params_of,
    snapshot,
    train,
    versions,
)
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

import fusedopt


def pair(case: Case, **extra: Any) -> tuple[Optimizer, Optimizer]:
    """Ours and torch's for-loop over equal params."""
    return case.ours(make_params(), **extra), case.torchs(make_params(), **extra)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_without_grad_nothing_happens_to_that_param(case: Case) -> None:
    ours, torchs = pair(case)
    for i in range(4):
        for optimizer in (ours, torchs):
            params = params_of(optimizer)
            give_grads(params, i)
            params[0].grad = None  # never has one
            if i < 2:
                params[1].grad = None  # joins late: its own step count starts then
            if i == 2:
                params[4].grad = None  # waits once
            optimizer.step()
        assert (params_of(ours)[0] in ours.state) == case.starts_with_state
        assert_close(ours, torchs)
    assert_identical(params_of(ours)[0], make_params()[0])


@pytest.mark.parametrize("case", ONE_PER_OPTIMIZER, ids=str)
def test_no_grads_at_all(case: Case) -> None:
    ours, _ = pair(case)
    before = snapshot(ours)
    ours.step()
    assert_identical(snapshot(ours), before)
    assert bool(ours.state) == case.starts_with_state


@pytest.mark.parametrize("case", CASES, ids=str)
def test_zero_gradient_without_decay_moves_nothing(case: Case) -> None:
    ours = case.ours(make_params(), **{key: 0 for key in ("weight_decay", "lambd") if case.takes(key)})
    for _ in range(3):
        for p in params_of(ours):
            p.grad = torch.zeros_like(p)
        ours.step()
    assert_identical(params_of(ours), make_params())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_grad_is_neither_written_nor_aliased(case: Case) -> None:
    ours = case.ours(make_params())
    for i in range(2):
        give_grads(params_of(ours), i)
        grads = [p.grad for p in params_of(ours)]
        copies, counters = [g.clone() for g in grads], [g._version for g in grads]
        ours.step()
        assert [p.grad is g for p, g in zip(params_of(ours), grads, strict=True)] == [True] * len(grads)
        assert_identical(grads, copies)
        assert [g._version for g in grads] == counters
        before = snapshot(ours)
        for g in grads:
            g.fill_(1e9)
        assert_identical(snapshot(ours), before)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_params_and_states_are_updated_in_place_and_versioned(case: Case) -> None:
    ours = case.ours(make_params())
    train(ours, 1)
    tensors = [*params_of(ours), *(t for s in ours.state.values() for t in s.values())]
    addresses, counters = [t.data_ptr() for t in tensors], [t._version for t in tensors]
    train(ours, 1)
    after = [*params_of(ours), *(t for s in ours.state.values() for t in s.values())]
    assert all(a is b for a, b in zip(after, tensors, strict=True))
    assert [t.data_ptr() for t in tensors] == addresses
    for t, counter in zip(tensors, counters, strict=True):
        assert t.numel() == 0 or t._version > counter


@pytest.mark.parametrize("case", CASES, ids=str)
def test_backward_through_the_old_graph_raises(case: Case) -> None:
    p = make_params([(67,)])[0]
    ours = case.ours([p])
    for _ in range(2):  # the first step makes states and plan, the second reuses them
        ours.zero_grad()
        loss = (p * p).sum()
        loss.backward(retain_graph=True)
        ours.step()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


@pytest.mark.parametrize("case", ONE_PER_OPTIMIZER, ids=str)
def test_gradients_may_carry_a_graph(case: Case) -> None:
    ours, torchs = pair(case)
    for optimizer in (ours, torchs):
        for _ in range(2):
            optimizer.zero_grad()
            sum((p**3).sum() for p in params_of(optimizer)).backward(create_graph=True)
            assert params_of(optimizer)[0].grad.grad_fn is not None
            optimizer.step()
    assert_close(ours, torchs)
    assert not any(t.requires_grad for s in ours.state.values() for t in s.values())


@pytest.mark.parametrize("outer", [True, False])
@pytest.mark.parametrize("case", ONE_PER_OPTIMIZER, ids=str)
def test_closure(case: Case, outer: bool) -> None:
    ours, torchs = pair(case)
    modes = []

    def closure(optimizer: Optimizer) -> Tensor:
        modes.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss: Tensor = sum((p**2).sum() for p in params_of(optimizer))
        loss.backward()
        return loss

    with torch.set_grad_enabled(outer):
        for _ in range(3):
            mine = ours.step(lambda: closure(ours))
            theirs = torchs.step(closure=lambda: closure(torchs))
            assert torch.is_grad_enabled() is outer
            torch.testing.assert_close(mine, theirs)
        assert ours.step(closure=lambda: "any value") == "any value"
        assert ours.step() is None
    assert modes == [True] * 6


def test_closure_that_raises_changes_nothing() -> None:
    ours = fusedopt.AdamW(make_params())
    train(ours, 1)
    before, counters = snapshot(ours), versions(ours)

    def closure() -> float:
        raise KeyError("in the closure")

    with torch.no_grad():
        with pytest.raises(KeyError, match="in the closure"):
            ours.step(closure)
        assert not torch.is_grad_enabled()
    assert_identical(snapshot(ours), before)
    assert versions(ours) == counters


# Values that none of ONE_PER_OPTIMIZER has; those that depend on others come after them.
NEW_HYPERS: list[dict[str, Any]] = [
    *({"lr": 0.02}, {"weight_decay": 0.2}, {"maximize": True}, {"eps": 1e-2}, {"alpha": 0.5}, {"rho": 0.6}),
    *({"momentum": 0}, {"momentum": 0.5}, {"dampening": 0.2}, {"nesterov": True, "dampening": 0}),
    *({"betas": (0.5, 0.7, 0.6)}, {"lr_decay": 0.3}, {"momentum_decay": 0.2}, {"lambd": 0.1}, {"t0": 5.0}),
    *({"decoupled_weight_decay": True}, {"decoupled_weight_decay": False}, {"no_prox": True}),
    *({"etas": (0.4, 1.4)}, {"step_sizes": (1e-3, 0.01)}, {"trust_coeff": 0.3}, {"bias_correction": False}),
    *({"grad_averaging": False}, {"trust_clip": True}, {"weight_decay": 0}, {"always_adapt": True}),
    *({"t_alpha": 3}, {"t_beta3": 3}, {"clip_exp": 0.5}, {"decouple": True}, {"a": 0.7}, {"b": 0.5}),
    *({"rectify": False}, {"decoupled_decay": False}, {"rectify": True, "degenerated_to_sgd": False}),
    *({"fixed_decay": True, "decoupled_decay": True}, {"warmup_steps": 30}, {"r": 1.0}, {"weight_lr_power": 1.0}),
    *({"silent_sgd_phase": False}, {"gamma": 0.5}, {"grad_averaging": True}, {"beta3": 0.5}, {"d_coef": 2.0}),
    *({"use_bias_correction": True}, {"safeguard_warmup": True}, {"decoupled_decay": True}, {"d": 2e-3, "d_max": 2e-3}),
    *({"d_numerator": 0.01}, {"k": 7}, {"d0": 1e-2}, {"growth_rate": 1.02}, {"lr": 0.0}),
]
# These change which states there are, or only what they start from, or are in groups only while an estimate is taken.
NOT_CHANGED = {"amsgrad", "centered", "estimates", "initial_accumulator_value"}


@pytest.mark.parametrize("case", ONE_PER_OPTIMIZER, ids=str)
def test_hyper_parameters_are_read_at_each_step(case: Case) -> None:
    ours, torchs = pair(case)
    group = ours.param_groups[0]
    # What torch's class lacks tests/test_beyond.py has.
    known = {name.partition(".")[0] for name in case.rule["hypers"]} - case.cls._beyond.keys()
    new = known - {key for change in NEW_HYPERS for key in change} - NOT_CHANGED
    assert not new, f"give NEW_HYPERS another value of each of {new}"
    # Without momentum from the start there is no buffer for it.
    known -= {"momentum"} if group.get("momentum") == 0 or "train_mode" in group else set()
    changes = [
        change for change in NEW_HYPERS if change.keys() <= known | {"maximize"} and change.keys() <= group.keys()
    ]
    for i, change in enumerate([{}, *changes]):
        values = {key: v[: len(group[key])] if isinstance(v, tuple) else v for key, v in change.items()}
        for optimizer in (ours, torchs):
            optimizer.param_groups[0].update(values)
            train(optimizer, 2, first=2 * i)
        assert_close(ours, torchs)


def test_closure_may_change_what_the_step_reads() -> None:
    ours, torchs = pair(named("adamw"))

    def closure(optimizer: Optimizer, i: int) -> None:
        optimizer.param_groups[0]["lr"] *= 0.5
        if i == 2:
            optimizer.add_param_group({"params": make_params(seed=3)})
        give_grads(params_of(optimizer), i)

    for i in range(4):
        ours.step(lambda i=i: closure(ours, i))
        torchs.step(lambda i=i: closure(torchs, i))
    assert_close(ours, torchs)


NUMBERS = [
    pytest.param(case, name.partition(".")[0], id=f"{case}-{name}")
    for case in ONE_PER_OPTIMIZER
    for name in case.rule["hypers"]
    if case.takes(name.partition(".")[0]) and not name.endswith((".1", ".2")) and name not in case.cls._beyond
]


@pytest.mark.parametrize(("case", "key"), NUMBERS)
def test_a_hyper_parameter_that_is_no_number_raises_and_changes_nothing(case: Case, key: str) -> None:
    ours = case.ours(make_params())
    train(ours, 2)
    give_grads(params_of(ours), 2)
    before, counters = snapshot(ours), versions(ours)
    flag = isinstance(inspect.signature(case.cls).parameters[key].default, bool)
    # An argument of a newer torch is in no group of this one.
    several = isinstance(ours.param_groups[0].get(key), tuple)
    for value in (
        *(() if flag or key in case.cls._optional else (None,)),
        "0.1",
        [1e-8],
        *([0.9, (0.9,)] if several else []),
    ):
        ours.param_groups[0][key] = value
        with pytest.raises((TypeError, ValueError), match=key):
            ours.step()
        assert_identical(snapshot(ours), before)
        assert versions(ours) == counters


def test_amsgrad_and_rmsprop_variants_may_be_switched_off() -> None:
    for name, kwargs, off in [
        ("Adam", {"amsgrad": True}, {"amsgrad": False}),
        ("RMSprop", {"momentum": 0.9, "centered": True}, {"momentum": 0, "centered": False}),
    ]:
        ours, torchs = pair(Case(name, name, {"lr": 1e-2, **kwargs}))
        for change in ({}, off, kwargs):
            for optimizer in (ours, torchs):
                optimizer.param_groups[0].update(change)
                train(optimizer, 2)
            assert_close(ours, torchs)


def test_child_of_a_fork_steps() -> None:
    # Big enough for all threads; a child has none of its parent's workers and must not wait for them.
    torch.set_num_threads(2)
    optimizer = fusedopt.AdamW([Parameter(torch.zeros(1 << 21))])
    params_of(optimizer)[0].grad = torch.ones(1 << 21)
    optimizer.step()
    child = os.fork()
    if child == 0:
        try:
            optimizer.step()
            first = optimizer.param_groups[0]["params"][0].data_ptr()  # no torch kernel: it may hang here itself
            os._exit(0 if first else 1)
        finally:
            os._exit(2)
    status = None
    for _ in range(600):
        finished, status = os.waitpid(child, os.WNOHANG)
        if finished:
            break
        time.sleep(0.05)
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        pytest.fail("the child hangs")
    assert os.waitstatus_to_exitcode(status) == 0
    optimizer.step()
    torch.testing.assert_close(optimizer.state[params_of(optimizer)[0]]["step"], torch.tensor(2.0))


@pytest.mark.parametrize("case", ONE_PER_OPTIMIZER, ids=str)
def test_lazily_cloned_storages_are_materialised(case: Case) -> None:
    originals = [p.detach() for p in make_params([(67,), (4, 5)])]
    copies = [t.clone() for t in originals]
    ours = case.ours([Parameter(torch._lazy_clone(t)) for t in originals])
    torchs = case.torchs([Parameter(t.clone()) for t in originals])
    for optimizer in (ours, torchs):
        train(optimizer, 1)
        for p in params_of(optimizer):
            for key, value in optimizer.state[p].items():
                optimizer.state[p][key] = torch._lazy_clone(value) if optimizer is ours else value
    kept = [{k: torch._lazy_clone(v) for k, v in s.items()} for s in ours.state.values()]
    values = [{k: v.clone() for k, v in s.items()} for s in kept]
    for optimizer in (ours, torchs):
        train(optimizer, 2, first=1)
    assert_identical(originals, copies)
    assert_identical(kept, values)
    assert_close(ours, torchs)


@pytest.mark.filterwarnings("ignore:Using backward")
@pytest.mark.parametrize("kwargs", [{}, {"max_grad_norm": 1.0}, {"ema_decay": 0.5}], ids=str)
@pytest.mark.parametrize("make", [fusedopt.AdamW, fusedopt.Lion, fusedopt.Adafactor, prototypes.Adam])
def test_clearing_leaves_the_graph_of_a_gradient_behind(make: Any, kwargs: dict[str, Any]) -> None:
    """As zero_grad(set_to_none=False) does: else create_graph=True adds to it, and memory grows by every step."""
    params = [Parameter(torch.ones(4, 3)), Parameter(torch.ones(3))]
    optimizer = make(params, **kwargs)
    for _ in range(2):
        (params[0].pow(3).sum() + params[1].sum()).backward(create_graph=True)
        assert params[0].grad is not None
        assert params[0].grad.requires_grad
        before = params[0].detach().clone()
        optimizer.step(zero_grad=True)
        assert not torch.equal(params[0], before)
        for p in params:
            assert p.grad is not None
            assert not p.grad.requires_grad
            assert not p.grad.any()
