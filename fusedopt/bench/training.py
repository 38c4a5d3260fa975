"""``step()`` inside a real loop: forward, backward, step of a network."""

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
from .networks import NETWORKS


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
    """Ours, the rivals and the control, each with a network of its own, that which has the contest's params."""
    clock = clock or Cpu()
    kind = NETWORKS[contest.suite.name]
    generator = torch.Generator(clock.device).manual_seed(0)
    size = (kind.batch, 3, kind.image, kind.image)
    images = torch.randn(size, generator=generator, device=clock.device, dtype=contest.dtype)
    labels = torch.randint(kind.classes, (kind.batch,), generator=generator, device=clock.device)
    # In the order of a network's own params.
    pool = GradientPool([p.numel() for p in kind.make().parameters()], contest.dtype, generator)

    def trainee(name: str) -> Trainee:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = kind.make().to(clock.device, contest.dtype)
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
