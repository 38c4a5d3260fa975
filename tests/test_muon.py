"""Muon against torch's: equal products make equal steps; batches, shapes, options, checkpoints, refusals."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from support import assert_identical
from torch import Tensor
from torch.nn import Parameter

import fusedopt
from fusedopt import _C

pytestmark = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has Muon from 2.9 on")

SHAPES = [(24, 16), (16, 24), (20, 20), (24, 16), (1, 5), (5, 1), (24, 16)]


def pair(dtype: torch.dtype = torch.float32, **kwargs: Any) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    values = [torch.randn(shape).to(dtype) for shape in SHAPES]
    return tuple(
        module.Muon([Parameter(v.clone()) for v in values], **{"lr": 0.02, **kwargs})
        for module in (fusedopt, torch.optim)
    )  # type: ignore[return-value]


def params_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def train(optimizer: torch.optim.Optimizer, steps: int, first: int = 0) -> None:
    for step in range(first, first + steps):
        generator = torch.Generator().manual_seed(step)
        for p in params_of(optimizer):
            p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
        optimizer.step()


OPTIONS: list[dict[str, Any]] = [
    {},
    {"nesterov": False},
    {"weight_decay": 0.0, "momentum": 0.5},
    {"adjust_lr_fn": "match_rms_adamw"},
    {"adjust_lr_fn": "original", "ns_steps": 3},
    {"ns_coefficients": (2.0, -1.5, 0.5), "eps": 1e-3},
    {"lr": torch.tensor(0.05)},
]


@pytest.fixture(params=[True, False], ids=["bfloat16-products", "float32-products"])
def products(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Products as on a processor with instructions for bfloat16, and as on one without."""
    monkeypatch.setattr(_C, "multiplies_bfloat16", lambda: request.param)


@pytest.mark.parametrize("kwargs", OPTIONS, ids=str)
@pytest.mark.usefixtures("products")
def test_steps_agree_with_torch(kwargs: dict[str, Any]) -> None:
    ours, torchs = pair(**kwargs)
    train(ours, 6)
    train(torchs, 6)
    # The products are in bfloat16 on both sides, and a library may add up a batch in another order than one matrix:
    # what an orthogonal matrix of entries below 1 differs by is some ulps of bfloat16, 2^-8, times the rate.
    lr = float(kwargs.get("lr", 0.02)) * (1.0 if kwargs.get("adjust_lr_fn") == "match_rms_adamw" else 2.3)
    for p, q in zip(params_of(ours), params_of(torchs), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=6 * lr * 2**-6)
        assert list(ours.state[p]) == list(torchs.state[q]) == ["momentum_buffer"]
        torch.testing.assert_close(ours.state[p]["momentum_buffer"], torchs.state[q]["momentum_buffer"])


@pytest.mark.usefixtures("products")
def test_a_step_is_orthogonal_and_of_the_rate() -> None:
    p = Parameter(torch.zeros(40, 30))
    ours = fusedopt.Muon([p], lr=1.0, weight_decay=0.0, momentum=0.0, ns_coefficients=(2.0, -1.5, 0.5), ns_steps=15)
    u, _, v = torch.linalg.svd(torch.randn(40, 30), full_matrices=False)
    p.grad = u @ torch.diag(torch.linspace(0.5, 3, 30)) @ v
    ours.step()
    exact = -((40 / 30) ** 0.5) * u @ v
    # These coefficients converge; torch's default ones leave singular values between some 0.7 and 1.2.
    assert torch.nn.functional.cosine_similarity(p.flatten(), exact.flatten(), dim=0) > 0.999
    torch.testing.assert_close(p.detach(), exact, rtol=0, atol=0.02)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_other_dtypes(dtype: torch.dtype) -> None:
    ours, torchs = pair(dtype)
    train(ours, 3)
    train(torchs, 3)
    for p, q in zip(params_of(ours), params_of(torchs), strict=True):
        assert p.dtype == ours.state[p]["momentum_buffer"].dtype == dtype
        torch.testing.assert_close(p, q, rtol=0.02, atol=0.02)


def test_strided_params_and_gradients() -> None:
    values = [torch.randn(24, 16), torch.randn(24, 16)]
    strided = [Parameter(values[0].t().contiguous().t()), Parameter(torch.randn(24, 32)[:, ::2])]
    with torch.no_grad():
        strided[1].copy_(values[1])
    plain = [Parameter(v.clone()) for v in values]
    results = []
    for params in (strided, plain):
        ours = fusedopt.Muon(params)
        for step in range(3):
            for p in params:
                grad = torch.randn(24, 16, generator=torch.Generator().manual_seed(step))
                p.grad = grad.t().contiguous().t() if params is strided else grad
            ours.step()
        results.append([p.detach().contiguous() for p in params])
    assert_identical(results[0], results[1])


def test_more_matrices_than_a_batch_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for size in (2**26, 2 * 2 * 24 * 16):  # all of a shape, two of the three
        monkeypatch.setattr("fusedopt.optimizers.muon._BATCH_BYTES", size)
        torch.manual_seed(0)
        ours, _ = pair()
        train(ours, 2)
        results.append([p.detach() for p in params_of(ours)])
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0.02 * 2**-6)


