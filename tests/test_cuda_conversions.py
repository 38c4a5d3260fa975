"""16-bit storage is read and written as IEEE rounds: on a GPU, which has conversions of its own, for all numbers.

SGD with lr = 1 on a param of zeros stores the negated gradient and nothing else.
"""

from __future__ import annotations

import pytest
import torch
from runs import give
from torch.nn import Parameter

import fusedopt

HALVES = [torch.bfloat16, torch.float16]
CHUNK = 1 << 28


def devices() -> list[str]:
    built = fusedopt.capabilities()["cuda"]["built"] and torch.cuda.is_available()
    return ["cpu", "cuda"] if built else ["cpu"]


def negated(grad: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    param = Parameter(torch.zeros(grad.shape, dtype=dtype, device=grad.device))
    give(param, grad)
    fusedopt.SGD([param], lr=1.0).step()
    return param.detach()


def assert_equal_numbers(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal bits, except that one NaN is as good as another."""
    integer = {2: torch.int16, 4: torch.int32}[actual.element_size()]
    both_nan = actual.isnan() & expected.isnan()
    assert torch.equal(actual.view(integer).masked_fill(both_nan, 0), expected.view(integer).masked_fill(both_nan, 0))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("device", devices())
def test_every_float_is_rounded_to_the_nearest(device: str, dtype: torch.dtype) -> None:
    if device == "cuda":
        bits = (torch.arange(start, start + CHUNK, device=device) for start in range(0, 1 << 32, CHUNK))
    else:
        bits = iter([torch.arange(0, 1 << 32, 257)[: 1 << 23], torch.arange(0, 1 << 32, 1021)])
    for chunk in bits:
        grad = chunk.to(torch.int32).view(torch.float32)
        assert_equal_numbers(negated(grad, dtype), (0.0 - grad).to(dtype))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("device", devices())
def test_every_half_is_read_exactly(device: str, dtype: torch.dtype) -> None:
    grad = torch.arange(1 << 16, device=device).to(torch.int16).view(dtype)
    assert_equal_numbers(negated(grad, torch.float32), 0.0 - grad.float())
