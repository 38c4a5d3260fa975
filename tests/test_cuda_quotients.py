"""Roots and quotients of dense rows are IEEE's: on a GPU, which makes them by itself, all roots and many quotients.

Adadelta with rho = 1/2 and averages of 1 steps by the root of its other state, and Adamax by the quotient of its two.
"""

from __future__ import annotations

from itertools import product

import pytest
import torch
from runs import give
from test_cuda_conversions import assert_equal_numbers, devices
from torch import Tensor
from torch.nn import Parameter

import fusedopt

CHUNK = 1 << 26
LATE = 10000.0  # nothing is corrected any more
# Beside what a guard calls ordinary (csrc/cuda/guarded.cuh), on both sides of its ranges.
ENDS = [0.0, 2**-149, 2**-127, 2**-126, 2**-102, 2**-101, 2**-64, 2**-63, 0.1, 1.0, 2**24, 2**26.5, 2**27, 2**100]
ENDS += [float("inf"), float("nan")]


def floats(bits: Tensor) -> Tensor:
    return bits.to(torch.int32).view(torch.float32)


def stepped(cls: type, like: Tensor, grad: Tensor, states: dict[str, Tensor], **arguments: object) -> Tensor:
    """What a param of zeros loses by a late step."""
    param = Parameter(torch.zeros_like(like))
    give(param, grad)
    optimizer = cls([param], lr=1.0, eps=0.0, **arguments)
    optimizer.state[param] = {"step": torch.tensor(LATE), **states}
    optimizer.step()
    return -param.detach()


@pytest.mark.parametrize("device", devices())
def test_every_root(device: str) -> None:
    if device == "cuda":
        bits = (torch.arange(start, start + CHUNK, device=device) for start in range(0, 1 << 31, CHUNK))
    else:
        bits = iter([torch.arange(0, 1 << 31, 4099)])
    for chunk in bits:
        x = floats(chunk)
        ones = torch.ones_like(x)
        # Its own average halves what it is given.
        roots = stepped(fusedopt.Adadelta, x, ones, {"square_avg": ones.clone(), "acc_delta": x.clone()}, rho=0.5)
        # A double's root, rounded, is a float's; torch's own of floats may be off by a unit on a CPU.
        assert_equal_numbers(roots + 0.0, x.double().sqrt().float())


@pytest.mark.parametrize("device", devices())
def test_quotients_of_all_exponents(device: str) -> None:
    generator = torch.Generator(device).manual_seed(0)
    for _ in range(16 if device == "cuda" else 1):
        count = CHUNK if device == "cuda" else 1 << 20
        bits = torch.randint(0, 1 << 32, (2, count), generator=generator, device=device)
        a, b = floats(bits[0]), floats(bits[1]).abs()
        # Half of them of magnitudes that go together, in vectors of their own.
        half = count // 2
        a[:half] = torch.rand(half, generator=generator, device=device) + 0.5
        b[:half] = torch.rand(half, generator=generator, device=device) + 0.5
        states = {"exp_avg": a.clone(), "exp_inf": b.clone()}
        quotients = stepped(fusedopt.Adamax, a, torch.zeros_like(a), states, betas=(0.75, 0.5))
        assert_equal_numbers(quotients + 0.0, states["exp_avg"] / states["exp_inf"] + 0.0)


@pytest.mark.parametrize("beta1", [0.9, 0.5, 0.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("device", devices())
def test_rows_at_rest_and_out_of_the_ordinary(device: str, dtype: torch.dtype, beta1: float) -> None:
    """Alone in its vector or among its like, an element becomes what it does in a row with strides."""
    values = torch.tensor(list(product([*ENDS, *(-x for x in ENDS)], ENDS)), device=device).to(dtype)
    a, v = values.unbind(1)
    alone = torch.full((a.numel(), 8), 0.5, dtype=dtype, device=device)
    fourth = torch.arange(8, device=device) == 3
    a, v = (torch.cat([x, torch.where(fourth, x[:, None], alone).flatten()]) for x in (a, v))

    def step(dense: bool) -> list[Tensor]:
        stride = 1 if dense else 2
        param, grad, first, second = (
            torch.zeros(a.numel() * stride, dtype=dtype, device=device)[::stride] for _ in range(4)
        )
        first.copy_(a), second.copy_(v), param.fill_(0.25)
        optimizer = fusedopt.AdamW([leaf := Parameter(param)], lr=0.5, betas=(beta1, 0.999))
        give(leaf, grad)
        optimizer.state[leaf] = {"step": torch.tensor(7.0), "exp_avg": first, "exp_avg_sq": second}
        optimizer.step()
        return [param, first, second]

    for ours, expected in zip(step(dense=True), step(dense=False), strict=True):
        assert_equal_numbers(ours, expected.contiguous())
