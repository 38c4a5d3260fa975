"""Fit y = x^2 + noise with every optimizer of fusedopt, and again with its twin in torch.optim.

Twins start from the same weights and see the same batches, so their fits and loss curves must lie on each other; where
the curves of two differ visibly, the exit status is 1. Run ``python examples/compare_optimizers.py --help`` for the
options.
"""

from __future__ import annotations

import argparse
import inspect
import os
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor, nn

import fusedopt

POINTS, NOISE, BATCH, HIDDEN, BINS = 1000, 0.1, 100, 20, 40
DEFAULT_OUT = Path(__file__).resolve().parents[1] / "build" / "figures"
FITS, LOSS = "optimizers_fits.png", "optimizers_loss.png"

# Twins agree while their losses are within this factor, which is less than the width of a line in the picture.
VISIBLE = 1.05

# Where the defaults are made for larger networks and longer trainings; what is not here learns with its defaults.
ARGUMENTS: dict[str, dict[str, Any]] = {
    **{key: {"lr": 0.01} for key in ("ADOPT", "AdaBelief", "Adam", "AdamAtan2", "AdamW", "Adan")},
    **{key: {"lr": 0.01} for key in ("LaProp", "MARS", "NAdamW", "NovoGrad", "StableAdamW")},
    **{key: {"lr": 0.02} for key in ("Adafactor", "AdamWScheduleFree", "Adamax")},
    **{key: {"lr": 0.02} for key in ("RAdam", "RAdamScheduleFree", "SparseAdam")},
    "ASGD": {"lr": 0.1},
    "AdEMAMix": {"lr": 0.005},
    "Adagrad": {"lr": 0.05},
    "LAMB": {"lr": 0.005, "weight_decay": 0.0, "always_adapt": True},
    "LARS": {"lr": 0.3, "momentum": 0.9, "trust_coeff": 0.005, "always_adapt": True},
    # With more iterations or history the line search, among the network's kinks, makes another path of a rounding.
    "LBFGS": {"max_iter": 1, "history_size": 5, "line_search_fn": "strong_wolfe"},
    "Lion": {"lr": 0.002},
    # At 0.02 the roundings of its products in bfloat16, which are not torch's, grow until they show.
    "Muon": {"lr": 0.005},
    "NAdam": {"lr": 0.005},
    "RMSprop": {"lr": 0.003},
    "SGD": {"lr": 0.02, "momentum": 0.9},
    "SGDScheduleFree": {"lr": 0.1},
    "SophiaG": {"lr": 0.002},
}
# They compare a gradient with the last one, which two different batches would spoil.
FULL_BATCH = {"LBFGS", "Rprop"}
# Step matrices alone, as they are made for; AdamW has the biases.
MATRICES_ONLY = {"Muon"}
# Step nothing but sparse gradients, which the network has none of: they train a table instead.
SPARSE_ONLY = {"SparseAdam"}


@dataclass(frozen=True)
class Data:
    """Points of a parabola, with noise that no fit can remove."""

    x: Tensor
    y: Tensor
    floor: float  # the loss of the parabola itself


@dataclass(frozen=True)
class Run:
    """One training: the loss of all points before the first step and after each, the fit, the params."""

    losses: np.ndarray
    fit: np.ndarray
    params: list[Tensor]


@dataclass(frozen=True)
class Pair:
    """The same training under both libraries; ``torch`` is None where torch.optim has no such optimizer."""

    name: str
    ours: Run
    torch: Run | None

    @property
    def remarks(self) -> list[str]:
        """What a reader has to know who compares it with the others."""
        remarks = []
        if self.name in MATRICES_ONLY:
            remarks.append("biases: AdamW")
        if self.name in SPARSE_ONLY:
            remarks.append(f"table of {BINS} values")
        if self.name in FULL_BATCH:
            remarks.append("full batches")
        return remarks

    @property
    def params_apart(self) -> float:
        """The largest difference between a param of ours and the twin's."""
        assert self.torch is not None
        return max(float((a - b).abs().max()) for a, b in zip(self.ours.params, self.torch.params, strict=True))

    @property
    def apart(self) -> float:
        """The largest factor between the two loss curves; infinite where one of them is not finite."""
        assert self.torch is not None
        factor = np.exp(np.abs(np.log(self.ours.losses) - np.log(self.torch.losses)).max())
        return float(factor) if np.isfinite(factor) else float("inf")

    @property
    def complaint(self) -> str | None:
        if not np.isfinite(self.ours.losses).all():
            return f"{self.name}: the loss of fusedopt is not finite"
        if self.torch is None or self.apart <= VISIBLE:
            return None
        return f"{self.name}: the loss curves of fusedopt and torch differ visibly, by a factor of {self.apart:.3g}"


