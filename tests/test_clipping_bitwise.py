"""A norm has the same bits for every instruction set, thread count and place of its gradients in memory."""

from __future__ import annotations

import pytest
import torch
from support import EMULATED, assert_identical, vector_isa
from test_clipping import DTYPES, ORDERS, SHAPES, params_with
from torch import Tensor

import fusedopt
from fusedopt import _C

pytestmark = pytest.mark.skipif(EMULATED, reason="one instruction set, one thread")


def spread(*size: int, dtype: torch.dtype) -> Tensor:
    """Random numbers over some orders of magnitude, so that the order of additions shows."""
    if dtype.is_complex:
        return torch.complex(*(spread(*size, dtype=dtype.to_real()) for _ in range(2)))
    return (torch.randn(size, dtype=torch.float64) * torch.exp(2 * torch.randn(size, dtype=torch.float64))).to(dtype)


def results(grads: list[Tensor], order: float) -> list[Tensor]:
    """The total, the norm and the clipped gradients."""
    params = params_with(*grads)
    total = fusedopt.local_grad_norm(params, order)
    norm = fusedopt.clip_grad_norm_(params, 0.3, order)
    return [total, norm, *(p.grad for p in params if p.grad is not None)]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@vector_isa
@pytest.mark.usefixtures("isa")
def test_instruction_sets_agree(dtype: torch.dtype, order: float) -> None:
    grads = [spread(*shape, dtype=dtype) for shape in SHAPES]
    found = results(grads, order)
    _C.use_isa("generic")
    assert_identical(found, results(grads, order))


# Enough for a team of threads, and split between them inside tensors.
@pytest.mark.parametrize("order", [2.0, 1.0, float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64], ids=str)
def test_thread_counts_agree(dtype: torch.dtype, order: float) -> None:
    grads = [spread(n, dtype=dtype) for n in (2_500_003, 17, 1_300_000, 1025)]
    torch.set_num_threads(1)
    expected = results(grads, order)
    for threads in (2, 3, 5):
        torch.set_num_threads(threads)
        assert_identical(results(grads, order), expected)
        assert torch.get_num_threads() == threads


def test_addresses_do_not_matter() -> None:
    grad = spread(5000, dtype=torch.float32)
    moved = torch.zeros(5003)[3:]
    moved.copy_(grad)
    strided = torch.zeros(5000, 2)
    strided[:, 1] = grad
    expected = fusedopt.local_grad_norm(params_with(grad))
    for same in (moved, strided[:, 1]):
        param = torch.nn.Parameter(torch.zeros_like(same))
        param.grad = same
        assert_identical(fusedopt.local_grad_norm(param), expected)


def test_a_sum_is_not_that_of_another_order() -> None:
    """The numbers of these tests tell orders apart."""
    grad = spread(5000, dtype=torch.float32)
    assert fusedopt.local_grad_norm(params_with(grad)) != fusedopt.local_grad_norm(params_with(grad.flip(0)))
