"""Clipping inside the step gives the bits of clipping before it, and leaves the gradients alone."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from cases import CASES, ONE_PER_OPTIMIZER, Case
from support import (
    EMULATED,
    assert_close,
    assert_identical,
    assert_same,
    clone_params,
    give_grads,
    make_params,
    params_of,
    snapshot,
    train,
)
from test_fallback import Wrapped, sparse_grad
from torch.nn import Parameter

import fusedopt
from fusedopt import _C

INF, NAN = float("inf"), float("nan")
one_per_optimizer = pytest.mark.parametrize("case", ONE_PER_OPTIMIZER, ids=str)


def clipped(case: Case, params: list[Any], max_norm: float | None, **extra: Any) -> Any:
    optimizer: Any = case.ours(params, **extra)
    optimizer.max_grad_norm = max_norm
    return optimizer


@pytest.mark.parametrize("max_norm", [0.5, 1e6])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_step_clips(case: Case, max_norm: float) -> None:
    ours, expected = clipped(case, make_params(), max_norm), case.ours(make_params())
    assert ours.grad_norm is None
    for i in range(4):
        give_grads(params_of(ours), i)
        give_grads(params_of(expected), i)
        grads = [p.grad.clone() for p in params_of(ours)]
        versions = [p.grad._version for p in params_of(ours)]
        ours.step()
        norm = fusedopt.clip_grad_norm_(params_of(expected), max_norm)
        expected.step()
        assert_identical(ours.grad_norm, norm)
        assert_identical([p.grad for p in params_of(ours)], grads)
        assert [p.grad._version for p in params_of(ours)] == versions
    assert_identical(snapshot(ours), snapshot(expected))


@one_per_optimizer
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.complex64], ids=str)
def test_dtypes(case: Case, dtype: torch.dtype) -> None:
    """A gradient is rounded once less than where it is clipped in place."""
    shapes = [(5, 7), (67,)]
    start = make_params(shapes, dtype=torch.float32 if dtype.is_complex else dtype)
    if dtype.is_complex:
        start = [Parameter(torch.complex(p.detach(), p.detach().flip(0))) for p in start]
    ours, expected = clipped(case, start, 0.5), case.ours(clone_params(start))
    for i in range(3):
        for optimizer in (ours, expected):
            torch.manual_seed(i)
            for p in params_of(optimizer):
                p.grad = torch.randn_like(p)
        wide = [p.grad.to(torch.complex128 if dtype.is_complex else torch.float64) for p in params_of(expected)]
        ours.step()
        norm = torch.cat([g.abs().flatten() for g in wide]).norm()
        torch.testing.assert_close(ours.grad_norm, norm.to(ours.grad_norm.dtype))
        fusedopt.clip_grad_norm_(params_of(expected), 0.5)
        expected.step()
    half = dtype in (torch.bfloat16, torch.float16)
    for p, q in zip(params_of(ours), params_of(expected), strict=True):
        torch.testing.assert_close(p, q, **({"rtol": 0.05, "atol": 0.05} if half else {}))


@one_per_optimizer
def test_groups_share_one_norm(case: Case) -> None:
    def build() -> Any:
        return case.ours([{"params": make_params()}, {"params": make_params(seed=1), **case.own(0.01)}, {"params": []}])

    ours, expected = build(), build()
    ours.max_grad_norm = 0.5
    for i in range(3):
        give_grads(params_of(ours), i)
        give_grads(params_of(expected), i)
        for optimizer in (ours, expected):
            params_of(optimizer)[i].grad = None
        fusedopt.clip_grad_norm_(params_of(expected), 0.5)
        ours.step()
        expected.step()
    assert_identical(snapshot(ours), snapshot(expected))


@pytest.mark.skipif(EMULATED, reason="the emulator's gradients are none of the host's")
@one_per_optimizer
def test_one_look_at_gradients_on_the_host_serves(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a step has found of them is measured; nobody lists them a second time."""
    ours = clipped(case, make_params(), 1.0)
    give_grads(params_of(ours), 0)
    expected = fusedopt.local_grad_norm(params_of(ours)).sqrt().float()

    def listed(*_: Any) -> None:
        raise AssertionError("the gradients were looked at twice")

    monkeypatch.setattr(_C, "Grads", listed)
    ours.step()
    assert_identical(ours.grad_norm, expected)


