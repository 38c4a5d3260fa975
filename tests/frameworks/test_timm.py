"""timm's factory: it makes optimizers by the names of its registry, and ours once they are registered there."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from timm.optim._optim_factory import OptimInfo, create_optimizer_v2, default_registry
from torch import nn

import fusedopt

NAMES = {"fusedadamw": "AdamW", "fusedlion": "Lion"}


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    for name, cls in NAMES.items():
        default_registry.register(OptimInfo(name, getattr(fusedopt, cls), has_eps=cls == "AdamW", has_betas=True))
    yield
    for name in NAMES:
        del default_registry._optimizers[name]


def _trained(opt: str, count: int = 4, **kwargs: Any) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 1))
    optimizer = create_optimizer_v2(model, opt, lr=0.01, weight_decay=0.1, **kwargs)
    _step(model, optimizer, count)
    return model, optimizer


def _step(model: nn.Module, optimizer: Any, count: int, first: int = 0) -> None:
    for i in range(first, first + count):
        optimizer.zero_grad()
        model(torch.randn(4, 6, generator=torch.Generator().manual_seed(i))).square().mean().backward()
        optimizer.step()


@pytest.mark.slot(
    "`create_optimizer_v2` by name",
    "timm",
    comes_to="works once the class is in its registry, by `register(OptimInfo(...))`",
)
@pytest.mark.parametrize(
    ("ours", "theirs", "kwargs"),
    [("fusedadamw", "adamw", {}), ("fusedlion", "lion", {}), ("fusedadamw", "adamw", {"betas": (0.8, 0.9)})],
)
def test_by_name(ours: str, theirs: str, kwargs: dict[str, Any]) -> None:
    """Groups with and without decay, as it makes them; the numbers of what it would have made itself."""
    mine, its = _trained(ours, **kwargs), _trained(theirs, **kwargs)
    assert type(mine[1]) is getattr(fusedopt, NAMES[ours])
    assert [group["weight_decay"] for group in mine[1].param_groups] == [0.0, 0.1]
    for p, q in zip(mine[0].parameters(), its[0].parameters(), strict=True):
        torch.testing.assert_close(p, q)


@pytest.mark.slot(
    "`create_optimizer_v2` by name",
    "timm",
    comes_to="works once the class is in its registry, by `register(OptimInfo(...))`",
)
def test_options_are_passed_on() -> None:
    model, optimizer = _trained("fusedadamw", 2, ema_decay=0.9, max_grad_norm=0.5)
    file = copy.deepcopy(optimizer.state_dict())
    assert optimizer.max_grad_norm == 0.5
    assert all("ema" in state for state in file["state"].values())
    again, resumed = _trained("fusedadamw", 0, ema_decay=0.9, max_grad_norm=0.5)
    again.load_state_dict(model.state_dict())
    resumed.load_state_dict(file)
    for its in ((model, optimizer), (again, resumed)):
        _step(*its, 2, first=2)
    for p, q in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.slot(
    "`create_optimizer_v2` with a callable",
    "timm",
    comes_to="timm refuses it, torch's class as well: it takes names alone",
)
@pytest.mark.parametrize("opt", [fusedopt.AdamW, torch.optim.AdamW])
def test_a_callable_is_no_name(opt: Any) -> None:
    with pytest.raises(AttributeError, match="lower"):
        create_optimizer_v2(nn.Linear(2, 1), opt, lr=0.01)
