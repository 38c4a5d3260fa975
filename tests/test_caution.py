"""Cautious steps: what moves, by how much, and that each group has it for itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support import assert_identical, save_and_load
from torch.nn import Parameter

import fusedopt

CAUTIOUS = [fusedopt.Adam, fusedopt.AdamW, fusedopt.Lion, fusedopt.Adan, fusedopt.LAMB]
each_class = pytest.mark.parametrize("cls", CAUTIOUS, ids=lambda cls: cls.__name__)


def _step(optimizer: Any, *grads: list[float]) -> None:
    for group, grad in zip(optimizer.param_groups, grads, strict=True):
        (param,) = group["params"]
        param.grad = torch.tensor(grad, dtype=param.dtype)
    optimizer.step()


def _moved(cls: Any, grads: list[list[float]], **kwargs: Any) -> torch.Tensor:
    """By the last of these gradients."""
    param = Parameter(torch.zeros(len(grads[0])))
    optimizer = cls([param], lr=0.5, weight_decay=0.0, **kwargs)
    for grad in grads:
        before = param.detach().clone()
        _step(optimizer, grad)
    return param.detach() - before


@each_class
def test_what_goes_against_its_gradient_stays_and_the_rest_goes_further(cls: Any) -> None:
    grads = [[1.0, 1.0, 1.0, 1.0], [0.5, -0.001, 0.25, 0.0]]
    plain, cautious = _moved(cls, grads), _moved(cls, grads, caution=True)
    if cls is fusedopt.Adan:
        # What is left is the differences' part of the step, up the gradient.
        assert (cautious[[1, 3]] > plain[[1, 3]]).all()
        assert (cautious[[0, 2]] < plain[[0, 2]]).all()
        return
    assert torch.equal(cautious[[1, 3]], torch.zeros(2))
    torch.testing.assert_close(cautious[[0, 2]], 2 * plain[[0, 2]], rtol=1e-6, atol=0)


@each_class
def test_steps_grow_at_most_a_thousand_times(cls: Any) -> None:
    first, second = [[1.0] + [1.0] * 1999, [0.5] + [-0.001] * 1999]
    if cls is fusedopt.Adan:
        pytest.skip("its step has another part")
    plain, cautious = _moved(cls, [first, second]), _moved(cls, [first, second], caution=True)
    torch.testing.assert_close(cautious[0], 1000 * plain[0], rtol=1e-5, atol=0)
    assert not cautious[1:].any()


def test_signs_agree_where_the_product_of_average_and_gradient_is_too_small_for_a_float() -> None:
    assert _moved(fusedopt.AdamW, [[1e-30, -1e-30]], eps=0.0, caution=True).sign().tolist() == [-1.0, 1.0]


@each_class
def test_each_group_has_it_for_itself(cls: Any) -> None:
    def make(*cautions: bool) -> Any:
        params = [Parameter(torch.linspace(-1, 1, 3000)) for _ in cautions]
        groups = [{"params": [p], "caution": caution} for p, caution in zip(params, cautions, strict=True)]
        return cls(groups, lr=0.1)

    both, plain, cautious = make(False, True), make(False), make(True)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        grads = [torch.randn(3000, generator=generator).tolist() for _ in range(2)]
        _step(both, *grads)
        _step(plain, grads[0])
        _step(cautious, grads[1])
    params = [group["params"][0] for optimizer in (both, plain, cautious) for group in optimizer.param_groups]
    assert_identical(params[:2], params[2:])
    assert not torch.equal(params[0], params[1])


@each_class
def test_it_may_change_between_steps(cls: Any) -> None:
    """To the bits of an optimizer that loads the state of before."""
    param = Parameter(torch.linspace(-1, 1, 3000))
    optimizer = cls([param], lr=0.1)
    grads = torch.randn(3, 3000, generator=torch.Generator().manual_seed(0)).tolist()
    _step(optimizer, grads[0])
    other = cls([Parameter(param.detach().clone())], lr=0.1, caution=True)
    file = save_and_load(optimizer.state_dict())
    file["param_groups"][0]["caution"] = True
    other.load_state_dict(file)
    optimizer.param_groups[0]["caution"] = True
    for grad in grads[1:]:
        _step(optimizer, grad)
        _step(other, grad)
    assert_identical(param, other.param_groups[0]["params"][0])
    plain = cls([Parameter(torch.linspace(-1, 1, 3000))], lr=0.1)
    for grad in grads:
        _step(plain, grad)
    assert not torch.equal(param, plain.param_groups[0]["params"][0])
