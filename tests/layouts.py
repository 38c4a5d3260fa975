"""The ways in which a tensor may lie in memory, each inside a buffer that shows any stray write."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

GUARD = 99.0


class Placed:
    """A copy of values as a view into a larger buffer whose other elements must never change."""

    def __init__(self, base: Sequence[int], view: Callable[[Tensor], Tensor], values: Tensor) -> None:
        self.base = torch.full(tuple(base), GUARD, dtype=values.dtype)
        self.tensor = view(self.base)
        self.tensor.copy_(values)
        self.others = torch.ones(tuple(base), dtype=torch.bool)
        view(self.others).fill_(False)

    def assert_others_untouched(self) -> None:
        assert (self.base[self.others] == GUARD).all()


@dataclass(frozen=True)
class Layout:
    """How a tensor of one shape lies in a buffer."""

    name: str
    base: tuple[int, ...]
    view: Callable[[Tensor], Tensor]

    @property
    def shape(self) -> torch.Size:
        return self.view(torch.empty(self.base)).shape

    def place(self, values: Tensor) -> Placed:
        return Placed(self.base, self.view, values)

    def __str__(self) -> str:
        return self.name


# Layouts of one shape, so that a param, its gradient and its states may each have their own.
OF_ONE_SHAPE = [
    Layout("contiguous", (4, 3, 5, 6), lambda b: b),
    Layout("channels-last", (4, 5, 6, 3), lambda b: b.permute(0, 3, 1, 2)),
    Layout("transposed", (4, 3, 6, 5), lambda b: b.transpose(2, 3)),
    Layout("reversed", (6, 5, 3, 4), lambda b: b.permute(3, 2, 1, 0)),
    Layout("every-second", (4, 3, 5, 12), lambda b: b[..., ::2]),
    Layout("gaps-everywhere", (5, 8, 7, 13), lambda b: b[1:, 1:7:2, 1:6, 2:13:2]),
    Layout("transposed-gaps", (4, 6, 8, 3), lambda b: b[:, :, 2:7].permute(0, 3, 2, 1)),
    Layout("offset-by-one", (361,), lambda b: b[1:].view(4, 3, 5, 6)),
]

OTHERS = [
    Layout("channels-last-3d", (2, 2, 4, 3, 5), lambda b: b.permute(0, 4, 1, 2, 3)),
    Layout("vector-every-second", (134,), lambda b: b[::2]),
    Layout("columns", (9, 7), lambda b: b[:, 1:5]),
    Layout("one-column", (67, 5), lambda b: b[:, 3]),
    Layout("0-dim", (), lambda b: b),
    Layout("0-dim-inside", (5,), lambda b: b[2]),
    Layout("empty", (0, 3), lambda b: b),
    Layout("empty-inside", (4, 6), lambda b: b[2:2, ::2]),
    Layout("one-element-inside", (5, 5), lambda b: b[2:3, 3:4]),
    Layout("size-1-middle", (12,), lambda b: b.as_strided((4, 1, 3), (3, 777, 1))),
    Layout("size-1-outer", (67,), lambda b: b.as_strided((1, 67), (5, 1))),
    Layout("size-1-inner", (67,), lambda b: b.as_strided((67, 1), (1, 41))),
    Layout("size-1-zero-stride", (67,), lambda b: b.as_strided((1, 67, 1), (0, 1, 0))),
    Layout("1x1-convolution", (8, 1, 1, 16), lambda b: b.permute(0, 3, 1, 2)),
    Layout("six-dimensions-with-gaps", (3,) * 6, lambda b: b[:2, :2, :2, :2, :2, ::2].permute(3, 1, 5, 0, 2, 4)),
]
