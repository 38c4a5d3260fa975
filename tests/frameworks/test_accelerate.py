"""Accelerate's wrappers see what they see with torch's class: a skipped step, and a schedule that waits for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.scheduler import AcceleratedScheduler
from accelerate.state import AcceleratorState, GradientState
from torch.nn import Parameter

import fusedopt

# Lion and LAMB have no class of torch's: its AdamW says what is seen.
NAMES = ["AdamW", "SGD", "RMSprop", "Adafactor", "Lion", "LAMB"]


@pytest.fixture(autouse=True)
def _anew() -> Iterator[None]:
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def _run(cls: Any, **kwargs: Any) -> tuple[list[Any], torch.Tensor]:
    """What is seen of each step of which the second overflows, and the params at the end."""
    Accelerator(cpu=True)
    param = Parameter(torch.linspace(-1, 1, 16).view(4, 4))
    inner = cls([param], lr=0.1, **kwargs)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    schedule = torch.optim.lr_scheduler.ExponentialLR(inner, 0.5)
    optimizer = AcceleratedOptimizer(inner, scaler=scaler)
    scheduler = AcceleratedScheduler(schedule, optimizer, split_batches=True)
    seen: list[Any] = []
    for factor in (1.0, float("inf"), 2.0, 1.0):
        before = param.detach().clone()
        scaler.scale((param.square() * factor).sum()).backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        moved = not torch.equal(param, before)
        seen.append((optimizer.step_was_skipped, moved, schedule.last_epoch, inner.param_groups[0]["lr"]))
    return seen, param.detach()


@pytest.mark.slot("fp16: `AcceleratedOptimizer` with a GradScaler, schedules", "accelerate")
@pytest.mark.parametrize("name", NAMES)
def test_a_skipped_step_is_seen(name: str) -> None:
    theirs = getattr(torch.optim, name, torch.optim.AdamW)
    (seen, end), (wanted, reference) = _run(getattr(fusedopt, name)), _run(theirs)
    assert seen == wanted
    assert [step[0] for step in seen] == [False, True, False, False]
    assert [step[1] for step in seen] == [True, False, True, True]
    assert seen[0][2] == seen[1][2]  # the schedule waits
    if hasattr(torch.optim, name):
        torch.testing.assert_close(end, reference)


@pytest.mark.slot("bf16: `prepare`, `accumulate`, `clip_grad_norm_`", "accelerate")
def test_prepared_by_an_accelerator() -> None:
    ends = []
    for package in (fusedopt, torch.optim):
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 2)
        accelerator = Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=2)
        optimizer = package.AdamW(model.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        model, wrapped, scheduler = accelerator.prepare(model, optimizer, schedule)
        for index in range(4):
            with accelerator.accumulate(model):
                accelerator.backward(model(torch.full((3, 4), float(index))).square().sum())
                accelerator.clip_grad_norm_(model.parameters(), 0.5)
                wrapped.step()
                scheduler.step()
                wrapped.zero_grad()
        saved = wrapped.state_dict()
        wrapped.load_state_dict(saved)
        ends.append([*(p.detach() for p in model.parameters()), torch.tensor(optimizer.param_groups[0]["lr"])])
    torch.testing.assert_close(*ends)
