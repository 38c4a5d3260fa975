"""``step()`` inside a real loop: forward, backward, step of a network with about 13 million parameters."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from contest import CONTROL, OURS, GradientPool
from protocol import Contestant
from torch import Tensor, nn
from torch.nn import functional as F

import fusedopt

BATCH, IMAGE, CLASSES = 16, 16, 10
RIVAL = "torch fused"


def make_network() -> nn.Module:
    """Convolutions and wide linear layers, so that torch's own thread pool has worked on both just before the step."""
    torch.manual_seed(0)
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


@dataclass
class Trainee:
    """A network and its optimizer, which can be stepped in isolation or inside the loop."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
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


def make_trainees() -> dict[str, Trainee]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH, 3, IMAGE, IMAGE, generator=generator)
    labels = torch.randint(CLASSES, (BATCH,), generator=generator)
    networks = {name: make_network() for name in (OURS, RIVAL, CONTROL)}
    pool = GradientPool([p.numel() for p in networks[OURS].parameters()], torch.float32, generator)
    return {
        name: Trainee(
            network,
            torch.optim.AdamW(network.parameters(), fused=True)
            if name == RIVAL
            else fusedopt.AdamW(network.parameters()),
            images,
            labels,
            pool,
        )
        for name, network in networks.items()
    }


def isolated(trainees: dict[str, Trainee]) -> list[Contestant]:
    return [Contestant(name, t.optimizer.step, t.random_gradients) for name, t in trainees.items()]


def in_loop(trainees: dict[str, Trainee]) -> list[Contestant]:
    return [Contestant(name, t.optimizer.step, t.backward) for name, t in trainees.items()]
