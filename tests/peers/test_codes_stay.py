"""What docs/precision.md says of averages in codes that stay where they are is so of other packages' optimizers."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch.nn import Parameter

BLOCK = 128  # the smallest of theirs


@pytest.mark.parametrize("path", ["bitsandbytes.optim.AdamW8bit", "torchao.optim.AdamW8bit", "torchao.optim.AdamW4bit"])
def test_an_average_of_squares_stays_beside_a_large_one(path: str) -> None:
    """So steps do not grow again after gradients have fallen."""
    module, _, name = path.rpartition(".")
    param = Parameter(torch.zeros(32, BLOCK))
    optimizer = getattr(importlib.import_module(module), name)([param], lr=1e-3, weight_decay=0.0)
    steps = []
    for gradient, count in ((0.5, 500), (0.01, 250), (0.01, 250)):
        param.grad = torch.full_like(param, gradient)
        param.grad[:, 0] = 0.5
        for _ in range(count):
            param.detach().zero_()
            optimizer.step()
        steps.append(-param.detach()[:, 1:].mean().item() / 1e-3)
    # In float32 0.033 and 0.026.
    assert steps[2] == pytest.approx(steps[1], rel=1e-3)
    assert steps[2] < 0.9  # in 4 bits the average of gradients stays as well
