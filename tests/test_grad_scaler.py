"""fusedopt.GradScaler: torch's, with one read of the gradients for the infinity check and the norm."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from cases import ONE_PER_OPTIMIZER, Case
from support import assert_close, assert_identical, make_params, params_of, snapshot
from test_amp import assert_skipped, scaled_backward
from torch.nn import Parameter

import fusedopt
from fusedopt import _C
from fusedopt import _clipping as clipping

INF, NAN = float("inf"), float("nan")
ARGUMENTS: Any = {"init_scale": 2.0**8, "growth_interval": 2}
one_per_optimizer = pytest.mark.parametrize("case", ONE_PER_OPTIMIZER, ids=str)


def scaler() -> fusedopt.GradScaler:
    return fusedopt.GradScaler("cpu", **ARGUMENTS)


def clipped(case: Case, max_norm: float | None = 0.5, **flags: Any) -> Any:
    optimizer: Any = case.ours(make_params(), **flags)
    optimizer.max_grad_norm = max_norm
    return optimizer


@pytest.fixture(name="reads")
def reads_fixture(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Gets an entry for each sweep that adds up squares."""
    reads: list[int] = []
    total = clipping._total

    def counted(*args: Any, **kwargs: Any) -> Any:
        reads.append(1)
        return total(*args, **kwargs)

    monkeypatch.setattr(clipping, "_total", counted)
    step_clipped = _C.Plan.step_clipped

    def stepped(*args: Any) -> Any:
        norm = step_clipped(*args)
        if norm is not None:
            reads.append(1)
        return norm

    monkeypatch.setattr(_C.Plan, "step_clipped", stepped)
    return reads


@one_per_optimizer
def test_a_run_with_overflows_is_that_of_torchs_scaler(case: Case, reads: list[int]) -> None:
    """Which itself takes three passes."""
    ours, theirs = clipped(case), clipped(case, fused=True)
    mine, torchs = scaler(), torch.amp.GradScaler("cpu", **ARGUMENTS)
    for i in range(8):
        factor = {1: INF, 4: NAN}.get(i, 1.0)
        for optimizer, scale in ((ours, mine), (theirs, torchs)):
            scaled_backward(optimizer, scale, i, factor)
            reads.clear()
            scale.step(optimizer)
            scale.update()
            assert len(reads) == 1
            assert optimizer._measured is None
            assert_skipped(optimizer, i in (1, 4))
        torch.testing.assert_close(ours.grad_norm, theirs.grad_norm, rtol=0, atol=0, equal_nan=True)
        assert mine.get_scale() == torchs.get_scale()
        assert_identical(snapshot(ours), snapshot(theirs))


@one_per_optimizer
def test_unscale_then_step(case: Case) -> None:
    ours, expected = clipped(case), clipped(case, None)
    mine, torchs = scaler(), torch.amp.GradScaler("cpu", **ARGUMENTS)
    for i in range(6):
        for optimizer, scale in ((ours, mine), (expected, torchs)):
            scaled_backward(optimizer, scale, i, INF if i == 2 else 1.0)
            scale.unscale_(optimizer)
            if optimizer is expected:
                torch.nn.utils.clip_grad_norm_(params_of(optimizer), 0.5)
            scale.step(optimizer)
            scale.update()
        assert_skipped(ours, i == 2)
        assert_close(ours, expected)


@one_per_optimizer
@pytest.mark.parametrize("ours", [True, False])
def test_without_a_norm_it_is_torchs(case: Case, ours: bool, reads: list[int]) -> None:
    """For optimizers of ours that do not clip, and for all others."""
    make: Callable[..., Any] = case.ours if ours else case.torchs
    mine, theirs = make(make_params()), make(make_params())
    scalers = [scaler(), torch.amp.GradScaler("cpu", **ARGUMENTS)]
    for i in range(5):
        for optimizer, scale in zip((mine, theirs), scalers, strict=True):
            scaled_backward(optimizer, scale, i, INF if i == 1 else 1.0)
            scale.step(optimizer)
            scale.update()
        assert_identical(snapshot(mine), snapshot(theirs))
        assert scalers[0].get_scale() == scalers[1].get_scale()
    assert reads == []


@pytest.mark.parametrize("kind", ["fused", "generic", "torch"])
def test_it_leaves_unscaling_to_every_optimizer_of_ours_while_it_steps(kind: str) -> None:
    params, seen = [Parameter(torch.ones(3))], []
    makes: dict[str, Any] = {"fused": fusedopt.SGD, "generic": Plain, "torch": torch.optim.SGD}
    optimizer: Any = makes[kind](params, lr=1.0)

    def look(optimizer: Any, *_: Any) -> None:
        seen.append((getattr(optimizer, "_step_supports_amp_scaling", False), hasattr(optimizer, "grad_scale")))
        if len(seen) == 2:
            raise RuntimeError("not now")

    optimizer.register_step_pre_hook(look)
    scale = scaler()
    for _ in range(2):
        scaled_backward(optimizer, scale, 0)
        with pytest.raises(RuntimeError, match="not now") if len(seen) == 1 else nullcontext():
            scale.step(optimizer)
        scale.update()
        assert getattr(optimizer, "_step_supports_amp_scaling", False) is False
    assert seen == [(kind != "torch", kind != "torch")] * 2


