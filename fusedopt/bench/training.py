"""``step()`` inside a real loop: forward, backward, step of a network with about 13 million parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .baselines import BASELINES, CONTROL, OURS
from .clock import Clock, Cpu
from .contest import Contest
from .entrants import GradientPool
from .method import Contestant, Ratio, Rounds, bootstrap, compare
from .suites import Suite

BATCH, IMAGE, CLASSES = 16, 16, 10


def make_network() -> nn.Module:
    """Convolutions and wide linear layers, so that torch's own thread pool has worked on both just before the step."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(64, 256, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(256 * (IMAGE // 4) ** 2, 2048),
        nn.ReLU(),
        nn.Linear(2048, 2048),
        nn.ReLU(),
        nn.Linear(2048, CLASSES),
    )


SUITE = Suite(
    "training-loop",
    (
        *((64, 3, 3, 3), (64,), (256, 64, 3, 3), (256,)),
        *((2048, 4096), (2048,), (2048, 2048), (2048,), (CLASSES, 2048), (CLASSES,)),
    ),
    10,
    12_757_002,
)


@dataclass
class Trainee:
    """A network and its optimizer, which can be stepped in isolation or inside the loop."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    call: Callable[[], object]
    images: Tensor
    labels: Tensor
    pool: GradientPool
    turn: int = 0

    @property
    def params(self) -> list[Tensor]:
        return list(self.network.parameters())

    def backward(self) -> None:
        self.optimizer.zero_grad()
        F.cross_entropy(self.network(self.images), self.labels).backward()

    def random_gradients(self) -> None:
        for param, grad in zip(self.params, self.pool.draw(self.turn), strict=True):
            param.grad = grad.view(param.shape)
        self.turn += 1


def make_trainees(contest: Contest, clock: Clock | None = None) -> dict[str, Trainee]:
    """Ours, the rivals and the control, each with a network of its own."""
    clock = clock or Cpu()
    generator = torch.Generator(clock.device).manual_seed(0)
    images = torch.randn(BATCH, 3, IMAGE, IMAGE, generator=generator, device=clock.device, dtype=contest.dtype)
    labels = torch.randint(CLASSES, (BATCH,), generator=generator, device=clock.device)
    pool = GradientPool(contest.suite.sizes, contest.dtype, generator)

    def trainee(name: str) -> Trainee:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = make_network().to(clock.device, contest.dtype)
        baseline = BASELINES[name]
        optimizer = baseline.make(contest, contest.grouped(list(network.parameters())))
        return Trainee(network, optimizer, baseline.wrap(optimizer, clock), images, labels, pool)

    return {name: trainee(name) for name in (OURS, *contest.rivals, CONTROL)}


def isolated(trainees: dict[str, Trainee]) -> list[Contestant]:
    return [Contestant(name, t.call, t.random_gradients) for name, t in trainees.items()]


def in_loop(trainees: dict[str, Trainee]) -> list[Contestant]:
    return [Contestant(name, t.call, t.backward) for name, t in trainees.items()]


def kept_ratio(rival: str, isolated: Rounds, in_loop: Rounds) -> Ratio:
    """What of the isolated speed-up is left in the loop: the quotient of the two ratios, each resampled on its own."""
    inside, outside = (compare(rounds[rival], rounds[OURS]) for rounds in (in_loop, isolated))
    draws = bootstrap(in_loop[rival], in_loop[OURS]) / bootstrap(isolated[rival], isolated[OURS], seed=1)
    low, high = np.percentile(draws, [5, 95])
    return Ratio(inside.value / outside.value, float(low), float(high))
