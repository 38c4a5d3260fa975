"""What no optimizer can beat: memory traffic alone, measured on the same clock in the same run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import _C
from .clock import DEVICE, STEP, Clock, Cuda
from .method import Contestant, Effort, interleave, summarise, warm_up

BARE, COPY = "bare loop", "copy"
FLOORS = (BARE, COPY)
# Many times the last level of cache: 256 MiB in four arrays of float32 on a CPU, two buffers of 1 GiB on a GPU.
CPU_ELEMENTS, CUDA_BYTES = 2**24, 2**30
SECONDS = 4.0


class BareLoop:
    """The memory traffic of Adam and nothing else: one pass with 4 loads and 3 stores per element."""

    BYTES = 28

    def __init__(self, elements: int) -> None:
        # Random, since memory and arithmetic can be faster on zeros; what the loop adds up stays finite for years.
        self.param, self.exp_avg, self.exp_avg_sq, self.grad = (torch.randn(elements) for _ in range(4))
        self.traffic = self.BYTES * elements

    def __call__(self) -> None:
        _C.adam_traffic(self.param, self.grad, self.exp_avg, self.exp_avg_sq)


class Copy:
    """A device-to-device copy: as much memory traffic as a step of that many bytes needs at the very least."""

    def __init__(self, source: Tensor, target: Tensor) -> None:
        self.source, self.target = source, target
        self.traffic = source.nbytes + target.nbytes

    def __call__(self) -> None:
        self.target.copy_(self.source)


def copies(sizes: Sequence[int], clock: Clock) -> dict[int, Copy]:
    """Copies of so many bytes out of one buffer into another; random, since memory can be faster on zeros."""
    source, target = (torch.randn(max(sizes) // 4, device=clock.device) for _ in range(2))
    return {size: Copy(source[: size // 4], target[: size // 4]) for size in sizes}


@dataclass(frozen=True)
class Ceiling:
    """The streaming bandwidth of a device: who reaches it, in how many bytes and how fast."""

    contestant: Contestant
    traffic: int
    gb_per_s: float
    samples: list[int]


def measure_ceiling(clock: Clock, rounds: int = 9) -> Ceiling:
    """Adam's traffic without Adam on a CPU, where reads and writes cost differently; on a GPU a copy."""
    floor: BareLoop | Copy
    if isinstance(clock, Cuda):
        name, mode, floor = COPY, DEVICE, copies([CUDA_BYTES], clock)[CUDA_BYTES]
    else:
        name, mode, floor = BARE, STEP, BareLoop(CPU_ELEMENTS)
    contestant = Contestant(name, floor)
    warm_up([contestant], 2)
    samples = interleave([contestant], Effort(rounds, seconds=SECONDS, minimum=3), measure=clock.measure(mode))[name]
    return Ceiling(contestant, floor.traffic, floor.traffic / summarise(samples).median, samples)