class Plain(fusedopt.GenericOptimizer):
    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    def step_param(self, state: dict[str, Any], group: dict[str, Any], grad: Any, param: Any) -> None:
        param.sub_(grad, alpha=group["lr"])


def halve_in_place(p: Any) -> None:
    p.grad.mul_(0.5)


def halve_with_other_memory(p: Any) -> None:
    p.grad.data = p.grad.data * 0.5


def halve_with_another_tensor(p: Any) -> None:
    p.grad = p.grad * 0.5


def drop(p: Any) -> None:
    p.grad = None


@pytest.mark.parametrize("change", [halve_in_place, halve_with_other_memory, halve_with_another_tensor, drop])
def test_gradients_that_a_hook_changes_are_read_anew(change: Callable[[Any], None], reads: list[int]) -> None:
    def build() -> Any:
        optimizer = fusedopt.SGD([Parameter(torch.ones(300)), Parameter(torch.ones(3))], lr=1.0)
        optimizer.max_grad_norm = 0.5
        optimizer.register_step_pre_hook(lambda *_: change(params_of(optimizer)[0]))
        return optimizer

    ours, theirs = build(), build()
    for optimizer, scale in ((ours, scaler()), (theirs, torch.amp.GradScaler("cpu", **ARGUMENTS))):
        scaled_backward(optimizer, scale, 0)
        reads.clear()
        scale.step(optimizer)
        assert len(reads) == 1 + (optimizer is ours)
    assert_identical(ours.grad_norm, theirs.grad_norm)
    assert_identical(snapshot(ours), snapshot(theirs))


def test_what_was_read_is_used_once(reads: list[int]) -> None:
    optimizer = fusedopt.SGD([Parameter(torch.ones(3))], lr=1.0)
    optimizer.max_grad_norm = 0.5
    scale = scaler()
    scaled_backward(optimizer, scale, 0)
    scale.step(optimizer)
    reads.clear()
    optimizer.step()
    assert len(reads) == 1


def test_a_step_that_fails_leaves_nothing_behind() -> None:
    optimizer = fusedopt.SGD([Parameter(torch.ones(3))], lr=1.0)
    optimizer.max_grad_norm = 0.5

    def refuse(*_: Any) -> None:
        raise RuntimeError("not now")

    handle = optimizer.register_step_pre_hook(refuse)
    scale = scaler()
    scaled_backward(optimizer, scale, 0)
    with pytest.raises(RuntimeError, match="not now"):
        scale.step(optimizer)
    assert optimizer._measured is None
    handle.remove()


@pytest.mark.parametrize("kind", ["sparse", "float64", "no gradient"])
def test_what_the_engines_cannot_check_torch_does(kind: str) -> None:
    def run(make: Any) -> Any:
        dtype = torch.float64 if kind == "float64" else torch.float32
        params = [Parameter(torch.ones(4, 2, dtype=dtype)), Parameter(torch.ones(3, dtype=dtype))]
        optimizer = fusedopt.SGD(params, lr=0.1)
        optimizer.max_grad_norm = 0.5
        scale = make("cpu", **ARGUMENTS)
        for i in range(4):
            optimizer.zero_grad()
            table = torch.nn.functional.embedding(torch.tensor([i % 4, 1]), params[0], sparse=kind == "sparse")
            loss = table.square().sum() + params[1].sum() * (INF if i == 1 else 1.0)
            if kind == "float64" and i == 2:
                loss = loss * 1e160  # whose square is infinite, though nothing else is
            scale.scale(loss).backward()
            if kind == "no gradient":
                params[0].grad = None
            scale.step(optimizer)
            scale.update()
        return snapshot(optimizer), scale.get_scale()

    assert_identical(run(fusedopt.GradScaler), run(torch.amp.GradScaler))


def test_all_params_without_gradients() -> None:
    """As torch's: a step that nothing was checked for cannot update the scale."""
    optimizer = fusedopt.SGD([Parameter(torch.ones(3))], lr=0.1)
    optimizer.max_grad_norm = 0.5
    scale = scaler()
    scale.scale(torch.ones(()))
    scale.step(optimizer)
    with pytest.raises(AssertionError, match="No inf checks were recorded prior to update"):
        scale.update()


def test_disabled_it_steps() -> None:
    optimizer = fusedopt.SGD([Parameter(torch.ones(2))], lr=1.0)
    optimizer.max_grad_norm = 0.5
    scale = fusedopt.GradScaler("cpu", enabled=False)
    scale.scale((params_of(optimizer)[0] * torch.tensor([3.0, 4.0])).sum()).backward()
    scale.step(optimizer)
    scale.update()
    torch.testing.assert_close(params_of(optimizer)[0].detach(), torch.tensor([0.7, 0.6]))