@one_per_optimizer
@pytest.mark.parametrize("value", [INF, NAN])
def test_a_norm_that_is_not_finite_scales_as_torch_does(case: Case, value: float) -> None:
    start = [Parameter(torch.ones(3)), Parameter(torch.ones(5))]
    ours, expected = clipped(case, start, 1.0), case.ours(clone_params(start))
    for optimizer in (ours, expected):
        for p in params_of(optimizer):
            p.grad = torch.ones_like(p)
        params_of(optimizer)[0].grad[1] = value
    ours.step()
    torch.nn.utils.clip_grad_norm_(params_of(expected), 1.0)
    expected.step()
    for p, q in zip(params_of(ours), params_of(expected), strict=True):
        torch.testing.assert_close(p, q, equal_nan=True)
    assert not torch.isfinite(ours.grad_norm)


def test_zero_stops_the_gradient() -> None:
    (param,) = start = make_params([(4,)])
    before = param.detach().clone()
    optimizer = fusedopt.SGD(start, lr=1.0)
    optimizer.max_grad_norm = 0.0
    train(optimizer, 1)
    assert_identical(param.detach(), before)


def test_it_is_read_at_each_step() -> None:
    ours, expected = fusedopt.SGD(make_params(), lr=1.0), fusedopt.SGD(make_params(), lr=1.0)
    for i, max_norm in enumerate((None, 0.5, 0.1, None)):
        ours.max_grad_norm = max_norm
        train(ours, 1, first=i)
        give_grads(params_of(expected), i)
        if max_norm is not None:
            fusedopt.clip_grad_norm_(params_of(expected), max_norm)
        expected.step()
        assert (ours.grad_norm is None) == (max_norm is None)
    assert_identical(snapshot(ours), snapshot(expected))


@pytest.mark.parametrize("value", [-1.0, NAN])
def test_what_is_no_maximum_is_refused(value: float) -> None:
    optimizer = fusedopt.SGD(make_params(), lr=1.0)
    with pytest.raises(ValueError, match=rf"max_grad_norm is {value}; give a number of at least 0, or None"):
        optimizer.max_grad_norm = value
    assert optimizer.max_grad_norm is None


@one_per_optimizer
def test_copies_keep_it(case: Case) -> None:
    ours = clipped(case, make_params(), 0.5)
    train(ours, 2)
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert other.max_grad_norm == 0.5
        assert other.grad_norm is None
        train(other, 1, first=2)
    train(ours, 1, first=2)
    assert_identical(snapshot(other), snapshot(ours))
    assert clipped(case, make_params(), None).__getstate__().keys() == {"defaults", "state", "param_groups"}


def test_a_step_that_fails_keeps_the_norm_of_the_last() -> None:
    optimizer = fusedopt.SGD(make_params([(3,)]), lr=1.0, momentum=0.9)
    optimizer.max_grad_norm = 1.0
    train(optimizer, 1)
    norm = optimizer.grad_norm
    (param,) = params_of(optimizer)
    optimizer.state[param]["momentum_buffer"] = torch.zeros(4)
    before = param.detach().clone()
    with pytest.raises(RuntimeError, match="has shape"):
        train(optimizer, 1)
    assert optimizer.grad_norm is norm
    assert_identical(param.detach(), before)


@pytest.mark.parametrize("name", ["SGD", "Adagrad"])
def test_sparse_gradients_count(name: str) -> None:
    def build() -> Any:
        return getattr(fusedopt, name)(make_params([(4, 3), (67,)]), lr=0.1)

    ours, expected = build(), build()
    ours.max_grad_norm = 0.5
    for i in range(3):
        for optimizer in (ours, expected):
            give_grads(params_of(optimizer), i)
            params_of(optimizer)[0].grad = sparse_grad(params_of(optimizer)[0], i)
        ours.step()
        table, dense = params_of(expected)
        norm = torch.cat([table.grad.to_dense().flatten(), dense.grad]).norm()
        torch.testing.assert_close(ours.grad_norm, norm)
        coefficient = min(1.0, 0.5 / (norm.item() + 1e-6))
        table.grad, dense.grad = table.grad * coefficient, dense.grad * coefficient
        expected.step()
    assert_close(ours, expected)


def test_subclasses_that_dispatch_count() -> None:
    ours, expected = (fusedopt.Adam(make_params([(5,), (4,)]), lr=0.1) for _ in range(2))
    ours.max_grad_norm = 0.5
    for i in range(3):
        give_grads(params_of(ours), i)
        give_grads(params_of(expected), i)
        plain = params_of(ours)[1].grad
        params_of(ours)[1].grad = Wrapped(plain)
        ours.step()
        norm = fusedopt.clip_grad_norm_(params_of(expected), 0.5)
        expected.step()
        assert type(ours.grad_norm) is torch.Tensor
        torch.testing.assert_close(ours.grad_norm, norm)
    for p, q in zip(params_of(ours), params_of(expected), strict=True):
        torch.testing.assert_close(p.detach(), q.detach())


