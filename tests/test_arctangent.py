"""The arctangent of csrc/rules/rule.h, by way of AdamAtan2: within 1.7 ulps, and right where nothing is near."""

from __future__ import annotations

import numpy as np
import pytest
import tiers
import torch
from support import every_isa
from torch.nn import Parameter

import fusedopt

FLOATS = pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=lambda dtype: dtype.__name__)


def angles(y: np.ndarray, v: np.ndarray) -> np.ndarray:
    """atan2(y, sqrt(v)) of a late step, which corrects nothing; a gradient of 0 halves both averages."""
    param = Parameter(torch.zeros(y.shape, dtype=torch.from_numpy(y).dtype))
    param.grad = torch.zeros_like(param)
    optimizer = fusedopt.AdamAtan2([param], lr=1.0, betas=(0.5, 0.5), a=1.0)
    averages = {"exp_avg": torch.from_numpy(y) * 2, "exp_avg_sq": torch.from_numpy(v) * 2}
    optimizer.state[param] = {"step": torch.tensor(1000.0), **averages}
    optimizer.step()
    # Of a zero the sign is lost in 0 - 0.
    return -param.detach().numpy()


def largest_error(y: np.ndarray, v: np.ndarray) -> float:
    """In units of the last place."""
    exact = np.arctan2(y.astype(np.longdouble), np.sqrt(v).astype(np.longdouble))
    info = np.finfo(y.dtype)
    _, exponent = np.frexp(np.maximum(np.abs(exact), info.tiny))
    unit = np.ldexp(np.longdouble(info.eps), exponent - 1)
    return float((np.abs(angles(y, v) - exact) / unit).max())


@FLOATS
@every_isa
@pytest.mark.usefixtures("isa")
def test_the_error_is_below_two_ulps(dtype: type) -> None:
    if np.finfo(np.longdouble).nmant <= np.finfo(dtype).nmant:
        pytest.skip("needs a long double that is longer")
    generator = np.random.default_rng(0)
    count = 1 << 18
    signs = generator.choice([-1, 1], count)
    ones = np.ones(count, dtype)
    for tangents in (generator.uniform(0, 1, count), np.exp(generator.normal(0, 1, count)), np.exp(60 * ones)):
        assert largest_error((signs * tangents).astype(dtype), ones) < 1.7
    # Of all magnitudes, to where the ratio is subnormal.
    heights, squares = (np.exp(generator.normal(0, 15, count)).astype(dtype) for _ in range(2))
    assert largest_error(heights, squares) < 1.7


def test_every_float32_of_two_binades() -> None:
    """On both sides of 1, where the arctangent is taken of the inverse; the polynomial is worst there.

    Without --all one in seven.
    """
    step = 1 if tiers.everything else 7
    bits = np.arange(np.float32(0.5).view(np.int32), np.float32(2).view(np.int32), step, dtype=np.int32)
    y = bits.view(np.float32)
    assert largest_error(y, np.ones_like(y)) < 1.7


@FLOATS
@every_isa
@pytest.mark.usefixtures("isa")
def test_special_values_are_libms(dtype: type) -> None:
    info = np.finfo(dtype)
    y = np.array([0, np.inf, -np.inf, np.nan, 1, -1, info.smallest_subnormal, info.tiny, info.max / 2], dtype)
    x = np.array([0, np.inf, np.nan, 1, np.sqrt(info.tiny)], dtype)
    y, x = (grid.ravel() for grid in np.meshgrid(y, x))
    # Enough of them for whole vectors and an end.
    y, x = np.tile(y, 7), np.tile(x, 7)
    with np.errstate(over="ignore"):
        exact = np.arctan2(y.astype(np.longdouble), np.sqrt(x * x).astype(np.longdouble)).astype(dtype)
    np.testing.assert_array_equal(angles(y, x * x), exact)
