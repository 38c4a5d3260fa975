"""Norms and clipping on the CUDA engine have the CPU's bits, and nothing waits for the device."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from backends import (  # noqa: F401
    Backend,
    Emulated,
    assert_same_memory,
    backend_fixture,
    counter_flags,
    emulated_fixture,
    spread,
    usual_launches,
)
from cases import CASES, ONE_PER_OPTIMIZER, Case
from layouts import OF_ONE_SHAPE, OTHERS, Layout
from test_clipping import DTYPES, ORDERS, SHAPES
from test_clipping_bitwise import spread as narrow
from test_grad_scaler import ARGUMENTS, INF
from tiers import thinned
from torch import Tensor
from torch.nn import Parameter
from twins import SIZES, Twins, simple

import fusedopt

one_per_optimizer = pytest.mark.parametrize("case", ONE_PER_OPTIMIZER, ids=str)


def params_with(grads: list[Tensor], backend: Backend | None, copy: bool = True) -> list[Parameter]:
    params = []
    for grad in grads:
        if copy:
            grad = backend.place(grad) if backend else grad.clone(memory_format=torch.preserve_format)
        params.append(Parameter(torch.zeros_like(grad)))
        params[-1].grad = grad
    return params


def results(
    grads: list[Tensor], backend: Backend | None, order: float = 2.0, max_norm: float = 0.3, copy: bool = True
) -> list[Any]:
    """The total, the norm and the clipped gradients."""
    params = params_with(grads, backend, copy)
    with backend.at_work() if backend else nullcontext():
        total = fusedopt.local_grad_norm(params, order)
        norm = fusedopt.clip_grad_norm_(params, max_norm, order)
    if backend:
        assert {total.device.type, norm.device.type} == {backend.device}
    # The total shares its storage with the sums that it was made of.
    return [total.clone(), norm, *(p.grad for p in params)]


def assert_same_results(grads: list[Tensor], backend: Backend, **arguments: Any) -> None:
    found, expected = results(grads, backend, **arguments), results(grads, None, **arguments)
    for actual, wanted in zip(found, expected, strict=True):
        assert_same_memory(actual.contiguous().clone(), wanted.contiguous().clone())


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_bits_are_the_cpus(backend: Backend, dtype: torch.dtype, order: float) -> None:
    assert_same_results([narrow(*shape, dtype=dtype) for shape in SHAPES], backend, order=order)


def test_dtypes_together(backend: Backend) -> None:
    grads = [narrow(n, dtype=dtype) for dtype in DTYPES for n in (40, 1100)]
    for order in (2.0, INF):
        for max_norm in (0.3, 1e12):
            assert_same_results(grads, backend, order=order, max_norm=max_norm)


@pytest.mark.parametrize("layout", [*OF_ONE_SHAPE, *OTHERS], ids=str)
def test_layouts(backend: Backend, layout: Layout) -> None:
    """Strided gradients between dense ones, and the memory around them."""
    placed = layout.place(torch.randn(layout.shape))
    grads = [torch.randn(300), placed.tensor, torch.randn(1500)]
    for order in (2.0, 1.0):
        found = results(grads, backend, order)
        again = [grads[0].clone(), layout.place(placed.tensor).tensor, grads[2].clone()]
        for actual, wanted in zip(found, results(again, None, order, copy=False), strict=True):
            assert_same_memory(actual, wanted)


@pytest.mark.parametrize("order", [2.0, 1.0, INF])
def test_strided_complex(backend: Backend, order: float) -> None:
    view = torch.randn(20, 6, dtype=torch.complex64)[::2, 1:4].t()
    assert_same_results([view.clone(memory_format=torch.contiguous_format), view[:, :1]], backend, order=order)


def test_more_gradients_than_a_launch_takes(backend: Backend) -> None:
    """And, of an odd one every hundred, launches that are cut short."""
    grads = [torch.randn(n % 7 + 1) for n in range(3100)]
    for n in range(0, 3100, 100):
        grads[n] = torch.randn(9)[::2]
    assert_same_results(grads, backend)


def test_many_chunks_are_added_level_by_level(backend: Backend) -> None:
    assert_same_results([spread(1024 * 1030 + 3), spread(5)], backend)


@pytest.mark.parametrize("value", [INF, float("nan")])
def test_not_finite(backend: Backend, value: float) -> None:
    grads = [torch.ones(1500), torch.tensor([1.0, value])]
    for order in (2.0, 1.0, 3.0, INF):
        assert_same_results(grads, backend, order=order)


def test_clipping_waits_for_nothing(backend: Backend) -> None:
    params = params_with([torch.randn(3000), torch.randn(5)], backend)
    with backend.at_work() if backend else nullcontext():
        fusedopt.clip_grad_norm_(params, 0.5)
        # chunks, their sums, the coefficient, the gradients
        assert backend.launches(lambda: fusedopt.clip_grad_norm_(params, 0.5)) == 4
        seen = backend.beside_launches(lambda: fusedopt.clip_grad_norm_(params, 0.5))
    assert not {"aten::item", "aten::_local_scalar_dense", "synchronize"} & set(seen)


def test_gradients_that_are_short_enough_keep_their_bits(backend: Backend) -> None:
    grads = [torch.tensor([1e-45, -0.0, 3.0])]
    params = params_with(grads, backend)
    with backend.at_work() if backend else nullcontext():
        fusedopt.clip_grad_norm_(params, 6.0)
    assert params[0].grad is not None
    assert_same_memory(params[0].grad, grads[0])


def test_what_failed_earlier_is_told(emulated: Emulated) -> None:
    params = params_with([torch.ones(5)], emulated)
    emulated.control.inject_error(700)
    with emulated.at_work(), pytest.raises(RuntimeError, match="an earlier CUDA kernel or call failed"):
        fusedopt.clip_grad_norm_(params, 1.0)
    assert params[0].grad is not None
    assert_same_memory(params[0].grad, torch.ones(5))


def clipping_twins(backend: Backend, case: Case, there: bool = True, sizes: list[Any] = SIZES, **extra: Any) -> Twins:
    backend.numbers_on_device(there)
    build = simple(case, **{**counter_flags(case, there), **extra})
    twins = Twins(backend, build, [spread(*size) for size in sizes])
    twins.edit(lambda optimizer, _: setattr(optimizer, "max_grad_norm", 0.5))
    return twins


def assert_same_norms(twins: Twins) -> None:
    assert_same_memory(twins.ours.grad_norm, twins.cpu.grad_norm)


@thinned("where numbers are and what is made of them are two things")
@pytest.mark.parametrize("there", [False, True], ids=["numbers-on-host", "numbers-on-device"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_steps_have_the_cpus_bits(backend: Backend, case: Case, there: bool) -> None:
    twins = clipping_twins(backend, case, there)
    for scale in (None, 7.0, 1e-3):
        twins.set_scaling(None if scale is None else 0.0, scale)
        twins.train(2)
        assert_same_norms(twins)
    assert twins.ours.grad_norm.device.type == backend.device


@one_per_optimizer
def test_steps_of_other_dtypes(backend: Backend, case: Case) -> None:
    for dtype in (torch.float64, torch.bfloat16, torch.complex64):
        values = [spread(*size, dtype=dtype) for size in SIZES]
        twins = Twins(backend, simple(case, **counter_flags(case)), values)
        twins.edit(lambda optimizer, _: setattr(optimizer, "max_grad_norm", 0.5))
        twins.train(2)
        assert_same_norms(twins)


@one_per_optimizer
def test_a_step_waits_for_nothing(backend: Backend, case: Case) -> None:
    twins = clipping_twins(backend, case)
    twins.set_scaling(0.0, 8.0)
    twins.train(2)
    twins.give()
    # chunks, their sums, the coefficient
    assert backend.launches(twins.ours.step) == usual_launches(twins.ours) + 3
    seen = backend.beside_launches(twins.ours.step)
    assert not {"aten::item", "aten::_local_scalar_dense", "synchronize"} & set(seen)
    twins.step_cpu()
    twins.step_cpu()
    twins.check()


@one_per_optimizer
def test_a_captured_step_clips_at_each_replay(backend: Backend, case: Case) -> None:
    twins = clipping_twins(backend, case)
    twins.train(2)
    twins.give()
    replay = backend.capture(twins.ours.step)
    norm = twins.ours.grad_norm
    for _ in range(3):
        for p, q in zip(twins.cpu_params, twins.params, strict=True):
            p.grad = spread(*p.shape)
            q.grad.copy_(p.grad)
        replay()
        twins.step_cpu()
        assert_same_memory(norm, twins.cpu.grad_norm)
        twins.check()


@one_per_optimizer
def test_our_scaler_reads_once(backend: Backend, case: Case) -> None:
    twins = clipping_twins(backend, case)
    scalers = [fusedopt.GradScaler("cpu", **ARGUMENTS), fusedopt.GradScaler(backend.device, **ARGUMENTS)]

    def step(which: int) -> Callable[[], Any]:
        return lambda: scalers[which].step(twins.both()[which][0])

    for i in range(7):
        weights = [spread(*size) for size in SIZES]
        for (optimizer, params), scaler in zip(twins.both(), scalers, strict=True):
            optimizer.zero_grad()
            loss: Any = sum((p * w.to(p.device)).sum() for p, w in zip(params, weights, strict=True))
            scaler.scale(loss * (INF if i in (0, 3) else 1.0)).backward()
        step(0)()
        if i in (0, 1, 2):
            step(1)()
        elif i == 6:
            # chunks, their sums, the coefficient
            assert backend.launches(step(1)) == usual_launches(twins.ours) + 3
        else:
            seen = backend.beside_launches(step(1))
            assert not {"aten::item", "aten::_local_scalar_dense", "synchronize"} & set(seen)
        for scaler in scalers:
            scaler.update()
        assert scalers[0].get_scale() == scalers[1].get_scale()
        assert twins.ours.step_skipped.item() is (i in (0, 3))
        twins.check()
