"""What checkpoints are written and read with, `_C.encode` and `_C.decode`, against the formula in torch's own words."""

from __future__ import annotations

import re
from pathlib import Path

import formula_of_codes as formula
import pytest
import torch
from torch import Tensor

from fusedopt import _C

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
CODES = ["int8", "uint8", "int4", "uint4"]


def ordinary(*size: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(size, generator=generator) * torch.exp2(6 * torch.randn(size, generator=generator))


def with_(*numbers: float) -> Tensor:
    """Ordinary numbers but for the first of each block."""
    value = ordinary(len(numbers) * formula.BLOCK)
    value[:: formula.BLOCK] = torch.tensor(numbers)
    return value


def bits(*patterns: int) -> Tensor:
    return torch.tensor(patterns, dtype=torch.int32).view(torch.float32)


VALUES = {
    "ordinary": ordinary(5000),
    "zeros": torch.zeros(600),
    "negative zeros": -torch.zeros(600),
    "denormals": torch.cat([bits(1, 2, 0x7FFFFF, 0x800000, 0x800001), ordinary(400) * 1e-39]),
    "the largest": with_(3.4028234663852886e38, -3.4028234663852886e38, 1e-38, 1e38),
    "infinities and what is no number": with_(float("inf"), float("-inf"), float("nan"), -float("nan"), 1.0),
    "one": torch.ones(1),
    "no dimension": torch.tensor(-2.5),
    "none": torch.zeros(0),
    "none of two dimensions": torch.zeros(3, 0),
    "255": ordinary(255),
    "257": ordinary(257),
    "halves": ordinary(700).half(),
    "brains": ordinary(700).bfloat16(),
    "doubles": ordinary(700).double() * (1 + 2.0**-30),
    "images": ordinary(4, 3, 7, 5).to(memory_format=torch.channels_last),
    "a transpose": ordinary(31, 17).T,
    "every other": ordinary(40, 50)[::2, ::3],
    "expanded": ordinary(1, 30).expand(20, 30),
}


def same(a: Tensor, b: Tensor) -> bool:
    """Bit by bit, but for what NaNs are made of."""
    assert a.dtype == b.dtype == torch.float32
    made, wanted = (torch.where(t.isnan(), torch.nan, t).contiguous().view(torch.int32) for t in (a, b))
    return torch.equal(made, wanted)


def both_ways(value: Tensor, code: str, model: Tensor, device: str) -> None:
    wanted_codes, wanted_scales = formula.encode(value, code, model)
    codes, scales = _C.encode(value.to(device), code, model)
    assert codes.device == scales.device == value.to(device).device
    assert (codes.dtype, codes.shape) == (wanted_codes.dtype, wanted_codes.shape)
    assert torch.equal(codes.cpu(), wanted_codes)
    assert same(scales.cpu(), wanted_scales)
    back, wanted = _C.decode(codes, scales, model.to(device)), formula.decode(wanted_codes, wanted_scales, model)
    assert back.stride() == wanted.stride()
    assert same(back.cpu(), wanted)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("name", VALUES)
def test_codes_are_those_of_the_formula(name: str, code: str, device: str) -> None:
    value = VALUES[name]
    value = value.abs() if code.startswith("u") else value
    both_ways(value, code, value, device)
    # In the order of another's memory.
    both_ways(value, code, value.contiguous(), device)
    both_ways(value.contiguous(), code, value, device)


@pytest.mark.parametrize("code", CODES)
def test_every_code_means_what_the_formula_says(code: str) -> None:
    """Also those that no number is given."""
    pattern = torch.arange(256, dtype=torch.uint8).repeat(2).view(-1, formula.bits_of(code) * formula.BLOCK // 8)
    codes = pattern.view(torch.uint8 if code.startswith("u") else torch.int8)
    model = torch.empty(len(codes) * formula.BLOCK)
    for scale in (1.0, 2.0**-126, 1e-45, 3e30, float("nan")):  # none is infinite: scale_of() makes that NaN, too
        scales = torch.full((len(codes),), scale)
        assert same(_C.decode(codes, scales, model), formula.decode(codes, scales, model))


@pytest.mark.parametrize("code", CODES)
def test_codes_of_another_order_are_read_in_it(code: str) -> None:
    value = ordinary(4, 3, 7, 5).abs()
    images = value.to(memory_format=torch.channels_last)
    codes, scales = _C.encode(value, code, images)
    order = _C.memory_order(images)
    assert order == tuple(formula.order_of(images)) == (0, 2, 3, 1)
    assert same(_C.decode(codes, scales, value, order), formula.decode(codes, scales, value, order))
    assert same(_C.decode(codes, scales, value, order), _C.decode(codes, scales, images).contiguous())


def test_codes_that_begin_in_the_middle_of_a_word_are_read() -> None:
    value = ordinary(600)
    codes, scales = _C.encode(value, "int8", value)
    moved = torch.cat([codes.flatten()[:1], codes.flatten()])[1:].view(codes.shape)
    assert same(_C.decode(moved, scales, value), _C.decode(codes, scales, value))
    apart = torch.stack([codes, codes], 2)[..., 0]
    assert same(_C.decode(apart, torch.stack([scales, scales], 1)[:, 0], value), _C.decode(codes, scales, value))


def test_gradients_do_not_follow_codes() -> None:
    param = torch.nn.Parameter(ordinary(600))
    codes, scales = _C.encode(param, "int8", param)
    assert not any(made.requires_grad for made in (codes, scales, _C.decode(codes, scales, param)))


def test_threads_make_the_same_codes() -> None:
    value = ordinary(300 * formula.BLOCK + 3)
    torch.set_num_threads(1)
    one = _C.encode(value, "int4", value)
    torch.set_num_threads(3)
    for made, wanted in zip(_C.encode(value, "int4", value), one, strict=True):
        assert torch.equal(made, wanted)


def test_what_is_no_code_is_refused() -> None:
    value = ordinary(600)
    codes, scales = _C.encode(value, "int8", value)
    for wrong in ("float16", "int3"):
        with pytest.raises(ValueError, match=rf"'{wrong}'"):
            _C.encode(value, wrong, value)
    with pytest.raises(ValueError, match="has the shape of its param"):
        _C.encode(value, "int8", value.view(2, 300))
    for made in (codes[:2], codes[:, :100], codes.float()):
        with pytest.raises(ValueError, match=r"are not those of a param of shape \[600\]; load the state anew"):
            _C.decode(made, scales, value)
    with pytest.raises(ValueError, match="with 2 scales are not those"):
        _C.decode(codes, scales[:2], value)
    with pytest.raises(TypeError, match="the value is not a tensor"):
        _C.encode([1.0], "int8", value)  # type: ignore[arg-type]


def test_the_numbers_of_the_codec_stand_in_one_place() -> None:
    csrc = Path(__file__).parent.parent / "csrc"
    assert re.search(rf"kCodeBlock = {_C.CODE_BLOCK};", (csrc / "step.h").read_text())
    assert _C.CODE_BLOCK == formula.BLOCK
    python = "".join(path.read_text() for path in (csrc.parent / "fusedopt").rglob("*.py"))
    assert not re.search(r"CODE_BLOCK = |LEAST_CODED = |0x3F800000", python)
