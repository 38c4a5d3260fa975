"""What no optimizer can beat: memory traffic alone, measured on the same clock in the same run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import _C
from .clock import DEVICE, STEP, Clock, Cuda
from .method import Contestant, Effort, Rounds, interleave, summarise, warm_up

BARE, COPY, ADD = "bare loop", "copy", "addition"
FLOORS = (BARE, COPY)
# What the measurement of the bandwidth is called.
STREAMING = "streaming"
# Many times the last level of cache: 256 MiB in four arrays of float32 on a CPU, two buffers of 1 GiB on a GPU.
CPU_ELEMENTS, CUDA_BYTES = 2**24, 2**30
SECONDS = 4.0


class BareLoop:
    """The memory traffic of Adam and nothing else: one pass with 4 loads and 3 stores per element."""

    BYTES = 28
    APART = 2**14  # elements between two arrays

    def __init__(self, elements: int) -> None:
        # Random, since memory and arithmetic can be faster on zeros; what the loop adds up stays finite for years.
        # Arrays of their own might have addresses that differ in the upper bits alone, as allocators have it, and keep
        # each other out of a cache.
        memory = torch.randn(4 * (elements + self.APART))
        self.param, self.exp_avg, self.exp_avg_sq, self.grad = (
            memory[at * (elements + self.APART) :][:elements] for at in range(4)
        )
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


class Add:
    """One array added to another in place, by torch: 2 loads and 1 store per element."""

    def __init__(self, target: Tensor, source: Tensor) -> None:
        self.target, self.source = target, source
        self.traffic = source.nbytes + 2 * target.nbytes

    def __call__(self) -> None:
        self.target.add_(self.source)


@dataclass(frozen=True)
class Ceiling:
    """The streaming bandwidth of a device: who reaches it, in how many bytes, and how fast."""

    contestant: Contestant
    traffic: int
    gb_per_s: float
    # Of all that were tried.
    rounds: Rounds
    bytes: dict[str, int]


def measure_ceiling(clock: Clock, rounds: int = 9) -> Ceiling:
    """The fastest of what streams: a copy on a GPU; on a CPU also Adam's traffic without Adam, and an addition.

    No simple program is the fastest everywhere: a copy reads the line that it is about to overwrite, and the bare loop
    is compiled for the baseline instruction set.
    """
    streams: dict[str, BareLoop | Copy | Add]
    if isinstance(clock, Cuda):
        mode, streams = DEVICE, {COPY: copies([CUDA_BYTES], clock)[CUDA_BYTES]}
    else:
        bare = BareLoop(CPU_ELEMENTS)
        copy, add = Copy(bare.grad, bare.exp_avg), Add(bare.param, bare.grad)
        mode, streams = STEP, {BARE: bare, COPY: copy, ADD: add}
    contestants = [Contestant(name, stream) for name, stream in streams.items()]
    warm_up(contestants, 2)
    measured = interleave(contestants, Effort(rounds, seconds=SECONDS, minimum=3), measure=clock.measure(mode))
    moved = {name: stream.traffic for name, stream in streams.items()}
    rates = {name: moved[name] / summarise(samples).median for name, samples in measured.items()}
    best = max(contestants, key=lambda contestant: rates[contestant.name])
    return Ceiling(best, moved[best.name], rates[best.name], measured, moved)
