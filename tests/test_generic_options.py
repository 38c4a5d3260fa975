"""What GenericOptimizer does around a rule in Python: clipping, master weights, averages, cleared gradients."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from options import same
from prototypes import Adam
from support import assert_identical, give_grads, make_params, params_of, save_and_load, snapshot, train
from torch import Tensor
from torch.nn import Parameter

import fusedopt


def halves(**options: Any) -> Adam:
    return Adam(make_params(dtype=torch.bfloat16), lr=0.01, **options)


def give_halves(optimizer: torch.optim.Optimizer, seed: int) -> None:
    for i, p in enumerate(params_of(optimizer)):
        grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(100 * seed + i)).bfloat16()
        p.grad = grad.to(p.dtype)


def test_a_master_is_the_param_of_a_run_in_float32() -> None:
    exact = halves(master_weights="float32")
    plain = Adam([Parameter(p.detach().float()) for p in params_of(exact)], lr=0.01)
    for seed in range(5):
        for optimizer in (exact, plain):
            give_halves(optimizer, seed)
            optimizer.step()
    for p, q in zip(params_of(exact), params_of(plain), strict=True):
        assert same(exact.state[p]["master"], q.detach())
        assert same(p.detach(), q.detach().bfloat16())
        assert exact.state[p]["exp_avg"].dtype == torch.float32


def test_params_in_full_precision_have_no_master() -> None:
    ours, plain = Adam(make_params(), lr=0.01, master_weights="float32"), Adam(make_params(), lr=0.01)
    train(ours, 2)
    train(plain, 2)
    assert_identical(snapshot(ours), snapshot(plain))


def test_an_edited_param_goes_on_from_the_edit() -> None:
    optimizer = halves(master_weights="float32")
    give_halves(optimizer, 0)
    optimizer.step()
    param = params_of(optimizer)[0]
    with torch.no_grad():
        param.zero_()
    give_halves(optimizer, 1)
    optimizer.step()
    assert param.abs().max() < 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64, torch.bfloat16], ids=str)
def test_the_average_is_of_every_step(dtype: torch.dtype) -> None:
    optimizer = Adam(make_params(dtype=dtype), lr=0.1, ema_decay=0.75)
    expected: list[Tensor] = []
    for seed in range(4):
        train(optimizer, 1, first=seed)
        now = [p.detach().float() if dtype == torch.bfloat16 else p.detach().clone() for p in params_of(optimizer)]
        expected = [a.lerp(b, 0.25) for a, b in zip(expected, now, strict=True)] if expected else now
    for p, average in zip(params_of(optimizer), expected, strict=True):
        torch.testing.assert_close(optimizer.state[p]["ema"], average)
    raw = [p.detach().clone() for p in params_of(optimizer)]
    with optimizer.ema_parameters():
        for p, average in zip(params_of(optimizer), expected, strict=True):
            torch.testing.assert_close(p.detach(), average.to(dtype))
        with pytest.raises(RuntimeError, match=r"step\(\) was called inside ema_parameters"):
            optimizer.step()
    assert all(same(p.detach(), value) for p, value in zip(params_of(optimizer), raw, strict=True))


@pytest.mark.parametrize("scale", [None, 8.0])
def test_clipping_is_that_of_clip_grad_norm(scale: float | None) -> None:
    ours, expected = (Adam(make_params(), lr=0.1) for _ in range(2))
    ours.max_grad_norm = 0.5
    for seed in range(3):
        give_grads(params_of(ours), seed)
        give_grads(params_of(expected), seed)
        if scale is not None:
            ours.grad_scale = torch.tensor(scale)  # type: ignore[attr-defined]
            for p in params_of(ours):
                assert p.grad is not None
                p.grad.mul_(scale)
        ours.step()
        norm = torch.nn.utils.clip_grad_norm_(params_of(expected), 0.5)
        expected.step()
        torch.testing.assert_close(ours.grad_norm, norm)
    for p, q in zip(params_of(ours), params_of(expected), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_gradients_are_cleared() -> None:
    ours, expected = (Adam(make_params(), lr=0.1) for _ in range(2))
    for optimizer in (ours, expected):
        give_grads(params_of(optimizer), 0)
    ours.step(zero_grad=True)
    expected.step()
    assert_identical(snapshot(ours), snapshot(expected))
    assert not any(p.grad.any() for p in params_of(ours) if p.grad is not None)


def test_all_of_it_survives_a_checkpoint_and_a_copy() -> None:
    def made() -> Adam:
        return halves(master_weights="float32", ema_decay=0.5, max_grad_norm=1.0)

    optimizer = made()
    for seed in range(2):
        give_halves(optimizer, seed)
        optimizer.step()
    resumed = made()
    for mine, theirs in zip(params_of(resumed), params_of(optimizer), strict=True):
        mine.data.copy_(theirs.data)
    resumed.load_state_dict(save_and_load(optimizer.state_dict()))
    copied = copy.deepcopy(optimizer)
    for one in (optimizer, resumed, copied):
        give_halves(one, 2)
        one.step()
    assert_identical(snapshot(resumed), snapshot(optimizer))
    assert_identical(snapshot(copied), snapshot(optimizer))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"master_weights": "remainder"}, "Invalid master_weights: 'remainder'; use None or 'float32'"),
        ({"ema_decay": 2.0}, r"Invalid ema_decay: 2\.0"),
        ({"max_grad_norm": -1.0}, r"max_grad_norm is -1\.0; give a number of at least 0, or None"),
    ],
    ids=str,
)
def test_bad_options(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Adam(make_params(), **options)
    assert issubclass(Adam, fusedopt.GenericOptimizer)


class KeepsOne(fusedopt.GenericOptimizer):
    """A state by a name of the user's choice, made before the first step or in it."""

    def __init__(self, params: Any, key: str, late: bool, **options: Any) -> None:
        self.key, self.late = key, late
        super().__init__(params, {"lr": 0.1}, **options)

    def init_state(self, state: dict[str, Any], group: dict[str, Any], param: Tensor) -> None:
        if not self.late:
            state[self.key] = torch.zeros_like(param)

    def step_param(self, state: dict[str, Any], group: dict[str, Any], grad: Tensor, param: Tensor) -> None:
        state.setdefault(self.key, torch.zeros_like(param)).add_(grad)
        param.sub_(state[self.key], alpha=group["lr"])