def test_params_without_gradient_wait_and_groups_keep_their_numbers() -> None:
    a, b = Parameter(torch.ones(4, 3)), Parameter(torch.ones(4, 3))
    ours = fusedopt.Muon([{"params": [a], "lr": 0.5}, {"params": [b], "lr": 0.25}], weight_decay=0.0)
    a.grad = torch.randn(4, 3)
    ours.step()
    assert b not in ours.state
    assert (b == 1).all()
    b.grad = a.grad.clone()
    change = 1 - a.detach().clone()
    ours.step()
    torch.testing.assert_close(1 - b.detach(), change / 2)


def test_checkpoints_both_ways() -> None:
    ours, torchs = pair()
    train(ours, 2)
    train(torchs, 2)
    with torch.no_grad():
        for p, q in zip(params_of(ours), params_of(torchs), strict=True):
            q.copy_(p)
    torchs.load_state_dict(copy.deepcopy(ours.state_dict()))
    assert_identical(torchs.state_dict(), ours.state_dict())
    train(ours, 2, first=2)
    ours.load_state_dict(copy.deepcopy(torchs.state_dict()))
    assert_identical(ours.state_dict(), torchs.state_dict())


def test_a_skipped_step_changes_nothing_and_the_scale_is_divided_out() -> None:
    p, q = Parameter(torch.ones(4, 3)), Parameter(torch.ones(4, 3))
    ours, plain = fusedopt.Muon([p]), fusedopt.Muon([q])
    q.grad = torch.randn(4, 3)
    p.grad = q.grad * 8
    ours.found_inf, ours.grad_scale = torch.tensor(1.0), torch.tensor(8.0)
    ours.step()
    assert ours.step_skipped
    assert not ours.state
    assert (p == 1).all()
    del ours.found_inf
    ours.step()
    plain.step()
    assert torch.equal(p, q)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="Muon only supports 2D parameters whereas we found a parameter with size"):
        fusedopt.Muon([torch.zeros(3)])
    ours, _ = pair()
    train(ours, 1)
    before = copy.deepcopy([[p.detach() for p in params_of(ours)], ours.state_dict()["state"]])
    last = params_of(ours)[-1]
    last.grad = torch.randn_like(last).to_sparse()
    with pytest.raises(RuntimeError, match="Muon does not support sparse gradients"):
        ours.step()
    last.grad = torch.randn_like(last)
    for options, text in [({"ns_steps": 100}, "less than 100"), ({"ns_coefficients": (1, 2)}, "exactly 3 values")]:
        kept = {key: ours.param_groups[0][key] for key in options}
        ours.param_groups[0].update(options)
        with pytest.raises(ValueError, match=text):
            ours.step()
        ours.param_groups[0].update(kept)
    assert_identical([[p.detach() for p in params_of(ours)], ours.state_dict()["state"]], before)


@pytest.mark.parametrize("shape", [(6,), (), (2, 3, 4), (0,)], ids=str)
@pytest.mark.parametrize("how", ["added", "listed", "reshaped"])
def test_a_param_that_is_no_matrix_is_refused_by_the_step(how: str, shape: tuple[int, ...]) -> None:
    """torch's constructor looks for them, and add_param_group, which it does not override, takes all."""
    for kwargs, message in (
        ({}, "Param gradient must be a 2D matrix"),
        ({"ema_decay": 0.5}, r"it has shape .*, and only matrices can be stepped; leave it to another optimizer"),
    ):
        optimizer = fusedopt.Muon([torch.ones(4, 3, requires_grad=True)], **kwargs)  # type: ignore[arg-type]
        param = Parameter(torch.ones((1, torch.Size(shape).numel()) if how == "reshaped" else shape))
        if how == "added":
            optimizer.add_param_group({"params": [param]})
        else:
            optimizer.param_groups[0]["params"].append(param)
        if how == "reshaped":
            train(optimizer, 2)
            param.grad, param.data = None, param.data.view(shape)
            optimizer.state[param]["momentum_buffer"] = torch.zeros(shape)
        before = [p.detach().clone() for p in params_of(optimizer)]
        with pytest.raises(RuntimeError if kwargs else ValueError, match=message):
            train(optimizer, 1)
        assert_identical([p.detach() for p in params_of(optimizer)], before)


def test_the_function_refuses_what_is_no_matrix() -> None:
    if not hasattr(fusedopt.functional, "muon"):
        pytest.skip("fusedopt.functional has no muon")
    lists: Any = [[torch.ones(6)] for _ in range(3)]
    numbers = {"lr": 0.1, "weight_decay": 0.0, "momentum": 0.9, "nesterov": True, "eps": 1e-7, "adjust_lr_fn": None}
    with pytest.raises(ValueError, match="Param gradient must be a 2D matrix"):
        fusedopt.functional.muon(*lists, ns_coefficients=(3.0, -4.0, 2.0), ns_steps=5, has_complex=False, **numbers)
