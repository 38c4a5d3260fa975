"""Pictures of a run: speed-ups, shares of the streaming bandwidth, and what tensors and elements cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from .baselines import CONTROL, OURS
from .clock import COLD, DEVICE, STEP
from .kernel import KERNEL
from .machine import where
from .method import compare
from .report import Report
from .runner import is_noisy
from .selection import KNOWN_BASELINES
from .streaming import STREAMING
from .sweeps import EACH, KINDS, TENSORS, Cost, span

OTHERS = KNOWN_BASELINES
PALETTE = matplotlib.colormaps["tab20"]
# The first of tab20 is ours; a contestant has one colour in all pictures.
COLOURS = {OURS: PALETTE(0), **{name: PALETTE((2 * i + 2) % 20 + (i >= 9)) for i, name in enumerate(OTHERS)}}
MARKERS = "osD^vP*Xhd<>p"

Measurement = Mapping[str, Any]


def save_plots(report: Report, folder: Path) -> list[Path]:
    """Write the pictures that the report has something to show in, and return their paths."""
    plain = [m for m in report.measurements if OURS in m["rounds_ns"] and "sweep" not in m]
    swept = [m for m in report.measurements if "sweep" in m]
    caption = describe(report.machine)
    figures = {}
    for clock in dict.fromkeys(m["clock"] for m in plain):
        here = [m for m in plain if m["clock"] == clock]
        figures[f"speedup{suffix(clock)}"] = speedups(here, clock, caption)
        streaming = streaming_rates(report.measurements)
        bound = [m for m in here if m.get("bytes")]
        if streaming and bound and clock in (STEP, DEVICE, COLD):
            figures[f"roofline{suffix(clock)}"] = roofline(bound, streaming, caption)
    for kind in KINDS:
        for clock in dict.fromkeys(m["clock"] for m in swept):
            points = [m for m in swept if m["sweep"] == kind and m["clock"] == clock]
            if points:
                figures[f"cost-{kind}{suffix(clock)}"] = costs(points, kind, report.fits, caption)
    paths = []
    for name, figure in figures.items():
        paths.append(folder / f"{name}.png")
        figure.savefig(paths[-1], dpi=150, bbox_inches="tight")
    return paths


def suffix(clock: str) -> str:
    return "" if clock == STEP else "-" + clock.replace(", ", "-").replace(" ", "-").lower()


def describe(machine: Mapping[str, Any]) -> str:
    """One line on where the numbers are from."""
    return f"{where(machine)}, {machine['date'][:10]}"


def rows_figure(names: Sequence[str], xlabel: str, title: str, caption: str) -> tuple[Figure, Any]:
    """Axes with a row for each name, the first on top."""
    figure = Figure(figsize=(9, 1.6 + 0.42 * len(names)))
    axes = figure.add_subplot()
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    for edge in range(1, len(names)):
        axes.axhline(edge - 0.5, color="0.93", linewidth=0.8, zorder=0)
    axes.set_xlabel(xlabel)
    axes.set_title(f"{title}\n", loc="left", fontsize=11)
    axes.text(0, 1.01, caption, transform=axes.transAxes, fontsize=8, color="0.4", va="bottom")
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def legend(axes: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    found = dict(zip(labels, handles, strict=True))
    place: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.01, 0.5)}
    axes.legend(found.values(), found.keys(), frameon=False, fontsize=8, labelspacing=0.9, **place)


def spread(index: int, count: int) -> float:
    """Where within its row the mark of one of ``count`` contestants is."""
    return 0.0 if count < 2 else (index / (count - 1) - 0.5) * 0.5


def mark(name: str) -> dict[str, Any]:
    """How a contestant is drawn in all pictures."""
    shape = MARKERS[(OTHERS.index(name) + 1 if name in OTHERS else 0) % len(MARKERS)]
    return {"label": name, "color": COLOURS[name], "fmt": shape, "markersize": 5, "linewidth": 1}


def times(value: float, _: object = None) -> str:
    return f"{value:g}x"


def speedups(measurements: Sequence[Measurement], clock: str, caption: str) -> Figure:
    names = [m["name"].removesuffix(f", {clock}") + doubt(m, clock) for m in measurements]
    title = "How many times faster fusedopt's step is" + ("" if clock == STEP else f" ({clock} time)")
    figure, axes = rows_figure(names, "speed-up, with the 5-95 % interval", title, caption)
    axes.set_xscale("log")
    axes.axvline(1, color="0.3", linewidth=1)
    for y, m in enumerate(measurements):
        rivals = [name for name in m["rounds_ns"] if name in OTHERS and name != KERNEL]
        for i, name in enumerate(rivals):
            ratio = compare(m["rounds_ns"][name], m["rounds_ns"][OURS])
            error = [[max(ratio.value - ratio.low, 0)], [max(ratio.high - ratio.value, 0)]]
            axes.errorbar(ratio.value, y + spread(i, len(rivals)), xerr=error, **mark(name))
    axes.xaxis.set_major_formatter(FuncFormatter(times))
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, 0.8), max(high, 1.25))
    if high / low < 30:
        axes.set_xticks([t for t in (0.5, 0.7, 1, 1.5, 2, 3, 5, 7, 10, 15, 20, 30) if low <= t <= max(high, 1.25)])
    axes.xaxis.set_minor_formatter(NullFormatter())
    legend(axes)
    return figure


def doubt(measurement: Measurement, clock: str) -> str:
    """A picture shows no A/A control, so it says where that forbids a conclusion."""
    rounds = measurement["rounds_ns"]
    noisy = is_noisy(clock, compare(rounds[CONTROL], rounds[OURS]), measurement.get("crowding"))
    return " (noisy)" if noisy else ""


def streaming_rates(measurements: Sequence[Measurement]) -> dict[str, float]:
    """Bytes a nanosecond of all that streams, the fastest first, from their own rounds at the beginning of the run."""
    alone = [m for m in measurements if m["name"] == STREAMING]
    rates = {name: m["bytes"][name] / s["median"] for m in alone for name, s in m["summary_ns"].items()}
    return dict(sorted(rates.items(), key=lambda item: -item[1]))


def roofline(measurements: Sequence[Measurement], streaming: Mapping[str, float], caption: str) -> Figure:
    (name, rate), *_ = streaming.items()
    # A fraction of what memory gives says little about what never leaves the caches.
    large = [m for m in measurements if name in m["rounds_ns"]] or list(measurements)
    title = "Share of the streaming bandwidth that the bytes of a step move at"
    figure, axes = rows_figure([m["name"] for m in large], f"share of the {name}'s {rate:.1f} GB/s", title, caption)
    axes.axvline(1, color="0.3", linewidth=1)
    for y, m in enumerate(large):
        # From the same rounds where the loop took part in them.
        ceiling = m["streaming_bytes"] / m["summary_ns"][name]["median"] if name in m["summary_ns"] else rate
        contestants = [c for c in m["rounds_ns"] if c in COLOURS]
        for i, contestant in enumerate(contestants):
            share = m["bytes"] / m["summary_ns"][contestant]["median"] / ceiling
            axes.errorbar(share, y + spread(i, len(contestants)), **mark(contestant))
    axes.set_xlim(left=0, right=max(1.05, axes.get_xlim()[1]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
    legend(axes)
    return figure


def costs(points: Sequence[Measurement], kind: str, fits: Sequence[Mapping[str, Any]], caption: str) -> Figure:
    """Times against tensors or elements, with the fitted costs as lines and in the legend."""
    figure = Figure(figsize=(9, 5.5))
    axes = figure.add_subplot()
    first = points[0]
    names = [name for name in COLOURS if any(name in m["rounds_ns"] for m in points)]
    for name in names:
        taken = [m for m in points if name in m["summary_ns"]]
        x = [m[kind] for m in taken]
        y = [m["summary_ns"][name]["median"] for m in taken]
        low, high = (
            [abs(m["summary_ns"][name][p] - m["summary_ns"][name]["median"]) for m in taken] for p in ("p20", "p80")
        )
        key = (name, first["optimizer"], first["dtype"], first["clock"])
        found = [f for f in fits if (f["contestant"], f["optimizer"], f["dtype"], f["clock"]) == key]
        label = name
        if found:
            cost = Cost(found[0]["fixed"], found[0]["per_tensor"], found[0]["per_element"])
            label = f"{name}\n{cost}"
            along = np.geomspace(min(x), max(x), 100)
            line = [cost.at(n, n * EACH) if kind == TENSORS else cost.at(1, n) for n in along]
            axes.plot(along, line, color=COLOURS[name], linewidth=1, alpha=0.6)
        axes.errorbar(x, y, yerr=[low, high], **{**mark(name), "label": label})
    axes.set_xscale("log", base=10 if kind == TENSORS else 2)
    axes.set_yscale("log")
    what = f"tensors of {EACH} elements" if kind == TENSORS else "elements of one tensor"
    axes.set_xlabel(f"number of {what}")
    axes.set_ylabel("time of a step (20th to 80th percentile)")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: span(value)))
    dtype = str(first["dtype"]).removeprefix("torch.")
    axes.set_title(f"What a step of {first['optimizer']} costs against its number of {kind} ({dtype})\n", loc="left")
    axes.text(0, 1.01, caption, transform=axes.transAxes, fontsize=8, color="0.4", va="bottom")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    legend(axes)
    return figure
