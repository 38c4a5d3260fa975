"""LBFGS on the CUDA engine has the CPU's bits, and waits for the device once a sweep."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from backends import (  # noqa: F401
    CHUNK,
    Backend,
    Emulated,
    backend_fixture,
    emulated_fixture,
)
from layouts import OF_ONE_SHAPE, Layout
from support import assert_identical
from torch import Tensor

import fusedopt

FIXED: dict[str, Any] = {"lr": 0.1}
WOLFE: dict[str, Any] = {"line_search_fn": "strong_wolfe"}
KINDS = [pytest.param(FIXED, id="fixed"), pytest.param(WOLFE, id="strong_wolfe")]
DTYPES = [torch.float32, torch.float64]


class Quadratic:
    """Gradients and losses that have the same bits on all devices: each operation is IEEE's, sums are the CPU's."""

    def __init__(self, tensors: list[Tensor], backend: Backend | None, without: int = -1) -> None:
        place = backend.place if backend else lambda tensor: tensor.detach().clone(memory_format=torch.preserve_format)
        self.params = [place(tensor).requires_grad_() for tensor in tensors]
        generator = torch.Generator().manual_seed(5)
        self.without = without
        self.weights = [torch.rand(t.shape, generator=generator, dtype=torch.float64).to(t.dtype) for t in tensors]
        self.place = place

    def closure(self) -> float:
        loss = 0.0
        for i, (p, weight) in enumerate(zip(self.params, self.weights, strict=True)):
            apart = p.detach().cpu() - 0.5
            grad = (weight + 0.1) * apart
            loss += float((grad * apart).double().sum())
            p.grad = None if i == self.without else self.place(grad)
        return loss


def random(*shapes: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    return [torch.randn(shape, dtype=torch.float64).to(dtype) for shape in shapes]


def course(tensors: list[Tensor], backend: Backend | None, steps: int = 3, without: int = -1, **arguments: Any) -> Any:
    problem = Quadratic(tensors, backend, without)
    optimizer = fusedopt.LBFGS(problem.params, **{"max_iter": 3, "history_size": 4, **arguments})
    with backend.at_work() if backend else nullcontext():
        for _ in range(steps):
            optimizer.step(problem.closure)
    state = {**optimizer.state[problem.params[0]]}
    cpu = torch.utils._pytree.tree_map(lambda x: x.cpu() if isinstance(x, Tensor) else x, state)
    return [[p.detach().cpu() for p in problem.params], cpu]


# Tensors that begin and end inside chunks, beside one of many chunks, one of none and one of exactly one.
SHAPES = [(3, 5), *[(17,)] * 70, (3 * CHUNK + 5,), (0, 3), (), (CHUNK,), (2, 700), (1,)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("arguments", KINDS)
def test_the_bits_are_the_cpus(backend: Backend, arguments: dict[str, Any], dtype: torch.dtype) -> None:
    tensors = random(*SHAPES, dtype=dtype)
    assert_identical(course(tensors, backend, **arguments), course(tensors, None, **arguments))


@pytest.mark.parametrize("numel", [1, 31, CHUNK - 1, CHUNK, CHUNK + 1, 8 * CHUNK, 300 * CHUNK + 7])
def test_sizes_around_chunks_and_blocks(backend: Backend, numel: int) -> None:
    tensors = random((numel,), dtype=torch.float32)
    assert_identical(course(tensors, backend, **FIXED), course(tensors, None, **FIXED))


def test_a_history_longer_than_a_launch_can_carry(backend: Backend) -> None:
    """A launch has room for 128 vectors; the sweep of the direction also has to scale between two of them."""
    tensors = random((40,), (7,), dtype=torch.float64)
    arguments = {"lr": 0.02, "max_iter": 150, "max_eval": 1000, "history_size": 200, "tolerance_change": 0}
    assert_identical(course(tensors, backend, 1, **arguments), course(tensors, None, 1, **arguments))


@pytest.mark.parametrize("pairs", [64, 127, 128, 129])
def test_launches_that_end_where_the_sum_is_scaled(backend: Backend, pairs: int) -> None:
    tensors = random((40,), dtype=torch.float64)
    arguments = {"lr": 0.02, "max_iter": pairs + 2, "max_eval": 1000, "history_size": pairs, "tolerance_change": 0}
    assert_identical(course(tensors, backend, 1, **arguments), course(tensors, None, 1, **arguments))


@pytest.mark.parametrize("layout", OF_ONE_SHAPE, ids=str)
def test_strides(backend: Backend, layout: Layout) -> None:
    tensors = random((50,), tuple(layout.shape), (3,), dtype=torch.float32)
    tensors[1] = layout.place(tensors[1]).tensor
    for arguments in (FIXED, WOLFE):
        assert_identical(course(tensors, backend, **arguments), course(tensors, None, **arguments))


def test_no_gradient_is_one_of_zeros(backend: Backend) -> None:
    tensors = random((2000,), (300,), (5,), dtype=torch.float32)
    for without in range(3):
        found, expected = (course(tensors, place, without=without, **WOLFE) for place in (backend, None))
        assert_identical(found, expected)
        assert torch.equal(found[0][without], tensors[without])


def test_a_nan_reaches_the_host(backend: Backend) -> None:
    tensors = random((3000,), dtype=torch.float32)
    tensors[0][1234] = torch.nan
    found, expected = (course(tensors, place, 1, **FIXED) for place in (backend, None))
    assert found[1]["func_evals"] == expected[1]["func_evals"] > 1
    assert torch.equal(found[0][0].isnan(), expected[0][0].isnan())


def test_launches(backend: Backend) -> None:
    """An iteration is a sweep for the products, one for the direction, one to move; the first two add up what they
    found. A check of the gradient is part of the first."""
    problem = Quadratic(random((5000,), (30,), dtype=torch.float32), backend)
    optimizer = fusedopt.LBFGS(problem.params, max_iter=1, **FIXED)
    with backend.at_work() if backend else nullcontext():
        for _ in range(3):
            optimizer.step(problem.closure)
        assert backend.launches(lambda: optimizer.step(problem.closure)) == 5


def test_a_failed_launch_is_an_error(emulated: Emulated) -> None:
    problem = Quadratic(random((50,), dtype=torch.float32), emulated)
    optimizer = fusedopt.LBFGS(problem.params, **FIXED)
    emulated.control.inject_error(701)
    with emulated.at_work(), pytest.raises(RuntimeError, match="this step wrote nothing"):
        optimizer.step(problem.closure)
