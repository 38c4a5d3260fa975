"""The parameter sets that the benchmarks time: exact shapes, with the totals of the real models asserted."""

from __future__ import annotations

import math
from dataclasses import dataclass

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Suite:
    """Shapes of one parameter set; ``tensors`` and ``elements`` are what the shapes must add up to."""

    name: str
    shapes: tuple[Shape, ...]
    tensors: int
    elements: int
    group_each: bool = False  # a param group for every tensor, as layer-wise learning rates make them

    def __post_init__(self) -> None:
        found = (len(self.shapes), sum(self.sizes))
        if found != (self.tensors, self.elements):
            raise ValueError(f"suite {self.name}: {found} tensors and elements, not {(self.tensors, self.elements)}")

    @property
    def sizes(self) -> list[int]:
        return [math.prod(shape) for shape in self.shapes]


def resnet50() -> tuple[Shape, ...]:
    """ImageNet ResNet-50 in the order of ``parameters()``: convolutions without bias, two vectors per batch norm."""
    shapes: list[Shape] = []

    def conv_norm(out: int, inp: int, kernel: int) -> None:
        shapes.extend([(out, inp, kernel, kernel), (out,), (out,)])

    conv_norm(64, 3, 7)
    channels = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            conv_norm(width, channels, 1)
            conv_norm(width, width, 3)
            conv_norm(4 * width, width, 1)
            if block == 0:
                conv_norm(4 * width, channels, 1)
            channels = 4 * width
    shapes.extend([(1000, 2048), (1000,)])
    return tuple(shapes)


def gpt2() -> tuple[Shape, ...]:
    """GPT-2 small with the output layer tied to the token embedding; linear weights stored input by output."""
    d = 768
    layer: list[Shape] = [
        (d,),
        (d,),
        (d, 3 * d),
        (3 * d,),
        (d, d),
        (d,),
        (d,),
        (d,),
        (d, 4 * d),
        (4 * d,),
        (4 * d, d),
        (d,),
    ]
    return ((50257, d), (1024, d), *(layer * 12), (d,), (d,))


SUITES = {
    suite.name: suite
    for suite in (
        Suite("8x256", ((256,),) * 8, 8, 2_048),
        Suite("1000x256", ((256,),) * 1000, 1000, 256_000),
        Suite("480groups", ((256,),) * 480, 480, 122_880, group_each=True),
        Suite("resnet50", resnet50(), 161, 25_557_032),
        Suite("gpt2", gpt2(), 148, 124_439_808),
        Suite("1x32Mi", ((33_554_432,),), 1, 33_554_432),
    )
}
