"""found_inf and grad_scale in device memory: obeyed, but never waited for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from backends import (  # noqa: F401
    Backend,
    backend_fixture,
    spread,
)
from cases import CASES, ONE_PER_OPTIMIZER, Case
from tiers import thinned
from torch import Tensor
from twins import SIZES, Twins, assert_untouched, copies, simple, trained_twins

INF, NAN = float("inf"), float("nan")

every_case = pytest.mark.parametrize("case", CASES, ids=str)
one_per_optimizer = pytest.mark.parametrize("case", ONE_PER_OPTIMIZER, ids=str)
numbers_anywhere = pytest.mark.parametrize("there", [False, True], ids=["numbers-on-host", "numbers-on-device"])


@one_per_optimizer
def test_a_scaled_step_waits_for_nothing(backend: Backend, case: Case) -> None:
    twins = trained_twins(backend, case)
    twins.set_scaling(0.0, 7.0)
    twins.train(1)  # makes what the device tells of a skipped step in
    for found in (0.0, 1.0, 0.0):
        twins.set_scaling(found, 3.0)
        twins.give()
        twins.step_twice_in_steady_state()
        skipped: list[Tensor] = []
        seen = backend.beside_launches(lambda: skipped.append(twins.ours.step_skipped))  # noqa: B023
        assert not {"aten::item", "aten::_local_scalar_dense", "synchronize"} & set(seen)
        assert (skipped[0].dtype, skipped[0].shape, skipped[0].item()) == (torch.bool, (), found != 0)


@thinned("where numbers are and what is made of them are two things")
@numbers_anywhere
@every_case
def test_a_skipped_step_changes_nothing(backend: Backend, case: Case, there: bool) -> None:
    twins = trained_twins(backend, case, there)
    before = copies(twins.ours)
    for found in (1.0, 0.5, -1.0, INF, NAN):
        for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
            for shape in ((), (1,)):
                twins.give()
                twins.ours.found_inf = backend.number(found, dtype).reshape(shape)
                twins.ours.step()
                assert twins.ours.step_skipped.item() is True
    assert_untouched(twins.ours, before)
    twins.ours.found_inf = None
    twins.train(2)
    assert twins.ours.step_skipped.item() is False


@thinned("where numbers are and what is made of them are two things")
@numbers_anywhere
@every_case
def test_a_skipped_first_step_makes_no_state(backend: Backend, case: Case, there: bool) -> None:
    backend.numbers_on_device(there)
    twins = Twins(backend, simple(case), [spread(*size) for size in SIZES])
    if twins.ours.state:
        pytest.skip("its states are made with it")
    twins.set_scaling(1.0, 2.0)
    twins.train(1)
    assert len(twins.ours.state) == 0
    assert twins.ours.step_skipped.item() is True
    # Some params have states already, others would get them now.
    twins.set_scaling(0.0, 2.0)
    grads: list[Tensor | None] = [spread(*size) for size in SIZES]
    twins.step([None, *grads[1:]])
    twins.check()
    states = len(twins.ours.state)
    twins.set_scaling(1.0, 2.0)
    twins.train(1)
    assert len(twins.ours.state) == states
    twins.set_scaling(0.0, 2.0)
    twins.train(2)


@thinned("where numbers are and what is made of them are two things")
@numbers_anywhere
@every_case
def test_any_sequence_of_scales_and_overflows(backend: Backend, case: Case, there: bool) -> None:
    backend.numbers_on_device(there)
    twins = Twins(backend, simple(case), [spread(*size) for size in SIZES])
    numbers = torch.rand(25, 4).tolist()
    for some, found, scale, lr in numbers:
        # Also a step without GradScaler between two with it.
        twins.set_scaling(None if some < 0.1 else float(found < 0.3), None if scale < 0.2 else 10 ** (3 * scale))
        twins.set_lr(0.01 * lr)
        twins.step([spread(*size) if i != int(some * 20) else None for i, size in enumerate(SIZES)])
        twins.check()
        assert twins.ours.step_skipped.item() is twins.cpu.step_skipped.item()


@pytest.mark.parametrize("fused", [True, None], ids=["in-step", "around-step"])
@every_case
def test_a_run_with_grad_scaler(backend: Backend, case: Case, fused: bool | None) -> None:
    twins = Twins(backend, simple(case, fused=fused), [spread(*size) for size in SIZES])
    arguments = {"init_scale": 2.0**8, "growth_interval": 2}
    scalers = [torch.amp.GradScaler("cpu", **arguments), backend.scaler(**arguments)]
    for i in range(9):
        weights = [torch.randn(size) for size in SIZES]
        for (optimizer, params), scaler in zip(twins.both(), scalers, strict=True):
            optimizer.zero_grad()
            loss: Any = sum((p * w.to(p.device)).sum() for p, w in zip(params, weights, strict=True))
            scaler.scale(loss * (INF if i in (0, 1, 5) else 1.0)).backward()
            if i == 7:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
        assert scalers[0].get_scale() == scalers[1].get_scale()
        assert twins.ours.step_skipped.item() is (bool(fused) and i in (0, 1, 5))
        twins.check()
