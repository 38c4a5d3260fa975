"""What rounds by chance in a backward pass draws as the usual loop does, whoever has part in a pass."""

from __future__ import annotations

import copy
from typing import Any

import torch
from support import assert_identical, save_and_load
from torch import Tensor, nn

import fusedopt


def model() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(*(nn.Linear(16, 16) for _ in range(3))).bfloat16()


def make(params: Any) -> Any:
    return fusedopt.AdamW(params, lr=0.01, rounding="stochastic")


def loss(net: nn.Module, step: int, parts: tuple[int, ...]) -> Tensor:
    value = torch.randn(8, 16, generator=torch.Generator().manual_seed(step)).bfloat16()
    for part in parts:
        value = net[part](value).tanh()  # type: ignore[index]
    return value.float().square().mean()


def train(net: nn.Module, optimizer: Any, first: int, last: int) -> None:
    """Of three layers one, in turn, has no part in a step, and all have in every fourth."""
    for step in range(first, last):
        parts = tuple(i for i in range(3) if step % 4 == 0 or i != step % 3)
        loss(net, step, parts).backward()
        optimizer.step()
        optimizer.zero_grad()


def test_params_that_have_no_part_in_a_pass() -> None:
    usual, inside = model(), model()
    optimizers = make(usual.parameters()), make(inside.parameters())
    train(usual, optimizers[0], 0, 9)
    with fusedopt.step_in_backward(inside, optimizers[1]):
        train(inside, optimizers[1], 0, 9)
    assert_identical(optimizers[1].state_dict()["rounding_draws"], optimizers[0].state_dict()["rounding_draws"])
    assert_identical(list(inside.parameters()), list(usual.parameters()))


def test_what_step_has_left_to_do() -> None:
    """Of params that were not released: two handles, and a layer that has none."""
    usual, inside = model(), model()
    optimizers = make(usual.parameters()), make(inside.parameters())
    train(usual, optimizers[0], 0, 5)
    first, second, _ = inside  # type: ignore[misc]
    with fusedopt.step_in_backward(first, optimizers[1]), fusedopt.step_in_backward(second, optimizers[1]):
        train(inside, optimizers[1], 0, 5)
    assert_identical(list(inside.parameters()), list(usual.parameters()))


def test_going_back_to_a_file() -> None:
    net = model()
    optimizer = make(net.parameters())
    with fusedopt.step_in_backward(net, optimizer):
        train(net, optimizer, 0, 3)
        weights, file = copy.deepcopy(net.state_dict()), save_and_load(optimizer.state_dict())
        train(net, optimizer, 3, 7)
        ends = [p.detach().clone() for p in net.parameters()]
        net.load_state_dict(weights)
        optimizer.load_state_dict(file)
        train(net, optimizer, 3, 7)
    assert_identical([p.detach() for p in net.parameters()], ends)
