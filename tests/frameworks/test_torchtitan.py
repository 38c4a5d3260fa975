"""torchtitan's container of optimizers: its factories are by name, and a subclass adds ours."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torchtitan.components.optimizer import OptimizersContainer, ParamGroupConfig

import fusedopt


class Ours(OptimizersContainer):  # type: ignore[type-arg, misc]
    @staticmethod
    def _resolve_optimizer_factory(name: str) -> Callable[..., torch.optim.Optimizer]:
        factory: Callable[..., torch.optim.Optimizer] = getattr(fusedopt, name)
        return factory


def _made(cls: Any, **options: Any) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 1))
    groups = [
        ParamGroupConfig(pattern="bias$", optimizer_name="AdamW", optimizer_kwargs={"lr": 0.02, "weight_decay": 0.0}),
        ParamGroupConfig(pattern=".*", optimizer_name="AdamW", optimizer_kwargs={"lr": 0.01, **options}),
    ]
    return model, cls(cls.Config(param_groups=groups, implementation="for-loop"), model_parts=[model])


def _step(model: nn.Module, container: Any, count: int, first: int = 0) -> None:
    for i in range(first, first + count):
        x = torch.randn(4, 6, generator=torch.Generator().manual_seed(i))
        model(x).square().mean().backward()
        container.step()
        container.zero_grad()


@pytest.mark.slot(
    "`OptimizersContainer`: steps, states by names",
    "torchtitan",
    comes_to="works in a subclass that names the class: its factories are a fixed list",
)
@pytest.mark.parametrize("cls", [OptimizersContainer, Ours])
def test_steps_and_resumes(cls: Any) -> None:
    model, container = _made(cls)
    _step(model, container, 3)
    saved = copy.deepcopy((model.state_dict(), container.state_dict()))
    _step(model, container, 2, first=3)
    others, resumed = _made(cls)
    others.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    _step(others, resumed, 2, first=3)
    for p, q in zip(model.parameters(), others.parameters(), strict=True):
        assert torch.equal(p, q)
    reference, its = _made(OptimizersContainer)
    _step(reference, its, 5)
    for p, q in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p, q)


@pytest.mark.slot("`OptimizersContainer`: torch's files and ours", "torchtitan")
def test_its_files_are_torchs_and_ours() -> None:
    ends = []
    for saves, resumes in ((Ours, OptimizersContainer), (OptimizersContainer, Ours)):
        model, container = _made(saves)
        _step(model, container, 3)
        others, resumed = _made(resumes)
        others.load_state_dict(copy.deepcopy(model.state_dict()))
        resumed.load_state_dict(copy.deepcopy(container.state_dict()))
        _step(others, resumed, 2, first=3)
        ends.append(list(others.parameters()))
    torch.testing.assert_close(*ends)
