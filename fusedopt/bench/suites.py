"""The parameter sets that benchmarks time: exact shapes, with the totals of the real models asserted."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Suite:
    """Shapes of one parameter set; ``tensors`` and ``elements`` are what the shapes must add up to."""

    name: str
    shapes: tuple[Shape, ...]
    tensors: int
    elements: int
    group_each: bool = False  # a param group for every tensor, as layer-wise learning rates make them
    offset: int = 0  # elements before each tensor in its storage: 1 leaves it aligned to no more than its dtype
    rows: int = 0  # of each table that a gradient holds, which is sparse then; 0: gradients are dense
    coalesced: bool = True  # sparse gradients list their rows in order

    def __post_init__(self) -> None:
        found = (len(self.shapes), sum(self.sizes))
        if found != (self.tensors, self.elements):
            raise ValueError(f"suite {self.name}: {found} tensors and elements, not {(self.tensors, self.elements)}")

    @property
    def sizes(self) -> list[int]:
        return [math.prod(shape) for shape in self.shapes]

    def cut(self, tensors: int = 6, side: int = 16) -> Suite:
        """The first few tensors with no side longer than ``side``: everything runs as it would, and proves nothing."""
        shapes = tuple(tuple(min(n, side) for n in shape) for shape in self.shapes[:tensors])
        elements = sum(math.prod(shape) for shape in shapes)
        return replace(self, shapes=shapes, tensors=len(shapes), elements=elements, rows=min(self.rows, side // 2))


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


def bert_large() -> tuple[Shape, ...]:
    """BERT-large, uncased vocabulary, with the pooler, as the bare model has it."""
    d = 1024
    attention: list[Shape] = [(d, d), (d,)] * 4
    layer: list[Shape] = [*attention, (d,), (d,), (4 * d, d), (4 * d,), (d, 4 * d), (d,), (d,), (d,)]
    return ((30522, d), (512, d), (2, d), (d,), (d,), *(layer * 24), (d, d), (d,))


def vit16(d: int, layers: int) -> tuple[Shape, ...]:
    """Vision transformer on 16 x 16 patches of a 224 x 224 image; query, key and value in one matrix."""
    layer: list[Shape] = [
        *[(d,), (d,), (3 * d, d), (3 * d,), (d, d), (d,)],
        *[(d,), (d,), (4 * d, d), (4 * d,), (d, 4 * d), (d,)],
    ]
    return ((1, 1, d), (d, 3, 16, 16), (d,), (1, 197, d), *(layer * layers), (d,), (d,), (1000, d), (1000,))


def llama_7b(shards: int) -> tuple[Shape, ...]:
    """One shard of Llama-7B, every tensor cut along its first dimension, as fully sharded training holds it."""
    d, hidden, vocabulary = 4096, 11008, 32000
    layer: list[Shape] = [*[(d, d)] * 4, (hidden, d), (hidden, d), (d, hidden), (d,), (d,)]
    whole: tuple[Shape, ...] = ((vocabulary, d), *(layer * 32), (d,), (vocabulary, d))
    return tuple((shape[0] // shards, *shape[1:]) for shape in whole)


def near(size: int, count: int) -> tuple[Shape, ...]:
    """Tensors of ``size`` plus 1, 2 or 3 elements, which vectors of four leave a rest of."""
    return tuple((size + 1 + i % 3,) for i in range(count))


MI = 2**20

SUITES = {
    suite.name: suite
    for suite in (
        Suite("1x64", ((64,),), 1, 64),
        Suite("1x1Mi", ((MI,),), 1, MI),
        Suite("1x32Mi", ((32 * MI,),), 1, 32 * MI),
        Suite("1x64Mi", ((64 * MI,),), 1, 64 * MI),
        Suite("8x256", ((256,),) * 8, 8, 2_048),
        Suite("1000x64", ((64,),) * 1000, 1000, 64_000),
        Suite("1000x256", ((256,),) * 1000, 1000, 256_000),
        Suite("1000x1024", ((1024,),) * 1000, 1000, 1_024_000),
        Suite("10000x64", ((64,),) * 10_000, 10_000, 640_000),
        Suite("465groups", ((256,),) * 465, 465, 119_040, group_each=True),
        Suite("480groups", ((256,),) * 480, 480, 122_880, group_each=True),
        Suite("699ramp", tuple((4 * i + 1 + i % 3,) for i in range(1, 700)), 699, 979998),
        Suite("misaligned", near(2**14, 256), 256, 256 * 2**14 + 511, offset=1),
        Suite("64x1Mi", ((MI,),) * 64, 64, 64 * MI),
        Suite("64x1Mi-misaligned", near(MI, 64), 64, 64 * MI + 127, offset=1),
        Suite("2matrices", ((768, 768), (3072, 768)), 2, 2_949_120),
        Suite("48matrices", ((768, 768),) * 24 + ((3072, 768),) * 24, 48, 70_778_880),
        Suite("embedding", ((1_000_000, 64),), 1, 64_000_000, rows=4096),
        Suite("embedding-uncoalesced", ((1_000_000, 64),), 1, 64_000_000, rows=4096, coalesced=False),
        Suite("resnet50", resnet50(), 161, 25_557_032),
        Suite("vit-b16", vit16(768, 12), 152, 86_567_656),
        Suite("gpt2", gpt2(), 148, 124_439_808),
        Suite("vit-l16", vit16(1024, 24), 296, 304_326_632),
        Suite("bert-large", bert_large(), 391, 335_141_888),
        Suite("llama7b-shard8", llama_7b(8), 291, 842_301_952),
        Suite("llama7b", llama_7b(1), 291, 6_738_415_616),
    )
}