def test_fake_tensors() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True):
        params = make_params([(5,)])
        optimizer = fusedopt.AdamW(params)
        optimizer.max_grad_norm = 1.0
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer.step()
        assert optimizer.grad_norm is not None
        assert optimizer.grad_norm.shape == ()


def matrices() -> list[Parameter]:
    return make_params([(6, 4), (4, 8)])


@pytest.mark.parametrize("name", ["Adafactor", "Muon"])
def test_optimizers_of_several_sweeps(name: str) -> None:
    if not hasattr(fusedopt, name):
        pytest.skip("this torch has none")
    ours, expected = (getattr(fusedopt, name)(matrices(), lr=0.1) for _ in range(2))
    ours.max_grad_norm = 0.5
    for i in range(3):
        give_grads(params_of(ours), i)
        give_grads(params_of(expected), i)
        ours.step()
        norm = fusedopt.clip_grad_norm_(params_of(expected), 0.5)
        expected.step()
        assert_identical(ours.grad_norm, norm)
    assert_close(ours, expected)


def test_params_that_take_more_than_one_look_get_no_third() -> None:
    """What is found of them for a norm that has to be measured apart is not looked for in vain at every step."""
    ordinary, twice = make_params(), make_params()
    once = [fusedopt.SGD(ordinary, lr=0.1, max_grad_norm=1.0), fusedopt.SGD(twice, lr=0.1, max_grad_norm=1.0)]
    once[1].param_groups[0]["params"] = [*twice, twice[0]]
    for params, optimizer in zip((ordinary, twice), once, strict=True):
        give_grads(params, 0)
        optimizer.step()
    assert [optimizer._plan is not None and optimizer._plan.looks_once for optimizer in once] == [not EMULATED, False]


def test_a_gradient_with_gaps_counts_like_one_without() -> None:
    params, dense = make_params(), make_params()
    optimizers = [fusedopt.AdamW(p, max_grad_norm=0.1) for p in (params, dense)]
    give_grads(dense, 0)
    for p, q in zip(params, dense, strict=True):
        assert q.grad is not None
        wide = torch.zeros(*q.shape, 2)
        wide[..., 0] = q.grad
        p.grad = wide[..., 0]
    for optimizer in optimizers:
        optimizer.step()
    torch.testing.assert_close(optimizers[0].grad_norm, optimizers[1].grad_norm)
    assert_close(*optimizers)


def test_sparse_adam() -> None:
    def build() -> Any:
        return fusedopt.SparseAdam(make_params([(4, 3)]), lr=0.1)

    ours, expected = build(), build()
    ours.max_grad_norm = 0.5
    for i in range(3):
        for optimizer in (ours, expected):
            (param,) = params_of(optimizer)
            param.grad = sparse_grad(param, i)
        norm = param.grad.to_dense().norm()
        param.grad = param.grad * min(1.0, 0.5 / (norm.item() + 1e-6))
        ours.step()
        expected.step()
        torch.testing.assert_close(ours.grad_norm, norm)
    for p, q in zip(params_of(ours), params_of(expected), strict=True):
        torch.testing.assert_close(p, q)


@one_per_optimizer
def test_scaled_gradients_are_clipped_in_their_own_units(case: Case) -> None:
    ours, expected = clipped(case, make_params(), 0.5), clipped(case, make_params(), 0.5)
    for i in range(3):
        give_grads(params_of(ours), i)
        give_grads(params_of(expected), i)
        for p in params_of(ours):
            p.grad.mul_(1024)
        ours.grad_scale = torch.tensor(1024.0)
        ours.found_inf = torch.tensor(0.0)
        ours.step()
        expected.step()
        assert_identical(ours.grad_norm, expected.grad_norm)
    # The coefficient and the scale meet in one factor, which need not be that of the two apart.
    assert_close(ours, expected)
    assert_same(case, params_of(ours), params_of(expected))


def test_the_divisor_of_a_plan_stands_for_the_scale() -> None:
    (param,) = make_params([(3,)])
    optimizer = fusedopt.SGD([param], lr=1.0)
    before = param.detach().clone()
    optimizer.grad_scale = torch.tensor(1e6)  # type: ignore[attr-defined]
    param.grad = torch.ones(3)
    for divisor in (4.0, torch.tensor(4.0, dtype=torch.float64)):
        _C.Plan("sgd", {"decoupled_weight_decay": 0.0}).step(optimizer, divisor=divisor)
    assert_identical(param.detach(), before - 0.25 - 0.25)
