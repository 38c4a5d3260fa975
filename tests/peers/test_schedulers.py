"""A scheduler of another package's optimizer goes on steering ours, and tied weights are one param."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch.nn import Parameter
from torch.optim import lr_scheduler

import fusedopt

STEPS = 10
SCHEDULES = {
    "a number each step": lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step)),
    "the last one": lambda optimizer: lr_scheduler.ExponentialLR(optimizer, 0.8),
    "one cycle": partial(lr_scheduler.OneCycleLR, max_lr=0.02, total_steps=12, cycle_momentum=False),
}
MOMENTA = partial(lr_scheduler.OneCycleLR, max_lr=0.02, total_steps=12)
PATHS = [
    "bitsandbytes.optim.AdamW",
    "deepspeed.ops.adam.DeepSpeedCPUAdam",
    "optimi.AdamW",
    "timm.optim.lamb.Lamb",
    "lion_pytorch.Lion",
]


def made(path: str, params: list[Parameter], **kwargs: Any) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)(params, lr=0.01, **kwargs)


def trained(path: str, schedule: Callable[[Any], Any], leave_at: int, **kwargs: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    param = Parameter(torch.randn(40, 40, generator=generator))
    optimizer = made(path, [param], **kwargs)
    scheduler = schedule(optimizer)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*lr_scheduler.step")
        for step in range(STEPS):
            if step == leave_at:
                optimizer = fusedopt.replace(optimizer)
            param.grad = torch.randn(40, 40, generator=generator)
            optimizer.step()
            scheduler.step()
    return param.detach()


@pytest.mark.parametrize("leave_at", [0, 5])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("path", PATHS)
def test_a_schedule_goes_on(path: str, schedule: str, leave_at: int) -> None:
    """At 0 the first steps of theirs and ours are apart by what rounding gives."""
    wanted = trained(path, SCHEDULES[schedule], STEPS)
    torch.testing.assert_close(trained(path, SCHEDULES[schedule], leave_at), wanted, rtol=0, atol=2e-6)


@pytest.mark.parametrize("leave_at", [0, 5])
@pytest.mark.parametrize("path", ["bitsandbytes.optim.AdamW", "optimi.SGD"])
def test_a_cycle_of_momenta_goes_on(path: str, leave_at: int) -> None:
    """optimi has a max_lr in its groups, and OneCycleLR another."""
    kwargs = {"momentum": 0.9} if "SGD" in path else {}
    wanted = trained(path, MOMENTA, STEPS, **kwargs)
    torch.testing.assert_close(trained(path, MOMENTA, leave_at, **kwargs), wanted, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("path", "kwargs", "said"),
    [
        ("bitsandbytes.optim.SGD", {"momentum": 0.9}, "a scheduler cycles 'betas' of this bitsandbytes.SGD"),
        ("bitsandbytes.optim.RMSprop", {}, "a scheduler cycles 'betas' of this bitsandbytes.RMSprop"),
        ("optimi.SGD", {"momentum": 0.9, "dampening": True}, "dampening=True follows the momentum"),
    ],
)
def test_a_cycle_of_what_ours_do_not_have_is_refused(path: str, kwargs: dict[str, Any], said: str) -> None:
    param = Parameter(torch.ones(4))
    theirs = made(path, [param], **kwargs)
    MOMENTA(theirs)
    before = dict(theirs.param_groups[0])
    with pytest.raises(ValueError, match=said):
        fusedopt.replace(theirs)
    assert theirs.param_groups[0] == before


class Tied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head = torch.nn.Embedding(80, 64), torch.nn.Linear(64, 80, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        return self.head(self.embedding(words))  # type: ignore[no-any-return]


@pytest.mark.parametrize("path", PATHS)
def test_tied_weights_are_one_param(path: str) -> None:
    def run(leave_at: int) -> torch.Tensor:
        model = Tied()
        optimizer = made(path, list(model.parameters()))
        for step in range(STEPS):
            if step == leave_at:
                optimizer = fusedopt.replace(optimizer)
            words = torch.arange(80)
            torch.nn.functional.cross_entropy(model(words), words.roll(step)).backward()
            optimizer.step()
            optimizer.zero_grad()
        assert len(optimizer.state) == 1
        assert model.head.weight is model.embedding.weight
        return model.head.weight.detach()

    # Gradients follow the params, and with them their last places.
    torch.testing.assert_close(run(5), run(STEPS), rtol=0, atol=1e-4)
