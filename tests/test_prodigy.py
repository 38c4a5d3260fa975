"""Prodigy: one distance for all groups, where it is kept, what belongs to it, and what cannot be together."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from support import assert_identical, outcome, save_and_load
from torch.nn import Parameter

import fusedopt

KEPT = ("d", "d_max", "d_numerator", "k")


def _params(*sizes: int, dtype: torch.dtype = torch.float32) -> list[Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [Parameter(torch.randn(size, generator=generator).to(dtype)) for size in sizes]


def _step(optimizer: Any, seed: int = 1) -> None:
    """Towards 3, with some noise."""
    generator = torch.Generator().manual_seed(seed)
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = (p.detach() - 3) + 0.1 * torch.randn(p.shape, generator=generator).to(p.dtype)
    optimizer.step()


def _kept(group: dict[str, Any]) -> dict[str, Any]:
    return {key: value.item() if isinstance(value := group[key], torch.Tensor) else value for key in KEPT}


def test_groups_hold_one_distance_which_grows_with_what_gradients_agree_on() -> None:
    a, b = _params(2000, 30)
    optimizer = fusedopt.Prodigy([{"params": [a], "weight_decay": 0.1}, {"params": [b], "eps": 1e-6}], d0=1e-3)
    seen = []
    for seed in range(6):
        _step(optimizer, seed)
        first, second = map(_kept, optimizer.param_groups)
        assert first == second
        seen.append(first)
    assert [one["k"] for one in seen] == [1, 2, 3, 4, 5, 6]
    # On a device they are tensors.
    if not isinstance(optimizer.param_groups[0]["k"], torch.Tensor):
        assert all(type(one["k"]) is int and type(one["d"]) is float for one in seen)
    assert seen[0]["d"] == 1e-3 < seen[1]["d"] < seen[5]["d"]


def test_sums_are_of_all_params() -> None:
    """As of one long param, but for how they round."""
    double = torch.float64
    parts, (whole,) = _params(700, 1500, 3, dtype=double), _params(2203, dtype=double)
    whole.data.copy_(torch.cat([p.detach() for p in parts]))
    ours, one = fusedopt.Prodigy(parts, d0=1e-2), fusedopt.Prodigy([whole], d0=1e-2)
    for _ in range(8):
        for p in parts:
            p.grad = p.detach() - 3
        whole.grad = whole.detach() - 3
        ours.step()
        one.step()
    distances = [float(optimizer.param_groups[0]["d"]) for optimizer in (ours, one)]
    assert distances[0] == pytest.approx(distances[1], rel=1e-12)
    torch.testing.assert_close(torch.cat([p.detach() for p in parts]), whole.detach(), rtol=1e-9, atol=1e-9)


def test_groups_without_a_learning_rate_stand_still_and_count_for_nothing() -> None:
    moving, still, alone = _params(300, 40, 300)
    alone.data.copy_(moving.detach())
    optimizer = fusedopt.Prodigy([{"params": [moving]}, {"params": [still], "lr": 0.0, "weight_decay": 0.1}], d0=1e-2)
    other = fusedopt.Prodigy([alone], d0=1e-2)
    before = still.detach().clone()
    for seed in range(5):
        _step(optimizer, seed)
        _step(other, seed)
    assert_identical(moving, alone)
    assert_identical(still.detach(), before)
    assert _kept(optimizer.param_groups[1]) == _kept(other.param_groups[0])


def test_without_a_gradient_but_zeros_nothing_happens() -> None:
    (param,) = _params(50)
    optimizer = fusedopt.Prodigy([param], weight_decay=0.1)
    before = param.detach().clone()
    for _ in range(2):
        param.grad = torch.zeros_like(param)
        optimizer.step()
    assert_identical(param.detach(), before)
    assert _kept(optimizer.param_groups[0]) == {"d": 1e-6, "d_max": 1e-6, "d_numerator": 0.0, "k": 0}


def test_a_new_group_has_the_distance_so_far() -> None:
    a, b = _params(300, 40)
    optimizer = fusedopt.Prodigy([a], d0=1e-2)
    for seed in range(4):
        _step(optimizer, seed)
    optimizer.add_param_group({"params": [b], "weight_decay": 0.1})
    assert _kept(optimizer.param_groups[1]) == _kept(optimizer.param_groups[0])
    _step(optimizer)
    assert optimizer.param_groups[0]["k"] == optimizer.param_groups[1]["k"] == 5


def test_a_file_goes_on_with_the_same_bits() -> None:
    params = _params(300, 40)
    optimizer = fusedopt.Prodigy(params, d0=1e-2)
    for seed in range(3):
        _step(optimizer, seed)
    twins = [Parameter(p.detach().clone()) for p in params]
    other = fusedopt.Prodigy(twins, d0=0.5)
    other.load_state_dict(save_and_load(optimizer.state_dict()))
    third = copy.deepcopy(optimizer)
    for seed in range(3, 6):
        for one in (optimizer, other, third):
            _step(one, seed)
    assert_identical(params, twins)
    assert_identical(params, third.param_groups[0]["params"])
    assert _kept(optimizer.param_groups[0]) == _kept(other.param_groups[0]) == _kept(third.param_groups[0])


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("d_coef", 2.0, r"param_groups\[0\]\['d_coef'\] is 1.0 and param_groups\[1\]\['d_coef'\] is 2.0; its sums are"),
        ("d", 1.0, r"param_groups\[0\]\['d'\] is 1e-06 and param_groups\[1\]\['d'\] is 1.0; .* give all the same$"),
        ("lr", 0.5, r"\['lr'\] is 0.5; .* give all the same, or 0 to those that are not to move"),
    ],
)
def test_groups_that_differ_are_refused(key: str, value: float, match: str) -> None:
    a, b = _params(30, 4)
    optimizer = fusedopt.Prodigy([{"params": [a]}, {"params": [b]}])
    optimizer.param_groups[1][key] = value
    before = a.detach().clone()
    with pytest.raises(ValueError, match=match):
        _step(optimizer)
    assert_identical(a.detach(), before)
    assert not optimizer.state


def test_a_param_listed_twice_is_refused() -> None:
    (param,) = _params(30)
    with pytest.warns(UserWarning, match="duplicate"):
        optimizer = fusedopt.Prodigy([param, param])
    with pytest.raises(RuntimeError, match="adds up over all params once a step, and it is listed twice; list it once"):
        _step(optimizer)


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"d0": 0.0}, "Invalid d0 value: 0.0"),
        ({"eps": 0.0}, "Invalid eps value: 0.0"),
        ({"d_coef": -1.0}, "Invalid d_coef value: -1.0"),
        ({"growth_rate": 0.0}, "Invalid growth_rate value: 0.0"),
        ({"beta3": 1.0}, "Invalid beta3 value: 1.0"),
    ],
)
def test_numbers_out_of_range(kwargs: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        fusedopt.Prodigy(_params(3), **kwargs)


def test_gradients_that_no_engine_reads_as_they_are() -> None:
    """Of one param: all are stepped, once, with their sums."""
    pairs = []
    for conjugate in (False, True):
        a, b = _params(300, dtype=torch.complex64)[0], _params(40)[0]
        optimizer = fusedopt.Prodigy([a, b], d0=1e-2)
        for t in range(3):
            grad = torch.full_like(a, complex(1, t + 1))
            a.grad = torch.conj_physical(grad).conj() if conjugate else grad
            b.grad = b.detach() - 3
            optimizer.step()
        pairs.append((a.detach(), b.detach(), _kept(optimizer.param_groups[0])))
    assert_identical(pairs[0][:2], pairs[1][:2])
    assert pairs[0][2] == pairs[1][2]
    assert pairs[0][2]["k"] == 3


def test_what_it_does_not_take_is_refused_before_anything_is_written() -> None:
    a, b = _params(30, 4)
    optimizer = fusedopt.Prodigy([a, b])
    a.grad, b.grad = torch.ones_like(a), torch.ones_like(b).to_sparse()
    kind, words = outcome(optimizer.step) or (None, "")
    assert (kind, "does not support sparse gradients" in words) == (RuntimeError, True)
    assert not optimizer.state
    assert optimizer.param_groups[0]["k"] == 0
