"""Opacus, which clips each example's gradient and adds noise, around ours."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from opacus import PrivacyEngine
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fusedopt


def _train(make: Any) -> list[torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
    x = torch.randn(24, 8)
    loader = DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=4)
    optimizer = make(model.parameters())
    private, wrapped, batches = PrivacyEngine().make_private(
        module=model,
        optimizer=optimizer,
        data_loader=loader,
        noise_multiplier=0.5,
        max_grad_norm=1.0,
        poisson_sampling=False,
        noise_generator=torch.Generator().manual_seed(1),
    )
    for inputs, labels in batches:
        wrapped.zero_grad()
        nn.functional.mse_loss(private(inputs), labels).backward()
        wrapped.step()
    return [p.detach() for p in model.parameters()]


@pytest.mark.slot("`PrivacyEngine.make_private`", "opacus")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["AdamW", "SGD", "RMSprop", "Adafactor"])
def test_private_training_is_torchs(name: str) -> None:
    classes = [getattr(package, name) for package in (fusedopt, torch.optim)]
    ends = [_train(partial(cls, lr=0.01)) for cls in classes]
    torch.testing.assert_close(*ends, rtol=1e-4, atol=1e-6)


@pytest.mark.slot("`PrivacyEngine.make_private`, with `ema_decay`", "opacus")
@pytest.mark.filterwarnings("ignore")
def test_options_go_with_it() -> None:
    assert all(p.isfinite().all() for p in _train(partial(fusedopt.AdamW, lr=0.01, ema_decay=0.9)))