class BinTable(nn.Module):
    """A number for each interval of x, looked up: a batch's gradient has the rows of its intervals and no others."""

    def __init__(self) -> None:
        super().__init__()
        self.values = nn.Embedding(BINS, 1, sparse=True)

    def forward(self, x: Tensor) -> Tensor:
        rows: Tensor = self.values(((x.flatten() + 1) / 2 * BINS).long().clamp_(0, BINS - 1))
        return rows


def make_data(seed: int) -> Data:
    noise = NOISE * torch.randn(POINTS, 1, generator=torch.Generator().manual_seed(seed))
    x = torch.linspace(-1, 1, POINTS)[:, None]
    return Data(x, x.square() + noise, noise.square().mean().item())


def make_network(name: str) -> nn.Module:
    if name in SPARSE_ONLY:
        return BinTable()
    return nn.Sequential(nn.Linear(1, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1))


def optimizer_names() -> list[str]:
    """Every optimizer of the package; what cannot be made from params alone is a base class, whose step is missing."""

    def made_from_params(cls: type) -> bool:
        _, *others = inspect.signature(cls).parameters.values()
        return all(p.default is not p.empty or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in others)

    public = {name: getattr(fusedopt, name) for name in fusedopt.__all__}
    classes = {n: cls for n, cls in public.items() if inspect.isclass(cls) and issubclass(cls, torch.optim.Optimizer)}
    return sorted((name for name, cls in classes.items() if made_from_params(cls)), key=str.lower)


def has_twin(name: str) -> bool:
    """Ours derives from its twin. A class of torch's that merely has the name may mean something else."""
    twin = getattr(torch.optim, name, None)
    return twin is not None and issubclass(getattr(fusedopt, name), twin)


def make_optimizers(library: ModuleType, name: str, network: nn.Module) -> list[torch.optim.Optimizer]:
    params = list(network.parameters())
    make = getattr(library, name)
    if name not in MATRICES_ONLY:
        return [make(params, **ARGUMENTS.get(name, {}))]
    rest = library.AdamW([p for p in params if p.ndim != 2], **ARGUMENTS["AdamW"])
    return [make([p for p in params if p.ndim == 2], **ARGUMENTS.get(name, {})), rest]


