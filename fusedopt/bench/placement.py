"""How a tensor lies in memory: copies of one value in each layout that a training loop may hand to a step."""

from __future__ import annotations

from torch import Tensor

CONTIGUOUS, MISALIGNED, TRANSPOSED, CHANNELS_LAST, STRIDED = LAYOUTS = (
    "contiguous",
    "misaligned",
    "transposed",
    "channels-last",
    "strided",
)


def place(value: Tensor, layout: str = CONTIGUOUS, offset: int = 0) -> Tensor:
    """A copy of its own, ``offset`` elements into its storage. Tensors with too few dimensions stay contiguous.

    MISALIGNED is an offset of one element, TRANSPOSED swaps the last two dimensions in memory, CHANNELS_LAST holds for
    four dimensions, and STRIDED leaves a gap of one element after each.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"there is no layout {layout!r}; layouts are {', '.join(LAYOUTS)}")
    offset = max(offset, int(layout == MISALIGNED))
    if layout == TRANSPOSED and value.dim() >= 2:
        return place(value.mT.contiguous(), offset=offset).mT
    if layout == CHANNELS_LAST and value.dim() == 4:
        return place(value.permute(0, 2, 3, 1).contiguous(), offset=offset).permute(0, 3, 1, 2)
    gap = 2 if layout == STRIDED else 1
    if not offset and gap == 1:
        return value.clone()
    room = value.new_empty(offset + gap * value.numel())
    strides = [gap * stride for stride in value.contiguous().stride()]
    return room.as_strided(value.shape, strides, offset).copy_(value)
