"""Adafactor computes what torch's for-loop does, no further from float64, whatever the shapes, dtypes and layouts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from adafactor_runs import DTYPES, MATRICES, OPTIONS, SHAPES, continued, explicit, feed, make, random, states, twins
from layouts import OF_ONE_SHAPE, OTHERS, Layout
from oracle import ulp_error
from runs import give
from support import EMULATED, assert_identical, every_isa, params_of, snapshot
from tiers import thinned
from torch import Tensor
from torch.nn import Parameter

import fusedopt
from fusedopt import _C

INF, NAN = float("inf"), float("nan")
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def worst(actual: Tensor, expected: Tensor, magnitude: Tensor | None = None) -> float:
    return float(ulp_error(actual, expected, magnitude).max()) if actual.numel() else 0.0


# A run in float64 is no reference for another one.
@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if dtype != torch.float64], ids=str)
@every_option
def test_a_step_is_no_further_from_float64_than_torchs(options: dict[str, Any], dtype: torch.dtype) -> None:
    """Some steps, each from the same params and states, in units of the last place of what was updated.

    It is the worst of all elements that is compared: an update has half a dozen roundings in either, of which an
    element may meet many or few.
    """
    ours = fusedopt.Adafactor(make(dtype), **options)
    errors: dict[str, list[float]] = {name: [0.0, 0.0] for name in ("params", "row_var", "col_var", "variance")}
    for _ in range(5):
        feed([ours])
        oracle = continued(ours, torch.float64, **explicit(options, dtype))
        theirs = continued(ours, dtype, **explicit(options, dtype))
        before = [p.detach().double() for p in params_of(ours)]
        for optimizer in (ours, oracle, theirs):
            optimizer.step()
        for i, tested in enumerate((ours, theirs)):
            for p, exact, old in zip(params_of(tested), params_of(oracle), before, strict=True):
                error = worst(p, exact.detach(), torch.maximum(exact.detach().abs(), old.abs()))
                errors["params"][i] = max(errors["params"][i], error)
            for state, right in zip(states(tested), states(oracle), strict=True):
                for key, value in right.items():
                    errors[key][i] = max(errors[key][i], worst(state[key], value))
    for key, (mine, others) in errors.items():
        assert mine <= others + 1, (key, errors)


@thinned("both loops of torch's compute the same", keep=lambda foreach: not foreach)
@pytest.mark.parametrize("foreach", [False, True], ids=["for-loop", "foreach"])
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@every_option
def test_a_dozen_steps_are_torchs(options: dict[str, Any], dtype: torch.dtype, foreach: bool) -> None:
    ours = fusedopt.Adafactor(make(dtype), **options)
    torchs = torch.optim.Adafactor(twins(params_of(ours)), foreach=foreach, **options)
    tight: dict[str, float] = {"rtol": 1e-12, "atol": 1e-13} if dtype == torch.float64 else {}
    for _ in range(12):
        feed([ours, torchs])
        ours.step()
        torchs.step()
    for p, q in zip(params_of(ours), params_of(torchs), strict=True):
        torch.testing.assert_close(p, q, **tight)
        assert list(ours.state[p]) == list(torchs.state[q])
        for key, value in torchs.state[q].items():
            torch.testing.assert_close(ours.state[p][key], value, **tight)
            assert ours.state[p][key].stride() == value.stride()


@thinned("how a param is rounded has nothing to do with options", keep=lambda options: options == OPTIONS["default"])
@pytest.mark.parametrize("dtype", DTYPES[2:], ids=str)
@every_option
def test_16_bit_runs_stay_as_near_to_float64_as_torchs(options: dict[str, Any], dtype: torch.dtype) -> None:
    """A dozen steps, each optimizer on its own params."""
    ours = fusedopt.Adafactor(make(dtype), **options)
    torchs = torch.optim.Adafactor(twins(params_of(ours)), **options)
    oracle = torch.optim.Adafactor(twins(params_of(ours), torch.float64), **explicit(options, dtype))
    for _ in range(12):
        feed([ours, torchs, oracle])
        for optimizer in (ours, torchs, oracle):
            optimizer.step()

    def distance(optimizer: Any) -> float:
        pairs = zip(params_of(optimizer), params_of(oracle), strict=True)
        return float(torch.cat([(p.detach().double() - exact.detach()).flatten() for p, exact in pairs]).norm())

    assert distance(ours) <= distance(torchs)


@pytest.mark.parametrize("options", [{}, {"eps": (0.0, 0.0)}, {"eps": (1e-30, 1e-3)}, {"eps": (0.5, 0.0)}], ids=str)
def test_zeros_are_clamped_as_torchs(options: dict[str, Any]) -> None:
    """Rows, columns and whole gradients of zeros, and params of zeros."""
    # The square of this epsilon is no float, and torch divides zeros by zeros unless it has doubles.
    dtype = torch.float64 if options.get("eps") == (1e-30, 1e-3) else torch.float32
    values = [random((6, 5)) for _ in range(4)] + [torch.zeros(6, 5), random((7,)), random((2, 70, 3))]
    ours = fusedopt.Adafactor([Parameter(v.clone()) for v in values], **options)
    torchs = torch.optim.Adafactor([Parameter(v.to(dtype, copy=True)) for v in values], **options)
    for _ in range(3):
        grads = [random(v.shape) for v in values]
        grads[0][2] = 0
        grads[1][:, 3] = 0
        grads[2].zero_()
        grads[5][::2] = 0
        grads[6][1].zero_()
        for optimizer in (ours, torchs):
            for p, g in zip(params_of(optimizer), grads, strict=True):
                p.grad = g.to(p.dtype)
            optimizer.step()
        for p, q in zip(params_of(ours), params_of(torchs), strict=True):
            torch.testing.assert_close(p, q.float(), equal_nan=True)


SPECIAL = [0.0, -0.0, 1e-45, 1e-30, 1e-20, 1e9, 1e18, 3e38, -3e38, INF, -INF, NAN]


@pytest.mark.parametrize("value", SPECIAL)
@pytest.mark.parametrize("shape", [(5,), (4, 3), (2, 9, 70), (1100,), (3, 1100)], ids=str)
def test_special_gradients_are_torchs(shape: tuple[int, ...], value: float) -> None:
    """Where torch overflows on its way to a number, as in the sum of large squares, ours may be that number."""
    ours = fusedopt.Adafactor([Parameter(random(shape))])
    torchs = torch.optim.Adafactor(twins(params_of(ours)))
    exact = torch.optim.Adafactor(twins(params_of(ours), torch.float64), eps=(torch.finfo(torch.float32).eps, 1e-3))
    for step in range(3):
        grad = random(shape)
        if step == 1:
            grad.view(-1)[1] = value
        for optimizer in (ours, torchs, exact):
            (p,) = params_of(optimizer)
            p.grad = grad.to(p.dtype)
            optimizer.step()
    (p,), (q,), (right,) = (params_of(optimizer) for optimizer in (ours, torchs, exact))
    near_torchs = torch.isclose(p, q, rtol=1e-5, atol=1e-6, equal_nan=True)
    near_exact = torch.isclose(p.double(), right, rtol=1e-5, atol=1e-6, equal_nan=True)
    assert (near_torchs | near_exact).all()


@thinned("a walk through memory knows no option", keep=lambda options: options == OPTIONS["default"], together=0)
@every_option
def test_layouts_change_nothing(options: dict[str, Any]) -> None:
    """Params and gradients of any strides have the bits of contiguous ones; what lies between them is left alone."""
    placed: list[tuple[Any, Any]] = []
    pairs = [(a, b) for a in OF_ONE_SHAPE for b in OF_ONE_SHAPE]
    pairs += [(a, a) for a in OTHERS] + [(a, Layout("", tuple(a.shape), lambda b: b)) for a in OTHERS]
    for a, b in pairs:
        placed.append((a.place(random(a.shape)), b.place(random(a.shape))))
    ours = fusedopt.Adafactor([Parameter(p.tensor) for p, _ in placed], **options)
    dense = fusedopt.Adafactor(
        [Parameter(p.tensor.clone(memory_format=torch.contiguous_format)) for p, _ in placed], **options
    )
    for _ in range(3):
        for p, q, (_, grad) in zip(params_of(ours), params_of(dense), placed, strict=True):
            grad.tensor.copy_(random(grad.tensor.shape))
            p.grad = grad.tensor
            q.grad = grad.tensor.clone(memory_format=torch.contiguous_format)
        ours.step()
        dense.step()
    for (p, grad), q in zip(placed, params_of(dense), strict=True):
        assert torch.equal(p.tensor, q.detach())
        p.assert_others_untouched()
        grad.assert_others_untouched()


def test_transposed_and_strided_states() -> None:
    ours, dense = (fusedopt.Adafactor([Parameter(torch.ones(2, 70, 1030)), Parameter(torch.ones(67))]) for _ in "ab")
    for step in range(3):
        torch.manual_seed(step)
        feed([ours, dense])
        ours.step()
        dense.step()
        for p in params_of(ours):
            for key, value in states(ours)[0].items() if p.dim() > 1 else states(ours)[1].items():
                wide = torch.full((*value.shape, 2), 9.0)
                wide[..., 1] = value
                ours.state[p][key] = wide[..., 1]
    for p, q in zip(params_of(ours), params_of(dense), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("grad_dtype", DTYPES, ids=str)
@every_dtype
def test_gradients_of_another_dtype(dtype: torch.dtype, grad_dtype: torch.dtype) -> None:
    """As one in the dtype of the arithmetic; states are in the param's."""
    shapes = [(9,), (5, 7), (70, 1030)]
    working = torch.float64 if dtype == torch.float64 else torch.float32
    values, grads = [random(s, dtype) for s in shapes], [random(s, grad_dtype) for s in shapes]
    mixed, same = ([Parameter(v.clone()) for v in values] for _ in "ab")
    for params, give_dtype in ((mixed, grad_dtype), (same, working)):
        optimizer = fusedopt.Adafactor(params, weight_decay=0.1)
        for _ in range(2):
            for p, g in zip(params, grads, strict=True):
                give(p, g.to(give_dtype))
            optimizer.step()
        assert all(v.dtype == dtype for state in states(optimizer) for v in state.values())
    assert_identical([p.detach() for p in mixed], [p.detach() for p in same])


