"""The networks whose training is timed: a small one that many steps can be taken of, and two that people train."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .suites import SUITES, Suite


@dataclass(frozen=True)
class Network:
    """How one is made, the params that it has, and the random images that it is trained on."""

    suite: Suite
    make: Callable[[], nn.Module]
    batch: int
    image: int
    classes: int


def small() -> nn.Module:
    """Convolutions and wide linear layers, so that torch's own thread pool has worked on both just before the step."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(64, 256, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(4096, 2048),
        nn.ReLU(),
        nn.Linear(2048, 2048),
        nn.ReLU(),
        nn.Linear(2048, 10),
    )


def convolved(inp: int, out: int, kernel: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inp, out, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out))


class Bottleneck(nn.Module):
    """A block of ResNet-50 (He et al., 2015), its stride in the middle convolution."""

    def __init__(self, inp: int, width: int, stride: int) -> None:
        super().__init__()
        self.first = convolved(inp, width, 1)
        self.second = convolved(width, width, 3, stride)
        self.third = convolved(width, 4 * width, 1)
        self.past = convolved(inp, 4 * width, 1, stride) if inp != 4 * width else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        inside = self.third(F.relu(self.second(F.relu(self.first(x)))))
        return F.relu(inside + self.past(x))


def resnet50() -> nn.Module:
    blocks: list[nn.Module] = []
    channels = 64
    for width, count in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(count):
            blocks.append(Bottleneck(channels, width, 2 if block == 0 and width > 64 else 1))
            channels = 4 * width
    stem = (convolved(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000))


class Layer(nn.Module):
    """A layer of a vision transformer (Dosovitskiy et al., 2020): attention and two linear maps, each after a norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_maps = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attend, self.merge = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.attend(self.before_attention(x)).unflatten(-1, (3, self.heads, -1)).unbind(2)
        seen = F.scaled_dot_product_attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
        x = x + self.merge(seen.transpose(1, 2).flatten(2))
        return x + self.narrow(F.gelu(self.widen(self.before_maps(x))))


class ViT(nn.Module):
    """A vision transformer over 16 x 16 patches of a 224 x 224 image."""

    def __init__(self, width: int = 768, layers: int = 12, heads: int = 12) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.places = nn.Parameter(torch.randn(1, 14 * 14 + 1, width) / 50)
        self.patches = nn.Conv2d(3, width, 16, 16)
        self.layers = nn.Sequential(*(Layer(width, heads) for _ in range(layers)))
        self.last, self.head = nn.LayerNorm(width), nn.Linear(width, 1000)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(images), -1, -1), patches], dim=1) + self.places
        return self.head(self.last(self.layers(x))[:, 0])


SMALL = Suite(
    "training-loop",
    (
        *((64, 3, 3, 3), (64,), (256, 64, 3, 3), (256,)),
        *((2048, 4096), (2048,), (2048, 2048), (2048,), (10, 2048), (10,)),
    ),
    10,
    12_757_002,
)

# Images of ResNet-50 are small, so that a backward pass is short; a vision transformer has one size of image.
NETWORKS = {
    network.suite.name: network
    for network in (
        Network(SMALL, small, 16, 16, 10),
        Network(SUITES["resnet50"], resnet50, 4, 64, 1000),
        Network(SUITES["vit-b16"], ViT, 1, 224, 1000),
    )
}
