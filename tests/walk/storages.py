"""How far a number may be from its exact value once it is stored: half a unit, or one where chance rounds it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 256
# The largest magnitude of a code in units, and half of the step between codes for a number of one unit more.
_CODES = {"int8": (61439, 1 / 16), "uint8": (15 * 2**28, 1 / 16), "int4": (11, 1 / 4), "uint4": (191, 1 / 4)}


def spacing(values: Tensor, dtype: torch.dtype) -> Tensor:
    """The distance between neighbouring numbers of a dtype, at each of some float64 values."""
    info = torch.finfo(dtype)
    exponent = torch.frexp(values.abs().clamp_min(info.tiny)).exponent - 1
    return info.eps * torch.exp2(exponent.double())


@dataclass(frozen=True)
class Storage:
    """One way to store a tensor; `chance`: rounded up or down so that the mean is exact, else to nearest."""

    name: str
    chance: bool = False

    @property
    def coded(self) -> bool:
        return self.name in _CODES

    def rooted(self, values: Tensor) -> Tensor:
        """The numbers that are stored for these: squares in float16 are kept as their roots."""
        return values.clamp_min(0).sqrt() if self.name == "root-float16" else values

    def unit(self, values: Tensor, order: Tensor) -> Tensor:
        """The step between neighbours at each value; `order` is a tensor in the order of whose memory codes lie."""
        if self.name == "compensated-bfloat16" or self.name == "compensated-float16":
            dtype = getattr(torch, self.name.removeprefix("compensated-"))
            return spacing(spacing(values, dtype) / 2, dtype)
        if not self.coded:
            return spacing(values, getattr(torch, self.name.removeprefix("root-")))
        most, half = _CODES[self.name]
        unit = _largest_of_block(values, order) / most
        nearest = 2 * half * (values.abs() + unit)
        # What is not 0 is kept from the code 0 where a state is divided by.
        return nearest if not self.name.startswith("u") else nearest + 4 * half * unit * (values.abs() <= unit)

    def rounding(self, values: Tensor, order: Tensor) -> Tensor:
        """What storing may change at each value, beside a hair for the arithmetic of codes."""
        unit = self.unit(self.rooted(values), order)
        return unit * (1.0 if self.chance else 0.5) * (1 + 1e-4)


def _largest_of_block(values: Tensor, order: Tensor) -> Tensor:
    """For each element the largest magnitude of the 256 that it lies with in memory."""
    dims = sorted(range(order.ndim), key=order.stride, reverse=True)
    moved = values.abs().permute(dims)
    flat = moved.reshape(-1)
    blocks = torch.nn.functional.pad(flat, (0, -flat.numel() % BLOCK)).view(-1, BLOCK)
    largest = blocks.amax(1, keepdim=True).expand(-1, BLOCK).reshape(-1)[: flat.numel()]
    back = sorted(range(len(dims)), key=dims.__getitem__)
    return largest.view(moved.shape).permute(back)
