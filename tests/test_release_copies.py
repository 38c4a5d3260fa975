"""Params that are stepped in backward and copied out in fewer bits."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import Tensor, nn

import fusedopt


def copies_of(model: nn.Module) -> dict[Tensor, Tensor]:
    return {p: torch.zeros_like(p, dtype=torch.bfloat16) for p in model.parameters()}


def backward(model: nn.Module) -> None:
    model(torch.ones(2, 3)).square().sum().backward()


@pytest.mark.parametrize("when", ["before the release", "after it", "in the middle of training"])
def test_updates_in_backward_write_copies(when: str) -> None:
    model = nn.Linear(3, 2)
    optimizer, copies = fusedopt.AdamW(model.parameters(), lr=0.1), copies_of(model)
    if when == "before the release":
        optimizer.copy_params_to(copies)
    with fusedopt.step_in_backward(model, optimizer):
        if when == "in the middle of training":
            backward(model)
        if when != "before the release":
            optimizer.copy_params_to(copies)
        for _ in range(2):
            before = {p: copy.clone() for p, copy in copies.items()}
            backward(model)
            for p, copy in copies.items():
                assert torch.equal(copy, p.bfloat16())
                assert not torch.equal(copy, before[p])


def test_draws_go_on_where_copies_came() -> None:
    ends = []
    for with_copies in (False, True):
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        optimizer = fusedopt.AdamW(model.parameters(), lr=0.1, state_dtype="bfloat16")
        fusedopt.step_in_backward(model, optimizer)
        for step in range(4):
            if step == 2 and with_copies:
                optimizer.copy_params_to(copies_of(model))
            backward(model)
        ends.append([*model.parameters(), *(optimizer.state[p]["exp_avg"] for p in model.parameters())])
    for mine, other in zip(*ends, strict=True):
        assert torch.equal(mine, other)


def test_params_go_with_their_optimizer() -> None:
    """Their hooks are theirs, and what knows of the copies knows of them."""
    model = nn.Linear(3, 2)
    optimizer = fusedopt.AdamW(model.parameters(), lr=0.1)
    optimizer.copy_params_to(copies_of(model))
    handle = fusedopt.step_in_backward(model, optimizer)
    backward(model)
    alive = [weakref.ref(x) for x in (optimizer, *model.parameters())]
    del model, optimizer, handle
    assert [x() for x in alive] == [None] * len(alive)