@pytest.mark.parametrize(
    ("key", "late", "options"),
    [
        ("ema", False, {"ema_decay": 0.9}),
        ("ema", True, {"ema_decay": 0.9}),
        ("master", False, {"master_weights": "float32"}),
    ],
    ids=str,
)
def test_a_state_by_the_name_of_an_options_is_refused(key: str, late: bool, options: dict[str, Any]) -> None:
    """It would be taken for the option's own, and both be wrong."""
    optimizer = KeepsOne([Parameter(torch.ones(2, dtype=torch.bfloat16))], key, late, **options)
    give_halves(optimizer, 0)
    with pytest.raises(ValueError, match=rf"KeepsOne keeps '{key}' in a param's state, where {next(iter(options))}"):
        optimizer.step()


@pytest.mark.parametrize("key", ["ema", "master"])
def test_without_the_option_the_name_is_free(key: str) -> None:
    param = Parameter(torch.ones(2, dtype=torch.bfloat16))
    optimizer = KeepsOne([param], key, late=False)
    for seed in range(2):
        give_halves(optimizer, seed)
        optimizer.step()
    assert list(optimizer.state[param]) == ["step", key]


def test_a_master_begins_where_the_file_has_none() -> None:
    plain = halves()
    give_halves(plain, 0)
    plain.step()
    exact = halves(master_weights="float32")
    for mine, theirs in zip(params_of(exact), params_of(plain), strict=True):
        mine.data.copy_(theirs.data)
    exact.load_state_dict(save_and_load(plain.state_dict()))
    wide = Adam([Parameter(p.detach().float()) for p in params_of(exact)], lr=0.01)
    wide.load_state_dict(save_and_load(plain.state_dict()))
    for optimizer in (exact, wide):
        give_halves(optimizer, 1)
        optimizer.step()
    for p, q in zip(params_of(exact), params_of(wide), strict=True):
        assert same(exact.state[p]["master"], q.detach())
        assert exact.state[p]["exp_avg"].dtype == torch.float32
