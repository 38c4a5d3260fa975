"""What a run found, as aligned tables."""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from .diff import FASTER, SLOWER, Difference
from .method import Ratio
from .report import NOISY, Finding, Report
from .sweeps import Cost, span

# A console that is no terminal gets as much room as the columns take.
WIDTH = 190


def headed(title: str, left: tuple[str, ...], right: tuple[str, ...]) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for heading in left:
        table.add_column(heading, no_wrap=True)
    for heading in right:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def interval(ratio: Ratio) -> str:
    return f"{short(ratio.low)} to {short(ratio.high)}"


def short(value: float) -> str:
    """Three digits, and no exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def time_of(ms: float | None) -> str:
    return "" if ms is None else span(ms * 1e6)


def row(finding: Finding) -> list[str]:
    control, share = finding.control, finding.of_streaming
    return [
        finding.measurement,
        finding.against,
        time_of(finding.theirs_ms),
        time_of(finding.ours_ms),
        f"{short(finding.measured.value)}{finding.unit}",
        interval(finding.measured),
        "" if not finding.gb_per_s else short(finding.gb_per_s),
        "" if share is None else f"{100 * share.value:.0f} %",
        "" if control is None else f"{control.value:.2f} ({interval(control)})",
        "noisy" if finding.verdict == NOISY else "",
    ]


def findings_table(report: Report) -> Table:
    table = headed(
        "whole steps: medians; speed-up of fusedopt with the 5-95 % interval of its bootstrap",
        ("measurement", "against"),
        ("theirs", "ours", "speed-up", "interval", "GB/s", "of streaming", "A/A", ""),
    )
    before = ""
    for finding in report.findings:
        cells = row(finding)
        if finding.measurement == before:
            # What belongs to ours alone stands once.
            cells = ["", *cells[1:3], "", *cells[4:6], "", "", "", cells[9]]
        before = finding.measurement
        table.add_row(*cells)
    return table


def fits_table(fits: list[dict[str, Any]]) -> Table:
    table = headed("what a step costs", ("contestant", "optimizer", "dtype", "clock", "cost"), ())
    for found in fits:
        cost = Cost(found["fixed"], found["per_tensor"], found["per_element"])
        dtype = str(found["dtype"]).removeprefix("torch.")
        table.add_row(found["contestant"], found["optimizer"], dtype, found["clock"], str(cost))
    return table


def remarks(report: Report) -> list[str]:
    """Who was left out of what and why, each reason once."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for measurement in report.measurements:
        for name, reason in measurement.get("left_out", {}).items():
            if not reason.startswith("absent"):
                reasons.setdefault((name, reason), []).append(measurement["name"])
    lines = [f"{name}: {reason} ({some(places)})" for (name, reason), places in reasons.items()]
    return [*lines, *report.skipped]


def some(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 2 else f"{names[0]} and {len(names) - 1} more"


def difference_table(found: Difference) -> Table:
    table = headed(
        "fusedopt, new over old, divided by how the other contestants changed; with the 5-95 % interval",
        ("measurement",),
        ("time", "interval", "others", "noise", ""),
    )
    styles = {SLOWER: "bold red", FASTER: "green"}
    for change in found.changes:
        table.add_row(
            change.name,
            f"{change.change.value:.3f}",
            f"{change.change.low:.3f} to {change.change.high:.3f}",
            "" if change.machine is None else f"{change.machine:.3f}",
            f"{100 * change.noise:.0f} %",
            change.verdict,
            style=styles.get(change.verdict),
        )
    return table
