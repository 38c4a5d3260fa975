"""Train one small network on scikit-learn's digits with torch.optim, and again with fusedopt swapped in.

Both runs start from the same weights and see the same batches, so the loss curves must lie on each other; what
changes is the time spent in ``step()``. The two round differently in a last bit here and there. That is seen in the
loss once it has made another of two numbers the largest of a pool, so that a gradient goes to another pixel: soon or
never, as chance has it. How much comes of such bits, a third run shows: torch.optim again, from weights of which the
first layer's are one unit in the last place larger. Run ``python examples/digits.py --help`` for the options.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.box import HORIZONTALS
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F

import fusedopt

BATCH = 64
DEFAULT_OUT = Path(__file__).resolve().parents[1] / "build" / "figures" / "digits.png"

# foreach and fused stay at their defaults: this is what a user gets by changing the import and nothing else.
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "SGD": {"lr": 0.02, "momentum": 0.9},
    "Adam": {"lr": 1e-3},
    "AdamW": {"lr": 1e-3, "weight_decay": 1e-2},
    "RMSprop": {"lr": 5e-4},
}


@dataclass(frozen=True)
class Digits:
    """1,797 real handwritten digits of 8x8 pixels, split four to one with equal shares of every class."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    @property
    def batches_per_epoch(self) -> int:
        return -(-len(self.train_images) // BATCH)


@dataclass(frozen=True)
class Run:
    """One training: the loss of every batch, the final figures, the seconds spent inside each ``step()``."""

    losses: np.ndarray
    final_loss: float
    test_accuracy: float
    step_seconds: np.ndarray

    @property
    def median_step(self) -> float:
        return float(np.median(self.step_seconds))


@dataclass(frozen=True)
class Pair:
    """The same training under both libraries."""

    name: str
    torch: Run
    ours: Run
    nudged: Run  # torch's, from weights that differ in a last bit

    @property
    def largest_difference(self) -> float:
        return float(np.max(np.abs(self.torch.losses - self.ours.losses)))

    @property
    def difference_of_a_bit(self) -> float:
        return float(np.max(np.abs(self.torch.losses - self.nudged.losses)))

    @property
    def speedup(self) -> float:
        """Of the medians: a single step held up by other work on the machine can outweigh hundreds in the total."""
        return self.torch.median_step / self.ours.median_step


def load(seed: int) -> Digits:
    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 1, 8, 8).astype(np.float32) / 16
    split = train_test_split(images, labels, test_size=0.2, stratify=labels, random_state=seed)
    train_images, test_images, train_labels, test_labels = (torch.from_numpy(np.ascontiguousarray(a)) for a in split)
    return Digits(train_images, train_labels, test_images, test_labels)


def make_network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


def train(
    library: ModuleType,
    name: str,
    data: Digits,
    *,
    epochs: int,
    seed: int,
    nudged: bool = False,
    tick: Callable[[], object] = lambda: None,
) -> Run:
    """Train from ``seed`` with ``library.name`` (torch.optim or fusedopt); ``tick`` is called after each batch."""
    torch.manual_seed(seed)
    network = make_network()
    if nudged:
        first = next(network.parameters())
        first.data = torch.nextafter(first.data, torch.full_like(first, torch.inf))
    optimizer = getattr(library, name)(network.parameters(), **OPTIMIZERS[name])
    losses = []
    step_seconds = []
    for _ in range(epochs):
        for batch in torch.randperm(len(data.train_images)).split(BATCH):
            loss = F.cross_entropy(network(data.train_images[batch]), data.train_labels[batch])
            optimizer.zero_grad()
            loss.backward()
            start = time.perf_counter()
            optimizer.step()
            step_seconds.append(time.perf_counter() - start)
            losses.append(loss.item())
            tick()
    with torch.no_grad():
        final_loss = F.cross_entropy(network(data.train_images), data.train_labels).item()
        hits = network(data.test_images).argmax(1) == data.test_labels
    return Run(np.array(losses), final_loss, hits.float().mean().item(), np.array(step_seconds))


