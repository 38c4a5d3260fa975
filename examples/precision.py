"""Train a small language model in 16-bit precision with every remedy that fusedopt has, and compare with float32.

A causal transformer reads the sources of Python's standard library byte by byte. Within a seed all variants begin at
the same weights and see the same batches, so their losses are compared in pairs. Beside it every variant steps with
random gradients that shrink a hundredfold, which no few hundred steps of training show. Run ``python
examples/precision.py --help`` for the options.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import platform
import sys
import sysconfig
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

import fusedopt

DEFAULT_OUT = Path(__file__).resolve().parents[1] / "build" / "figures" / "precision.png"
CONTEXT, BATCH, WIDTH, DEPTH, HEADS = 64, 8, 96, 3, 4
EVALUATION_WINDOWS = 64
LEARNING_RATE, WARMUP = 1e-3, 30
LARGE_STEPS, SMALL_STEPS, SHRINK = 200, 2800, 0.01

# Modules that every Python since 3.10 has. Each tenth is kept for validation, so no text is in both.
MODULES = """
    argparse ast base64 bdb calendar cmd code codecs codeop collections/__init__ colorsys compileall
    configparser contextlib copy csv dataclasses datetime decimal difflib dis doctest email/message enum filecmp
    fileinput fnmatch fractions ftplib functools getopt getpass gettext glob gzip hashlib heapq hmac html/parser
    http/client imaplib inspect ipaddress json/decoder json/encoder keyword linecache locale logging/__init__
    lzma mailbox mimetypes netrc numbers optparse os pdb pickle pickletools platform plistlib poplib posixpath
    pprint profile pstats queue quopri random sched selectors shelve shlex shutil smtplib socket socketserver
    ssl stat statistics string subprocess symtable tarfile tempfile textwrap threading timeit token tokenize
    trace traceback types typing unittest/case unittest/mock urllib/parse urllib/request uuid warnings wave
    weakref webbrowser xmlrpc/client zipapp
