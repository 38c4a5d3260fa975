"""What may not happen while the params are their average: whatever the end of the context would undo."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from options import steps
from support import assert_identical, snapshot
from torch import nn

import fusedopt

INSIDE = r" inside ema_parameters\(\), where the params are their average .*; leave the context first"


class _Overriding(fusedopt.AdamW):
    def step(self, closure: Any = None, *, zero_grad: bool = False) -> Any:
        return super().step(closure, zero_grad=zero_grad)


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))


@pytest.mark.parametrize("make", [fusedopt.AdamW, _Overriding, fusedopt.Lion])
def test_a_step_is_refused(make: Any) -> None:
    model = _model()
    optimizer = steps(make(model.parameters(), ema_decay=0.5))
    before = snapshot(optimizer)
    called = []
    with optimizer.ema_parameters():
        for act in (optimizer.step, lambda: optimizer.step(lambda: called.append(1))):
            with pytest.raises(RuntimeError, match=r"step\(\) was called" + INSIDE):
                act()
    assert not called
    assert_identical(snapshot(optimizer), before)
    steps(optimizer, 1)


def test_a_step_in_backward_is_refused() -> None:
    model = _model()
    optimizer = steps(fusedopt.AdamW(model.parameters(), ema_decay=0.5))
    optimizer.zero_grad()
    before = snapshot(optimizer)
    handle = fusedopt.step_in_backward(model, optimizer)
    with optimizer.ema_parameters():
        with pytest.raises(RuntimeError, match="backward stepped a param" + INSIDE):
            model(torch.ones(3)).sum().backward()
        with torch.no_grad():
            model(torch.ones(3))
    assert_identical(snapshot(optimizer), before)
    optimizer.zero_grad()
    model(torch.ones(3)).sum().backward()
    assert int(optimizer.state[model[0].weight]["step"]) == 5
    handle.remove()


def test_another_context_is_refused() -> None:
    model = _model()
    optimizer = steps(fusedopt.AdamW(model.parameters(), ema_decay=0.5))
    raw = copy.deepcopy(model.state_dict())
    with optimizer.ema_parameters():
        average = copy.deepcopy(model.state_dict())
        with (
            pytest.raises(RuntimeError, match=r"ema_parameters\(\) was entered again" + INSIDE),
            optimizer.ema_parameters(),
        ):
            pass
        assert_identical(dict(model.state_dict()), dict(average))
    assert_identical(dict(model.state_dict()), dict(raw))


def test_checkpoints_are_written_as_outside_and_not_loaded() -> None:
    model = _model().to(torch.bfloat16)
    optimizer = steps(fusedopt.AdamW(model.parameters(), ema_decay=0.5, master_weights="remainder"))
    file = copy.deepcopy(optimizer.state_dict())
    with optimizer.ema_parameters():
        assert_identical(optimizer.state_dict(), file)
        with pytest.raises(RuntimeError, match=r"load_state_dict\(\) was called" + INSIDE):
            optimizer.load_state_dict(file)
    optimizer.load_state_dict(file)


def test_the_context_ends_when_its_block_raises() -> None:
    model = _model()
    optimizer = steps(fusedopt.AdamW(model.parameters(), ema_decay=0.5))
    before = snapshot(optimizer)
    with pytest.raises(ZeroDivisionError), optimizer.ema_parameters():
        raise ZeroDivisionError
    assert_identical(snapshot(optimizer), before)
    steps(optimizer, 1)


def test_copies_in_fewer_bits_are_of_the_average_too() -> None:
    """The model that computes with them is what is to be evaluated."""
    model = _model()
    optimizer = fusedopt.AdamW(model.parameters(), lr=0.1, ema_decay=0.5)
    first, *rest = params = list(model.parameters())
    copies = {p: torch.zeros_like(p, dtype=torch.bfloat16) for p in params}
    optimizer.copy_params_to(copies)
    for seed in range(3):
        for p in rest:
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(seed))
        optimizer.step()
    before = [copy.clone() for copy in copies.values()]
    with optimizer.ema_parameters():
        for p, own in copies.items():
            assert torch.equal(own, p.bfloat16())
        assert all(not torch.equal(copies[p], p_before) for p, p_before in zip(rest, before[1:], strict=True))
        assert torch.equal(copies[first], first.bfloat16())
        with pytest.raises(RuntimeError, match=r"copy_params_to\(\) was called" + INSIDE):
            optimizer.copy_params_to(copies)
    assert_identical(list(copies.values()), before)
