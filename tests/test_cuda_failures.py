"""A call of the CUDA runtime that fails once costs one step: it says whether it wrote, and the next is as ever."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import pytest
import torch
from backends import (  # noqa: F401
    Emulated,
    emulated_fixture,
    spread,
)
from cases import ONE_PER_OPTIMIZER, Case
from test_cuda_lbfgs import FIXED, WOLFE, Quadratic, random
from twins import SIZES, Twins, assert_untouched, copies, simple, trained_twins

import fusedopt

PARTLY = "a part of this step has been written; load a checkpoint"
numbers_anywhere = pytest.mark.parametrize("there", [False, True], ids=["numbers-on-host", "numbers-on-device"])


def failures(emulated: Emulated, of: Callable[[], Any]) -> Iterator[str]:
    """Calls `of` once for each call of the runtime that it makes, which fails then; yields what was said of it."""
    for n in count(1):
        emulated.control.fail_call(n)
        try:
            of()
        except RuntimeError as error:
            said = str(error)
        else:
            said = ""
        assert said == "" or "cudaErrorMemoryAllocation" in said
        pending = emulated.control.failure_pending()
        emulated.control.fail_call(0)
        if pending:
            assert n > 1
            return
        yield said


def keys_of(optimizer: Any) -> list[list[str]]:
    return [list(state) for state in optimizer.state.values()]


@numbers_anywhere
@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("case", [*ONE_PER_OPTIMIZER, Case("adafactor", "Adafactor"), Case("clipped", "Adam")], ids=str)
def test_every_call_of_a_step(emulated: Emulated, case: Case, steps: int, there: bool) -> None:
    emulated.numbers_on_device(there)
    extra = {"max_grad_norm": 0.5} if case.name == "clipped" else {}

    def begin() -> Twins:
        twins = Twins(emulated, simple(case, **extra), [spread(*size) for size in SIZES])
        for _ in range(steps):
            twins.step()
        twins.give()
        twins.set_lr(0.3)
        return twins

    def step() -> None:
        twins.ours.step()

    twins = begin()
    before, keys = copies(twins.ours), keys_of(twins.ours)
    partly = []
    for said in failures(emulated, step):
        partly.append(PARTLY in said)
        if partly[-1]:
            twins = begin()
        elif said:
            assert_untouched(twins.ours, before)
            assert keys_of(twins.ours) == keys
            twins.ours.step()
        if not partly[-1]:
            twins.step_cpu()
            twins.check()
            twins = begin()
        before, keys = copies(twins.ours), keys_of(twins.ours)
    # Only once the device has counted, or the first of several kernels that write is on its way.
    if case.optimizer not in ("ASGD", "Adafactor"):
        # What sums decide on is on the device in any case.
        kept_there = there or case.optimizer in ("NovoGrad", "Prodigy")
        assert any(partly) == (kept_there and case.counters != [])


@pytest.mark.parametrize("arguments", [FIXED, WOLFE], ids=["fixed", "strong_wolfe"])
def test_every_call_of_lbfgs(emulated: Emulated, arguments: dict[str, Any]) -> None:
    problem = Quadratic(random((50,), (7, 3), dtype=torch.float32), emulated)
    optimizer = fusedopt.LBFGS(problem.params, max_iter=2, history_size=3, **arguments)
    with emulated.at_work():
        told = []
        for said in failures(emulated, lambda: optimizer.step(problem.closure)):
            told.append(bool(said))
            optimizer.step(problem.closure)
            assert all(p.isfinite().all() for p in problem.params)
    # What fails to go back to the capture mode of before, after a wait, costs nothing.
    assert told.count(True) > 4 * told.count(False)


def test_every_call_of_a_clipping(emulated: Emulated) -> None:
    # Two launches scale them, for one has strides.
    grads = [torch.ones(5), torch.ones(4, 6)[:, ::2]]

    def clip() -> None:
        ours = emulated.engine.Grads(grads, True)
        _, coefficient, _ = emulated.engine.clip(ours.measure(2.0), 2.0, None, 1.0, False)
        ours.scale(coefficient)

    told = []
    for said in failures(emulated, clip):
        assert said
        told.append(PARTLY in said)
        for grad in grads:
            assert told[-1] or torch.equal(grad, torch.ones_like(grad))
            grad.fill_(1)
        clip()
        torch.testing.assert_close(torch.cat([g.flatten() for g in grads]).norm(), torch.tensor(1.0))
        for grad in grads:
            grad.fill_(1)
    assert told.count(True) == 1


def test_every_call_of_a_capture_and_a_refresh(emulated: Emulated) -> None:
    case = ONE_PER_OPTIMIZER[1]

    def capture() -> None:
        replays.append(emulated.capture(twins.ours.step))

    twins = trained_twins(emulated, case)
    replays: list[Callable[[], None]] = []
    for _ in failures(emulated, capture):
        twins = trained_twins(emulated, case)
        capture()
    for said in failures(emulated, lambda: twins.ours.refresh_hyperparameters()):
        assert said
        twins.set_lr(0.2)
        twins.ours.refresh_hyperparameters()
        replays[-1]()
        twins.step_cpu()
        twins.check()
        twins.set_lr(0.3)
