"""torchrec's keyed optimizers around ours: states by the params' names, several of them as one."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper

import fusedopt


def _made(package: Any) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 1))
    first, second = (dict(layer.named_parameters()) for layer in model)
    dense = KeyedOptimizerWrapper(first, lambda params: package.AdamW(params, lr=0.01))
    other = KeyedOptimizerWrapper(second, lambda params: package.Adagrad(params, lr=0.1))
    return model, CombinedOptimizer([("first", dense), ("second", other)])


def _step(model: nn.Module, optimizer: Any, count: int, first: int = 0) -> None:
    for i in range(first, first + count):
        optimizer.zero_grad()
        model(torch.randn(4, 6, generator=torch.Generator().manual_seed(i))).square().mean().backward()
        optimizer.step()


@pytest.mark.slot("`KeyedOptimizerWrapper`, `CombinedOptimizer`", "torchrec")
def test_steps_and_resumes_by_names() -> None:
    ends = []
    for package in (fusedopt, torch.optim):
        model, optimizer = _made(package)
        _step(model, optimizer, 3)
        saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
        assert {"exp_avg", "exp_avg_sq", "step"} == set(saved[1]["state"]["first.weight"])
        _step(model, optimizer, 2, first=3)
        others, resumed = _made(package)
        _step(others, resumed, 1)  # it loads into states that are there
        others.load_state_dict(saved[0])
        resumed.load_state_dict(saved[1])
        _step(others, resumed, 2, first=3)
        for p, q in zip(model.parameters(), others.parameters(), strict=True):
            assert torch.equal(p, q)
        ends.append(list(model.parameters()))
    torch.testing.assert_close(*ends)