def test_16_bit_params_may_keep_float32_state() -> None:
    ours = fusedopt.Adafactor([Parameter(random((70, 30), torch.bfloat16)), Parameter(random((9,), torch.bfloat16))])
    wide = torch.optim.Adafactor(twins(params_of(ours), torch.float32), eps=(torch.finfo(torch.bfloat16).eps, 1e-3))
    for _ in range(3):
        feed([ours, wide])
        ours.step()
        wide.step()
        for p, q in zip(params_of(ours), params_of(wide), strict=True):
            for key in states(ours)[0] if p.dim() > 1 else ["variance"]:
                ours.state[p][key] = wide.state[q][key].clone()
    torch.testing.assert_close(states(ours), states(wide))
    feed([ours, wide])
    ours.step()
    wide.step()
    torch.testing.assert_close(states(ours), states(wide))


@pytest.mark.skipif(EMULATED, reason="one instruction set")
@thinned("an instruction set has kernels for each dtype, to which options are scalars")
@every_dtype
@every_option
@every_isa
def test_instruction_sets_and_thread_counts_agree(options: dict[str, Any], dtype: torch.dtype, isa: str) -> None:
    # The last ones are shared by a team: tall, wide, of many matrices, a vector.
    shapes = [*SHAPES, (1500, 100), (70, 3000), (9000, 3, 3), (150_000,), (2, 700, 1030)]
    values = [random(shape, dtype) for shape in shapes]
    grads = [[random(shape, dtype) for shape in shapes] for _ in range(2)]

    def course(isa: str, threads: int) -> Any:
        _C.use_isa(isa)
        torch.set_num_threads(threads)
        optimizer = fusedopt.Adafactor([Parameter(v.clone()) for v in values], **options)
        for step in grads:
            for p, g in zip(params_of(optimizer), step, strict=True):
                p.grad = g
            optimizer.step()
        return snapshot(optimizer)

    expected = course("generic", 1)
    for threads in (1, 2, 3, 5):
        assert_identical(course(isa, threads), expected)


@pytest.mark.parametrize("shape", MATRICES[-3:], ids=str)
def test_nothing_outside_is_written(shape: tuple[int, ...]) -> None:
    """Params, gradients and states as views between guards."""

    def guarded(value: Tensor) -> tuple[Tensor, Tensor]:
        base = torch.full((value.numel() + 32,), 99.0)
        view = base[16:-16].view(value.shape)
        view.copy_(value)
        return base, view

    base, param = guarded(random(shape))
    grad_base, grad = guarded(random(shape))
    ours = fusedopt.Adafactor([Parameter(param)])
    (p,) = params_of(ours)
    p.grad = grad
    ours.step()
    bases = [base, grad_base]
    for key, value in states(ours)[0].items():
        state_base, ours.state[p][key] = guarded(value)
        bases.append(state_base)
    before = grad_base.clone()
    ours.step()
    assert torch.equal(grad_base, before)
    for one in bases:
        assert (one[:16] == 99).all()
        assert (one[-16:] == 99).all()
