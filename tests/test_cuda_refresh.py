"""A captured step gets new numbers from groups that have changed in nothing else, and is refused them otherwise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from backends import (  # noqa: F401
    Backend,
    backend_fixture,
    counter_flags,
    cuda_fixture,
    emulated_fixture,
    spread,
)
from cases import ONE_PER_APART, ONE_PER_OPTIMIZER, Case
from test_cuda_errors import refused
from torch.nn import Parameter
from twins import SIZES, Twins, trained_twins

one_per_optimizer = pytest.mark.parametrize("case", ONE_PER_OPTIMIZER, ids=str)


def _add_a_group(twins: Twins) -> None:
    for optimizer, params in twins.both():
        optimizer.add_param_group({"params": [Parameter(torch.ones(3, device=params[0].device))]})


def _remove_a_group(twins: Twins) -> None:
    for optimizer, _ in twins.both():
        del optimizer.param_groups[1]


def _toggle_an_option(twins: Twins) -> None:
    for optimizer, _ in twins.both():
        group = optimizer.param_groups[0]
        if "amsgrad" in group:
            group["amsgrad"] = True
        elif "centered" in group:
            group["centered"] = True
        elif "momentum" in group and "train_mode" not in group:  # Schedule-Free keeps its states without one
            group["momentum"] = 0
        else:
            pytest.skip("none of its options changes which states there are")


@pytest.mark.parametrize("change", [_add_a_group, _remove_a_group, _toggle_an_option], ids=lambda f: f.__name__[1:])
@one_per_optimizer
def test_refresh_after_groups_changed(backend: Backend, case: Case, change: Callable[[Twins], None]) -> None:
    if case.joint and change is _add_a_group:
        pytest.skip("refused by name while a graph may be replayed")

    def build(params: list[Any]) -> Any:
        return case.ours([{"params": params[:2]}, {"params": params[2:]}], **counter_flags(case))

    twins = Twins(backend, build, [spread(*size) for size in SIZES])
    twins.train()
    static = [q.grad for q in twins.params]
    replay = backend.capture(twins.ours.step)
    saved = [list(optimizer.param_groups) for optimizer, _ in twins.both()]
    options = [[dict(group) for group in groups] for groups in saved]
    change(twins)
    with refused(twins.ours, "param_groups have changed since the step was captured in more than their numbers"):
        twins.ours.refresh_hyperparameters()
    # The graph is as it was, and works again once the groups are.
    for (optimizer, _), groups, before in zip(twins.both(), saved, options, strict=True):
        for group, old in zip(groups, before, strict=True):
            group.update(old)
        optimizer.param_groups = groups
    twins.set_lr(0.3)
    twins.ours.refresh_hyperparameters()
    assert all(q.grad is grad for q, grad in zip(twins.params, static, strict=True))
    replay()
    twins.step_cpu()
    twins.check()


@pytest.mark.parametrize("case", ONE_PER_APART, ids=str)
def test_refresh_after_a_new_capture(backend: Backend, case: Case) -> None:
    """What the message asks for helps; the graph captured first keeps the numbers that it had."""
    twins = trained_twins(backend, case)
    first = backend.capture(twins.ours.step)
    static = [(p.grad, q.grad) for p, q in zip(twins.cpu_params, twins.params, strict=True)]
    for optimizer, params in twins.both():
        param = Parameter(torch.ones(3, device=params[0].device))
        param.grad = torch.ones_like(param)
        optimizer.add_param_group({"params": [param]})
    twins.train(1)
    replay = backend.capture(twins.ours.step)
    twins.set_lr(0.3)
    twins.ours.refresh_hyperparameters()
    replay()
    twins.step_cpu()
    twins.check()
    for p, q, grads in zip(twins.cpu_params, twins.params, static, strict=True):
        p.grad, q.grad = grads
    twins.cpu.param_groups[0]["lr"] = case.kwargs["lr"]
    twins.cpu.param_groups[1]["params"][0].grad = None
    first()
    twins.step_cpu()
    twins.check()