"""


@dataclass(frozen=True)
class Variant:
    """One way to keep params and state, as arguments of `fusedopt.AdamW`."""

    name: str
    dtype: torch.dtype
    options: dict[str, Any]
    color: str
    dashes: tuple[float, ...] = ()
    # Whether it is to train as float32 does; otherwise it shows what the others are for.
    remedy: bool = True


def _bfloat16(name: str, color: str, dashes: tuple[float, ...] = (), remedy: bool = True, **options: Any) -> Variant:
    return Variant(f"bfloat16, {name}", torch.bfloat16, options, color, dashes, remedy)


# With states in float32 alone the params still lose updates. Of the remedies stochastic rounding leaves states in
# bfloat16.
VARIANTS = [
    Variant("float32", torch.float32, {}, "black"),
    _bfloat16("naive", "#d55e00", remedy=False),
    _bfloat16("float32 state", "#e69f00", remedy=False, state_dtype="float32"),
    _bfloat16("float32 master weights", "#0072b2", (5, 2), master_weights="float32"),
    _bfloat16("remainder", "#56b4e9", (1, 1.5), master_weights="remainder"),
    _bfloat16("stochastic rounding", "#009e73", (5, 2), rounding="stochastic"),
    _bfloat16("Kahan summation", "#882255", (3, 1, 1, 1), rounding="kahan"),
    Variant("float32, 8-bit state", torch.float32, {"state_dtype": "int8"}, "#cc79a7", (1, 1.5)),
    Variant("float32, 4-bit state", torch.float32, {"state_dtype": "int4"}, "#999933", (5, 2)),
]


@dataclass(frozen=True)
class Course:
    """How long to train, and how often to look at the validation loss."""

    steps: int
    evaluations: int
    seeds: int

    @property
    def evaluated(self) -> list[int]:
        return sorted({round(i * self.steps / self.evaluations) for i in range(self.evaluations + 1)})


@dataclass(frozen=True)
class Result:
    """Validation losses of one variant, a row for each seed and a column for each evaluation."""

    variant: Variant
    losses: np.ndarray
    # How large steps are, beside float32's, long after gradients have shrunk.
    size_of_steps: float = 1.0

    @property
    def final(self) -> np.ndarray:
        return self.losses[:, -1]

    @property
    def mean(self) -> float:
        return float(self.final.mean())

    @property
    def spread(self) -> float:
        """From the best seed to the worst: what chance makes of one training."""
        return float(np.ptp(self.final))


class Block(nn.Module):
    """Causal attention and a perceptron, each normalised first and added to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_norm, self.perceptron_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.query_key_value, self.project = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.widen, self.narrow = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        parts = self.query_key_value(self.attention_norm(x)).view(batch, length, 3, HEADS, WIDTH // HEADS)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.project(mixed.transpose(1, 2).reshape(x.shape))
        return x + self.narrow(F.gelu(self.widen(self.perceptron_norm(x))))


class LanguageModel(nn.Module):
    """Logits of each next byte; the embedding of bytes is also the last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.byte, self.position = nn.Embedding(256, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks, self.norm = nn.Sequential(*(Block() for _ in range(DEPTH))), nn.LayerNorm(WIDTH)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.05)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, text: Tensor) -> Tensor:
        return self.norm(self.blocks(self.byte(text) + self.position.weight)) @ self.byte.weight.mT


@cache
def load(validation: bool) -> Tensor:
    """The bytes of all modules that are for validation, or of all others."""
    folder = Path(sysconfig.get_path("stdlib"))
    names = [name for index, name in enumerate(MODULES.split()) if (index % 10 == 0) == validation]
    try:
        return torch.frombuffer(
            bytearray(b"".join((folder / f"{name}.py").read_bytes() for name in names)), dtype=torch.uint8
        ).long()
    except OSError as error:
        raise SystemExit(f"cannot read the standard library's sources: {error}; use a Python that has them") from error


def windows(text: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    """Stretches of text, and the byte that follows each of theirs."""
    cut = text[starts[:, None] + torch.arange(CONTEXT + 1)]
    return cut[:, :-1], cut[:, 1:]


def train(variant: Variant, course: Course, seed: int) -> list[float]:
    """The validation loss, in nats a byte, at each of ``course.evaluated``."""
    torch.manual_seed(seed)
    model = LanguageModel()
    params = {name: nn.Parameter(param.detach().to(variant.dtype)) for name, param in model.named_parameters()}
    optimizer = fusedopt.AdamW(params.values(), lr=LEARNING_RATE, weight_decay=0.1, **variant.options)

    def rate(step: int) -> float:
        return min(1, (step + 1) / WARMUP) * (1 + math.cos(math.pi * step / course.steps)) / 2

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)

    def loss_of(text: Tensor, following: Tensor) -> Tensor:
        # In float32 whatever the params are, as few CPUs multiply bfloat16 fast. Gradients come in the params' dtype.
        widened = {name: param.float() for name, param in params.items()}
        return F.cross_entropy(functional_call(model, widened, (text,)).flatten(0, 1), following.flatten())

    training, validation = load(validation=False), load(validation=True)
    evaluation = windows(validation, torch.linspace(0, len(validation) - CONTEXT - 1, EVALUATION_WINDOWS).long())
    chance = torch.Generator().manual_seed(seed)
    losses = []
    for step in range(course.steps + 1):
        if step in course.evaluated:
            with torch.no_grad():
                losses.append(loss_of(*evaluation).item())
        if step < course.steps:
            optimizer.zero_grad()
            loss_of(*windows(training, torch.randint(len(training) - CONTEXT, (BATCH,), generator=chance))).backward()
            optimizer.step()
            schedule.step()
    return losses


def averaged_square(dtype: torch.dtype, options: dict[str, Any]) -> float:
    """What AdamW divides by after random gradients have shrunk a hundredfold: the root of its averaged squares."""
    chance = torch.Generator().manual_seed(0)
    param = nn.Parameter(torch.zeros(4096, dtype=dtype))  # of so many elements states can be in codes
    optimizer = fusedopt.AdamW([param], lr=LEARNING_RATE, weight_decay=0.0, **options)
    for step in range(LARGE_STEPS + SMALL_STEPS):
        grad = torch.randn(4096, generator=chance) * (1 if step < LARGE_STEPS else SHRINK)
        param.grad = grad.to(dtype)
        optimizer.step()
    return float(optimizer.state_dict()["state"][0]["exp_avg_sq"].double().mean().sqrt())


def run(variants: Sequence[Variant], course: Course, workers: int, console: Console | None = None) -> list[Result]:
    """Train every variant from every seed, ``workers`` at a time; progress goes to ``console`` (stderr by default)."""
    columns = (TextColumn("{task.description:<36}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    losses: dict[tuple[str, int], list[float]] = {}
    # A thread each: products this small do not gain from a second one, and no bit depends on how many cores there are.
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    )
    with Progress(*columns, console=console or Console(stderr=True)) as progress, pool:
        task = progress.add_task("training", total=len(variants) * course.seeds)
        jobs = {
            pool.submit(train, variant, course, seed): (variant.name, seed)
            for seed in range(course.seeds)
            for variant in variants
        }
        try:
            for job in as_completed(jobs):
                losses[jobs[job]] = job.result()
                progress.update(task, advance=1, description="{} (seed {})".format(*jobs[job]))
        except BaseException:  # also of an impatient user, who would otherwise wait for all that has not begun
            pool.shutdown(cancel_futures=True)
            raise
    exact = averaged_square(torch.float32, {})
    return [
        Result(
            variant,
            np.array([losses[variant.name, seed] for seed in range(course.seeds)]),
            exact / averaged_square(variant.dtype, variant.options),
        )
        for variant in variants
    ]


def behind(result: Result, results: Sequence[Result]) -> np.ndarray:
    """How much larger a variant's losses are than float32's from the same seed."""
    return result.losses - results[0].losses


def complaints(results: Sequence[Result]) -> list[str]:
    """What contradicts the claim: without a remedy training is worse than chance explains, and with one it is not."""
    noise = results[0].spread
    found = []
    for result in results[1:]:
        gap = float(behind(result, results)[:, -1].mean())
        where = f"{result.variant.name}: {gap:+.4f} from {results[0].variant.name}"
        if result.variant.remedy and not abs(gap) < noise:
            found.append(f"{where}, beyond the {noise:.4f} between seeds")
        if not result.variant.remedy and gap <= noise:
            found.append(f"{where}, which is within the {noise:.4f} between seeds")
        if result.variant.remedy and not 0.9 < result.size_of_steps < 1.1:
            found.append(f"{result.variant.name}: steps of {result.size_of_steps:.2f} after gradients have shrunk")
    return found


def make_table(results: Sequence[Result]) -> Table:
    table = Table(title="Validation loss of a byte-level language model, nats a byte", box=box.MARKDOWN)
    table.caption = (
        "spread: best to worst seed; behind: mean over seeds of the difference to float32 from the same seed; "
        "steps: their size, beside float32's, after 2,800 gradients a hundredth of the 200 before"
    )
    table.add_column("params", no_wrap=True)
    for heading in ("mean", "spread", "behind", "steps"):
        table.add_column(heading, justify="right", no_wrap=True)
    for result in results:
        gap = behind(result, results)[:, -1].mean()
        cells = ("", "") if result is results[0] else (f"{gap:+.4f}", f"{result.size_of_steps:.2f}")
        table.add_row(result.variant.name, f"{result.mean:.4f}", f"{result.spread:.4f}", *cells)
    return table


def plot(results: Sequence[Result], course: Course, out: Path) -> None:
    """Write a PNG: losses against steps, and beside it how far each variant is behind float32."""
    figure = Figure(figsize=(11, 4.8), dpi=150, layout="constrained")
    losses, gaps = figure.subplots(1, 2)
    noise = results[0].spread
    gaps.axhspan(-noise, noise, color="#e8e8e8", zorder=0, label="as far as seeds are apart at the end")
    for result in results:
        variant = result.variant
        style: dict[str, Any] = {"color": variant.color, "linewidth": 2, "label": variant.name}
        if variant.dashes:
            style["dashes"] = variant.dashes
        losses.plot(course.evaluated, result.losses.mean(0), **style)
        gap = behind(result, results)
        gaps.plot(course.evaluated, gap.mean(0), **style)
        gaps.fill_between(course.evaluated, gap.min(0), gap.max(0), color=variant.color, alpha=0.15, linewidth=0)
    # The first fifth is a cliff that all fall down together, and would flatten the rest.
    shown = len(course.evaluated) // 5
    losses.set_xlim(left=course.evaluated[shown])
    losses.set_ylim(top=max(result.losses.mean(0)[shown] for result in results))
    losses.set_title("Validation loss, mean over seeds", fontweight="bold")
    losses.set_ylabel("cross-entropy (nats a byte)")
    gaps.set_title("Behind float32 from the same seed", fontweight="bold")
    gaps.set_ylabel("difference (nats a byte), mean and range")
    # Where the losses leave room: they fall, and the gaps fill their panel.
    losses.legend(*gaps.get_legend_handles_labels(), loc="upper right", frameon=False, fontsize=9)
    for axis in (losses, gaps):
        axis.set_xlabel("training step")
        axis.grid(True, color="#dddddd", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(out)


def record(results: Sequence[Result], course: Course) -> dict[str, Any]:
    """All losses, with what they depend on."""
    sizes = {"context": CONTEXT, "batch": BATCH, "width": WIDTH, "depth": DEPTH, "heads": HEADS}
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "fusedopt": fusedopt.__version__,
        "params": sum(param.numel() for param in LanguageModel().parameters()),
        "bytes": {"training": len(load(validation=False)), "validation": len(load(validation=True))},
        **sizes,
        "learning_rate": LEARNING_RATE,
        "evaluated": course.evaluated,
        "losses": {result.variant.name: result.losses.tolist() for result in results},
        "size_of_steps": {result.variant.name: result.size_of_steps for result in results},
    }


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a small language model in several precisions and compare.")
    parser.add_argument("--steps", type=int, default=400, help="of each training (default: 400)")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each variant (default: 3)")
    parser.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count() or 1,
        help="trainings at a time, a thread each (default: all cores)",
    )
    parser.add_argument(
        "--out", type=Path, default=DEFAULT_OUT, help="where the PNG goes, a JSON beside it (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    for name, least in (("steps", 1), ("seeds", 2), ("workers", 1)):
        if getattr(options, name) < least:
            parser.error(f"--{name} must be at least {least}")
    if options.out.suffix.lower() != ".png":
        parser.error(f"--out must end in .png, got {options.out}")
    try:  # Now, not after minutes of training.
        options.out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out: cannot make the folder {options.out.parent}: {error.strerror}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    course = Course(options.steps, evaluations=20, seeds=options.seeds)
    results = run(VARIANTS, course, options.workers)
    Console().print(make_table(results))
    plot(results, course, options.out)
    options.out.with_suffix(".json").write_text(json.dumps(record(results, course), indent=1) + "\n")
    print(f"validation losses: {options.out} and {options.out.with_suffix('.json').name}")
    found = complaints(results)
    for complaint in found:
        print(complaint, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