def run(epochs: int, seed: int = 0, console: Console | None = None) -> list[Pair]:
    """Train all four optimizers under both libraries; progress goes to ``console`` (stderr by default)."""
    data = load(seed)
    # The first training in a process starts the thread pool and fills the allocator; nobody should be charged for it.
    for name in OPTIMIZERS:
        for library in (torch.optim, fusedopt):
            train(library, name, data, epochs=1, seed=seed)
    columns = (TextColumn("{task.description:<24}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    total = 3 * len(OPTIMIZERS) * epochs * data.batches_per_epoch
    pairs = []
    with Progress(*columns, console=console or Console(stderr=True)) as progress:
        task = progress.add_task("training", total=total)
        for name in OPTIMIZERS:
            runs = []
            for library, nudged in ((torch.optim, False), (fusedopt, False), (torch.optim, True)):
                progress.update(task, description=f"{library.__name__}.{name}")
                tick = lambda: progress.advance(task)  # noqa: E731
                runs.append(train(library, name, data, epochs=epochs, seed=seed, nudged=nudged, tick=tick))
            pairs.append(Pair(name, *runs))
        progress.update(task, description="all twelve runs")
    return pairs


def make_table(pairs: Sequence[Pair]) -> Table:
    # Fits into 80 columns: a log has no more, and what does not fit is cut.
    table = Table(
        title="scikit-learn digits, trained twice from the same seed", show_lines=True, box=HORIZONTALS, pad_edge=False
    )
    table.caption = (
        "step(): median in us, and the ratio of medians. Largest diff.: between the loss curves; "
        "of a bit: torch's to itself, begun with weights one unit in the last place larger. "
        "A loss jumps where a last bit makes another of two numbers the largest of a pool, which happens soon or "
        "never; RMSprop shows it most, for its first steps are up to ten times lr."
    )
    table.add_column("optimizer", no_wrap=True)
    for heading in (
        "final\nloss",
        "test\nacc.",
        "step(),\nus",
        "\nratio",
        "largest\ndiff.",
        "diff. of\na bit",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for pair in pairs:
        both = (pair.torch, pair.ours)
        table.add_row(
            f"torch.optim.{pair.name}\nfusedopt.{pair.name}",
            "\n".join(f"{run.final_loss:.5f}" for run in both),
            "\n".join(f"{run.test_accuracy:.1%}" for run in both),
            "\n".join(f"{run.median_step * 1e6:.0f}" for run in both),
            f"\n{pair.speedup:.1f}x",
            f"\n{pair.largest_difference:.1e}",
            f"\n{pair.difference_of_a_bit:.1e}",
        )
    return table


def smooth(losses: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Running mean over ``width`` batches, and the batch each mean is centred on: single batches are hard to read."""
    width = min(width, len(losses))
    means = np.convolve(losses, np.ones(width) / width, mode="valid")
    return np.arange(len(means)) + (width + 1) / 2, means


def describe(difference: float) -> str:
    return f"{difference:.1e}" if difference else "none, equal to the bit"


def plot(pairs: Sequence[Pair], out: Path) -> None:
    """Write the loss curves as a PNG of 2x2 panels: ours as a broad line, torch's dotted on top of it."""
    figure = Figure(figsize=(10, 7.2), dpi=150, layout="constrained")
    axes = figure.subplots(2, 2, sharex=True, sharey=True)
    for axis, pair in zip(axes.flat, pairs, strict=True):
        for values in (pair.ours.losses, pair.torch.losses):
            axis.plot(np.arange(1, len(values) + 1), values, color="#9ecae1", linewidth=0.5, alpha=0.5, zorder=1)
        axis.plot(*smooth(pair.ours.losses, 23), color="#3182bd", linewidth=4, label=f"fusedopt.{pair.name}")
        axis.plot(
            *smooth(pair.torch.losses, 23),
            color="black",
            linewidth=1.6,
            linestyle=(0, (1, 1.6)),
            label=f"torch.optim.{pair.name}",
        )
        axis.set_yscale("log")
        axis.set_title(pair.name, fontweight="bold")
        note = (
            f"largest difference: {describe(pair.largest_difference)}\n"
            f"median step(): torch {pair.torch.median_step * 1e6:.0f} us, fusedopt {pair.ours.median_step * 1e6:.0f} us"
            f" ({pair.speedup:.1f}x)"
        )
        axis.text(0.02, 0.03, note, transform=axis.transAxes, va="bottom", fontsize=9)
        axis.grid(True, which="major", color="#dddddd", linewidth=0.6)
        axis.legend(loc="upper right", frameon=False)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[1]:
        axis.set_xlabel("training step")
    for axis in axes[:, 0]:
        axis.set_ylabel("training loss (cross-entropy, nats)")
    figure.suptitle("Digits: the same training under torch.optim and fusedopt (thin: each batch, thick: mean of 23)")
    figure.savefig(out)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train on real digits with torch.optim and with fusedopt.")
    parser.add_argument("--epochs", type=int, default=15, help="passes over the 1,437 training images (default: 15)")
    parser.add_argument("--seed", type=int, default=0, help="weights, batches and train/test split (default: 0)")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="where the PNG goes (default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.epochs < 1:
        parser.error("--epochs must be at least 1")
    if not 0 <= options.seed < 2**32:
        parser.error("--seed must be from 0 to 2**32 - 1")
    if options.out.suffix.lower() != ".png":
        parser.error(f"--out must end in .png, got {options.out}")
    try:  # Now, not after a minute of training.
        options.out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out: cannot make the folder {options.out.parent}: {error.strerror}")
    return options


def main(arguments: Sequence[str] | None = None) -> list[Pair]:
    options = parse(arguments)
    pairs = run(options.epochs, options.seed)
    Console().print(make_table(pairs))
    plot(pairs, options.out)
    print(f"loss curves: {options.out}")
    return pairs


if __name__ == "__main__":
    main()
