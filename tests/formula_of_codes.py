"""The codes of csrc/precision.h, written down once more in torch's operations: what the engines' are held against."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 256
_ONE = 0x3F800000


def order_of(tensor: Tensor) -> list[int]:
    """The dimensions of a tensor by descending strides, those that have but one place last."""
    return sorted(range(tensor.ndim), key=lambda d: -1 if tensor.shape[d] == 1 else tensor.stride(d), reverse=True)


def bits_of(code: str) -> int:
    return int(code.removeprefix("u").removeprefix("int"))


def _shift(bits: int) -> int:
    return 20 if bits == 8 else 22


def _units_and_one(codes: Tensor, bits: int) -> Tensor:
    return (_ONE + (codes << _shift(bits))).view(torch.float32)


def encode(value: Tensor, code: str, model: Tensor) -> tuple[Tensor, Tensor]:
    """The codes of a tensor, rounded to nearest, and their scales, for each 256 elements in the order of the model."""
    bits, signed = bits_of(code), not code.startswith("u")
    flat = value.detach().float().permute(order_of(model)).reshape(-1)
    blocks = torch.nn.functional.pad(flat, (0, -flat.numel() % BLOCK)).view(-1, BLOCK)
    magnitudes = blocks.abs()
    largest = magnitudes.amax(1, keepdim=True)
    top = _units_and_one(torch.tensor(2 ** (bits - signed) - 1, dtype=torch.int32), bits)
    units = top - 1
    scales = (largest / units * units / units).clamp(min=2.0**-126)
    finite = scales.isfinite()
    scales = torch.where(finite, scales, torch.nan)
    y = (magnitudes.double() * (1 / scales * (1 + 2.0**-20)) + 1).float()  # one rounding, as of fma
    most = torch.where(finite, top, 1)
    codes = torch.where(y < most, y, most).view(torch.int32) - _ONE + (1 << (_shift(bits) - 1))
    if not signed:
        codes = torch.maximum(codes, magnitudes.view(torch.int32).clamp(max=1 << _shift(bits)))
    codes >>= _shift(bits)
    if signed:
        codes += (blocks.signbit() & finite).int() << (bits - 1)
    # Place k of word w has element w + k * (words of a block); bytes are in the order of little endians.
    places = codes.view(len(codes), 32 // bits, BLOCK * bits // 32).mT
    if bits == 4:
        places = places[..., ::2] + (places[..., 1::2] << 4)
    packed = places.reshape(len(codes), BLOCK * bits // 8).to(torch.uint8)
    return packed.view(torch.int8) if signed else packed, scales[:, 0]


def decode(codes: Tensor, scales: Tensor, model: Tensor, order: tuple[int, ...] | None = None) -> Tensor:
    """What codes and scales stand for, in float32, with the shape and strides of the model."""
    bits, signed = 8 * codes.shape[1] // BLOCK, codes.dtype == torch.int8
    places = codes.view(torch.uint8).int().view(len(codes), BLOCK * bits // 32, 4)
    if bits == 4:
        places = torch.stack([places & 15, places >> 4], -1).flatten(2)
    blocks = places.mT.reshape(len(codes), BLOCK)
    negative = blocks >> (bits - 1) if signed else torch.zeros_like(blocks)
    magnitudes = _units_and_one(blocks - (negative << (bits - 1)), bits) - 1
    numbers = torch.where(negative != 0, -magnitudes, magnitudes) * scales[:, None]
    made = torch.empty_like(model, dtype=torch.float32)
    dims = list(order) if order is not None else order_of(model)
    made.permute(dims).copy_(numbers.view(-1)[: made.numel()].view([made.shape[d] for d in dims]))
    return made
