"""SophiaG: what update_hessian() takes, what it leaves, and steps by what it has taken."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from support import EMULATED, assert_identical, save_and_load, snapshot
from torch import Tensor
from torch.nn import Parameter

import fusedopt

BETAS = (0.6, 0.8)


def _params(*sizes: Any, dtype: torch.dtype = torch.float32) -> list[Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [Parameter(torch.randn(size, generator=generator).to(dtype)) for size in sizes]


def _give(params: list[Parameter], seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
    return [p.grad for p in params if p.grad is not None]


def _estimate(optimizer: Any, params: list[Parameter], seed: int) -> list[Tensor]:
    grads = _give(params, seed)
    optimizer.update_hessian()
    return grads


def _step(optimizer: Any, params: list[Parameter], seed: int) -> list[Tensor]:
    grads = _give(params, seed)
    optimizer.step()
    return grads


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_steps_are_the_papers(dtype: torch.dtype) -> None:
    """Against its formula in float64, with some elements clipped and some not."""
    params = _params((40, 30), 7, 5000, dtype=dtype)
    optimizer = fusedopt.SophiaG(params, lr=0.01, betas=BETAS, rho=0.5, weight_decay=0.1, bs=3.0, maximize=True)
    exact = [p.detach().double() for p in params]
    m, h = [torch.zeros_like(p) for p in exact], [torch.zeros_like(p) for p in exact]
    clipped = []
    for step in range(12):
        if step % 3 == 1:
            for its, g in zip(h, _estimate(optimizer, params, 50 + step), strict=True):
                its.mul_(0.8).add_(0.2 * g.double() ** 2)
        for p, average, diagonal, g in zip(exact, m, h, _step(optimizer, params, step), strict=True):
            average.mul_(0.6).sub_(0.4 * g.double())
            ratio = average.abs() / (0.5 * 3 * diagonal + 1e-15)
            clipped.append((ratio > 1).double().mean().item())
            p.mul_(1 - 0.01 * 0.1).sub_(0.01 * average.sign() * ratio.clamp(max=1))
    assert 0.2 < sum(clipped[9:]) / len(clipped[9:]) < 0.8
    places = {torch.float32: 3e-6, torch.float64: 1e-14}[dtype]
    for p, its, average, diagonal in zip(params, exact, m, h, strict=True):
        torch.testing.assert_close(p.detach().double(), its, rtol=places, atol=places)
        state = optimizer.state[p]
        torch.testing.assert_close(state["exp_avg"].double(), average, rtol=places, atol=places)
        torch.testing.assert_close(state["hessian"].double(), diagonal, rtol=places, atol=places)
        assert state["step"] == 12


# Ten steps of sophia-opt 0.2.2, the authors' sophia.py, from START, with estimates before the second, fifth and eighth.
START = [1.0, -0.5, 0.25, 0.0, 2.0]
RECORDED = [0.9791782953769385, -0.517180316674013, 0.22749317066597116, -0.009903018650610187, 1.9900093317907845]


def test_steps_are_the_authors() -> None:
    param = Parameter(torch.tensor(START, dtype=torch.float64))
    optimizer = fusedopt.SophiaG([param], lr=0.01, weight_decay=0.1, betas=(0.9, 0.99))

    def give(t: int) -> None:
        param.grad = torch.tensor([math.sin(3 * t + i) * 10 ** (i - 2) for i in range(5)], dtype=torch.float64)

    for t in range(10):
        if t % 3 == 1:
            give(t + 100)
            optimizer.update_hessian()
        give(t)
        optimizer.step()
    assert param.tolist() == pytest.approx(RECORDED, rel=1e-13, abs=1e-14)


OPTIONS: dict[str, tuple[torch.dtype, dict[str, Any]]] = {
    "plain": (torch.float32, {}),
    "int8": (torch.float32, {"state_dtype": {"exp_avg": "int8"}}),
    "half states": (torch.float32, {"state_dtype": "bfloat16", "rounding": "stochastic"}),
    "master": (torch.bfloat16, {"master_weights": "float32", "rounding": "stochastic"}),
    "remainder": (torch.bfloat16, {"master_weights": "remainder"}),
    "kahan": (torch.bfloat16, {"rounding": "kahan"}),
    "average": (torch.float32, {"ema_decay": 0.9}),
    "clipped": (torch.float32, {"max_grad_norm": 0.5}),
}


@pytest.mark.parametrize(("dtype", "options"), OPTIONS.values(), ids=OPTIONS)
def test_an_estimate_changes_the_hessian_alone(dtype: torch.dtype, options: dict[str, Any]) -> None:
    params = _params((64, 100), 5, dtype=dtype)
    optimizer = fusedopt.SophiaG(params, lr=0.01, betas=BETAS, **options)
    _step(optimizer, params, 1)
    groups, before = [dict(group) for group in optimizer.param_groups], snapshot(optimizer)
    kept = {p: {key: copy.deepcopy(value) for key, value in s.items()} for p, s in optimizer.state.items()}
    norm = optimizer.grad_norm
    grads = _estimate(optimizer, params, 2)
    for at, (p, g) in enumerate(zip(params, grads, strict=True)):
        for key, value in optimizer.state[p].items():
            if "hessian" not in key and key != "compensation":
                assert_identical(value, kept[p][key])
        assert_identical(p.grad, g)
        wanted = 0.2 * g.float() ** 2
        found = optimizer.state_dict()["state"][at]["hessian"].float()
        torch.testing.assert_close(found, wanted, rtol=2**-7, atol=1e-8)
    assert [dict(group) for group in optimizer.param_groups] == groups
    assert optimizer.grad_norm is norm
    if options.get("rounding") == "kahan":
        # Of two that are as near the other may be taken.
        for p, was in zip(params, before[0], strict=True):
            lacked = kept[p]["compensation"].float()
            assert_identical(p.float() + optimizer.state[p]["compensation"].float(), was.float() + lacked)
    else:
        assert_identical(snapshot(optimizer)[0], before[0])
    # Steps go on, with schedulers and counters where they were.
    _step(optimizer, params, 3)
    assert {float(s["step"]) for s in optimizer.state.values()} == {2.0}


def test_an_estimate_may_come_first_and_without_gradients() -> None:
    params = _params(9, 4)
    first, late = fusedopt.SophiaG(params, betas=BETAS), params[1]
    first.update_hessian()
    assert not first.state
    params[0].grad = torch.ones(9)
    first.update_hessian()
    assert late not in first.state
    assert {key: value.flatten()[0].item() for key, value in first.state[params[0]].items()} == {
        "step": 0.0,
        "exp_avg": 0.0,
        "hessian": pytest.approx(0.2),
    }


def test_a_checkpoint_between_estimate_and_step_goes_on() -> None:
    params = _params((30, 20), 5)
    whole = fusedopt.SophiaG(params, lr=0.01, betas=BETAS, bs=2.0)
    _estimate(whole, params, 1)
    others = [Parameter(p.detach().clone()) for p in params]
    other = fusedopt.SophiaG(others)
    other.load_state_dict(save_and_load(whole.state_dict()))
    assert other.param_groups[0]["bs"] == 2.0
    for seed in (2, 3):
        _step(whole, params, seed)
        _step(other, others, seed)
        _estimate(whole, params, 10 + seed)
        _estimate(copy.deepcopy(other), others, 99)
        _estimate(other, others, 10 + seed)
    assert_identical(snapshot(other), snapshot(whole))


def test_a_resumed_run_draws_as_one_that_goes_on() -> None:
    """Estimates round by chance, too, and a file has one number of draws."""
    options: dict[str, Any] = {"lr": 0.01, "betas": BETAS, "rounding": "stochastic"}

    def run(optimizer: fusedopt.SophiaG, params: list[Parameter], seeds: range) -> None:
        for seed in seeds:
            _step(optimizer, params, seed)
            if seed % 2:
                _estimate(optimizer, params, 10 + seed)

    params = _params((30, 20), 5, dtype=torch.bfloat16)
    whole = fusedopt.SophiaG(params, **options)
    run(whole, params, range(6))
    others = [Parameter(p.detach().clone()) for p in params]
    resumed = fusedopt.SophiaG(others, **options)
    resumed.load_state_dict(save_and_load(whole.state_dict()))
    copied = copy.deepcopy((whole, params))
    run(whole, params, range(6, 12))
    for optimizer, its in ((resumed, others), copied):
        run(optimizer, its, range(6, 12))
        assert_identical(snapshot(optimizer), snapshot(whole))


def test_hooks_and_schedulers_count_steps_alone() -> None:
    params = _params(5)
    optimizer = fusedopt.SophiaG(params, lr=0.5)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    seen: list[int] = []
    optimizer.register_step_post_hook(lambda *_: seen.append(1))
    _step(optimizer, params, 1)
    _estimate(optimizer, params, 2)
    schedule.step()
    _estimate(optimizer, params, 3)
    assert seen == [1]
    assert "estimates" not in optimizer.param_groups[0]
    assert "estimates" not in optimizer.state_dict()["param_groups"][0]


def test_an_average_in_the_params_place_is_no_place_for_an_estimate() -> None:
    params = _params(5)
    optimizer = fusedopt.SophiaG(params, ema_decay=0.5)
    _step(optimizer, params, 1)
    with optimizer.ema_parameters(), pytest.raises(RuntimeError, match=r"update_hessian\(\) was called inside ema_par"):
        optimizer.update_hessian()


def test_a_gradient_that_does_not_fit_is_refused_and_leaves_all_as_it_was() -> None:
    params = _params(5)
    optimizer = fusedopt.SophiaG(params)
    _step(optimizer, params, 1)
    before = snapshot(optimizer)
    params[0].grad = torch.sparse_coo_tensor([[1]], [1.0], (5,))
    with pytest.raises(RuntimeError, match="SophiaG does not support sparse gradients"):
        optimizer.update_hessian()
    assert_identical(snapshot(optimizer), before)
    _step(optimizer, params, 1)
    assert {float(s["step"]) for s in optimizer.state.values()} == {2.0}


@pytest.mark.skipif(EMULATED, reason="inductor would trace the emulated device")
def test_a_compiled_loop_estimates_as_it_is() -> None:
    params = _params(5)
    optimizer = fusedopt.SophiaG(params, betas=BETAS)
    torch.compile(lambda: optimizer.update_hessian(), backend="eager")()
    _give(params, 1)
    torch.compile(lambda: optimizer.update_hessian(), backend="eager")()
    assert "hessian" in optimizer.state[params[0]]


def test_the_number_of_draws_is_a_number() -> None:
    with pytest.raises(ValueError, match=r"Invalid bs value: -1\.0"):
        fusedopt.SophiaG(_params(2), bs=-1.0)
    with pytest.raises(ValueError, match=r"Invalid rho value: -0\.1"):
        fusedopt.SophiaG(_params(2), rho=-0.1)