def make_batches(name: str, steps: int, seed: int) -> list[Tensor]:
    """Which points each step sees: without end a new order of all, in parts."""
    if name in FULL_BATCH:
        return [torch.arange(POINTS)] * steps
    generator = torch.Generator().manual_seed(seed)
    epochs = -(-steps * BATCH // POINTS)
    order = torch.cat([torch.randperm(POINTS, generator=generator) for _ in range(epochs)])
    return list(order.split(BATCH)[:steps])


def train(
    library: ModuleType, name: str, data: Data, *, steps: int, seed: int, tick: Callable[[], object] = lambda: None
) -> Run:
    """Train from ``seed`` with ``library.name`` (torch.optim or fusedopt); ``tick`` is called after each step."""
    torch.manual_seed(seed)
    network = make_network(name)
    first, *others = make_optimizers(library, name, network)

    def loss_of_all() -> float:
        with torch.no_grad():
            return nn.functional.mse_loss(network(data.x), data.y).item()

    losses = [loss_of_all()]
    for batch in make_batches(name, steps, seed):
        x, y = data.x[batch], data.y[batch]

        def closure(x: Tensor = x, y: Tensor = y) -> float:
            network.zero_grad()
            loss = nn.functional.mse_loss(network(x), y)
            loss.backward()
            return loss.item()

        # Every optimizer takes a closure, and some insist on one.
        first.step(closure)
        for optimizer in others:
            optimizer.step()
        losses.append(loss_of_all())
        tick()
    with torch.no_grad():
        fit = network(data.x).flatten().numpy()
    return Run(np.array(losses), fit, [p.detach() for p in network.parameters()])


@contextmanager
def one_thread() -> Iterator[None]:
    """Tensors this small gain nothing from a second thread, and waking it takes longer than a step."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run(names: Sequence[str], data: Data, steps: int, seed: int = 0, console: Console | None = None) -> list[Pair]:
    """Train with ``names`` under both libraries; progress goes to ``console`` (stderr by default)."""
    columns = (TextColumn("{task.description:<24}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    pairs = []
    with one_thread(), Progress(*columns, console=console or Console(stderr=True)) as progress:
        task = progress.add_task("training", total=steps * sum(1 + has_twin(name) for name in names))
        for name in names:
            runs = []
            for library in (fusedopt, torch.optim) if has_twin(name) else (fusedopt,):
                progress.update(task, description=f"{library.__name__}.{name}")
                tick = lambda: progress.advance(task)  # noqa: E731
                runs.append(train(library, name, data, steps=steps, seed=seed, tick=tick))
            pairs.append(Pair(name, runs[0], runs[1] if len(runs) > 1 else None))
        progress.update(task, description=f"{len(names)} optimizers")
    return pairs


def make_table(pairs: Sequence[Pair], data: Data) -> Table:
    table = Table(title="y = x^2 + noise, trained twice from the same seed")
    table.caption = f"the parabola itself has a loss of {data.floor:.5f}"
    table.add_column("optimizer", no_wrap=True)
    for heading in ("\ntorch", "final loss\nfusedopt", "params\napart by", "loss curves\napart, times"):
        table.add_column(heading, justify="right", no_wrap=True)
    for pair in pairs:
        label = "\n  ".join([pair.name, *pair.remarks])
        ours = f"{pair.ours.losses[-1]:.5f}"
        if pair.torch is None:
            table.add_row(label, "no twin", ours, "", "")
        else:
            cells = (f"{pair.torch.losses[-1]:.5f}", ours, f"{pair.params_apart:.1e}", f"{pair.apart:.6f}")
            table.add_row(label, *cells)
    return table


OURS: dict[str, Any] = {"color": "#3182bd", "linewidth": 3.5, "label": "fusedopt"}
TWIN: dict[str, Any] = {"color": "black", "linewidth": 1.3, "linestyle": (0, (1, 1.6)), "label": "torch.optim"}
# The white keeps lines of the grid out of the words.
NOTE: dict[str, Any] = {"va": "top", "fontsize": 9, "bbox": {"facecolor": "white", "edgecolor": "none", "pad": 1}}
LEGEND: dict[str, Any] = {"loc": "center", "frameon": False, "markerscale": 2, "alignment": "left"}
LEGEND |= {"fontsize": 11, "title_fontsize": 10}


def draw_panels(
    pairs: Sequence[Pair],
    draw: Callable[[Axes, Pair], Sequence[str]],
    *,
    title: str,
    xlabel: str,
    ylabel: str,
    note_at: tuple[float, str],
) -> Figure:
    """One panel per optimizer, in which ``draw`` draws and returns a note; the last panel is left for the legend.

    ``note_at``: where across the panel the curves leave room for the note, and how it is aligned there.
    """
    across, alignment = note_at
    columns = 5
    rows = len(pairs) // columns + 1
    figure = Figure(figsize=(11, 2.2 * rows + 0.7), dpi=120, layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    handles: dict[str, Any] = {}
    for axis, pair in zip(axes.flat, pairs, strict=False):
        note = draw(axis, pair)
        axis.text(across, 0.97, "\n".join(note), transform=axis.transAxes, ha=alignment, **NOTE)
        axis.set_title(pair.name, fontsize=11, fontweight="bold")
        axis.grid(True, which="major", color="#dddddd", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=9)
        handles |= {label: handle for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    for axis in axes.flat[len(pairs) :]:
        axis.set_axis_off()
    # The last panel of a column shows the ticks, whether or not its row is the last.
    for axis in axes.flat[max(0, len(pairs) - columns) : len(pairs)]:
        axis.tick_params(labelbottom=True)
    lone = textwrap.fill(", ".join(pair.name for pair in pairs if pair.torch is None), 20)
    heading = f"not in torch.optim:\n{lone}\n" if lone else None
    axes.flat[-1].legend(handles.values(), handles.keys(), title=heading, **LEGEND)
    figure.suptitle(title, fontsize=13)
    figure.supxlabel(xlabel, fontsize=11)
    figure.supylabel(ylabel, fontsize=11)
    return figure


def plot_fits(pairs: Sequence[Pair], data: Data) -> Figure:
    x, y = data.x.flatten().numpy(), data.y.flatten().numpy()

    def draw(axis: Axes, pair: Pair) -> list[str]:
        axis.plot(x, y, ".", color="#b5b5b5", markersize=2.5, markeredgewidth=0, label="data")
        axis.plot(x, pair.ours.fit, **OURS)
        if pair.torch is not None:
            axis.plot(x, pair.torch.fit, **TWIN)
        axis.set_xticks([-1, 0, 1])
        axis.set_yticks([0, 0.5, 1])
        axis.set_ylim(-0.4, 1.45)
        return [f"loss {pair.ours.losses[-1]:.4f}", *pair.remarks]

    steps = len(pairs[0].ours.losses) - 1
    title = f"{POINTS:,} points of y = x² + noise, and fits after {steps} steps"
    return draw_panels(pairs, draw, title=title, xlabel="x", ylabel="y", note_at=(0.5, "center"))


def plot_losses(pairs: Sequence[Pair], data: Data) -> Figure:
    def draw(axis: Axes, pair: Pair) -> list[str]:
        axis.axhline(data.floor, color="#e6550d", linewidth=1, label="noise alone")
        axis.plot(pair.ours.losses, **OURS)
        axis.set_yscale("log")
        if pair.torch is None:
            return ["no twin in torch", *pair.remarks]
        axis.plot(pair.torch.losses, **TWIN)
        apart = pair.params_apart
        return ["largest difference", f"of params: {apart:.0e}" if apart else "of params: none", *pair.remarks]

    title = "The same training under fusedopt and torch.optim"
    ylabel = "mean squared error of all points"
    return draw_panels(pairs, draw, title=title, xlabel="step", ylabel=ylabel, note_at=(0.97, "right"))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Fit a noisy parabola with every optimizer, ours and torch's.")
    parser.add_argument("--steps", type=int, default=400, help=f"of {BATCH} points each (default: 400)")
    parser.add_argument("--seed", type=int, default=0, help="weights, noise and batches (default: 0)")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="folder of the PNGs (default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.steps < 1:
        parser.error("--steps must be at least 1")
    if not 0 <= options.seed < 2**32:
        parser.error("--seed must be from 0 to 2**32 - 1")
    try:  # Now, not after all the training.
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out: cannot make the folder {options.out}: {error.strerror}")
    if not os.access(options.out, os.W_OK):
        parser.error(f"--out: cannot write to the folder {options.out}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 all twins agree, 1 two of them do not, 2 bad arguments."""
    options = parse(arguments)
    data = make_data(options.seed)
    pairs = run(optimizer_names(), data, options.steps, options.seed)
    Console().print(make_table(pairs, data))
    for name, figure in ((FITS, plot_fits(pairs, data)), (LOSS, plot_losses(pairs, data))):
        figure.savefig(options.out / name)
        print(f"written: {options.out / name}")
    complaints = [pair.complaint for pair in pairs if pair.complaint]
    for complaint in complaints:
        print(complaint, file=sys.stderr)
    return int(bool(complaints))


if __name__ == "__main__":
    sys.exit(main())
