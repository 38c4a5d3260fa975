"""What a run found, as aligned tables."""

from __future__ import annotations

import itertools
import sys
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from .diff import FASTER, SLOWER, Difference
from .machine import where
from .method import Ratio
from .report import NOISY, Finding, Report
from .sweeps import Cost, span

# A console that is no terminal gets as much room as the columns take.
WIDTH = 190


def console() -> Console:
    """Wide enough for every column also where the output is a file."""
    return Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)


def show(report: Report) -> None:
    """All of a report that is for people, on the standard output; failures go to the standard error."""
    out = console()
    if report.findings:
        out.print(findings_table(report))
    if report.fits:
        out.print(fits_table(report.fits))
    for line in remarks(report):
        print(line)
    missing = report.machine.get("absent")
    if missing:
        print("absent:", "; ".join(f"{name} ({reason})" for name, reason in missing.items()))
    print(where(report.machine))
    for failure in report.failures:
        print(failure, file=sys.stderr)


def headed(title: str, left: tuple[str, ...], right: tuple[str, ...]) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for heading in left:
        table.add_column(heading, overflow="fold")
    for heading in right:
        table.add_column(heading, justify="right", overflow="fold")
    return table


def interval(ratio: Ratio) -> str:
    return f"{short(ratio.low)} to {short(ratio.high)}"


def short(value: float) -> str:
    """Three digits, and no exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def time_of(ms: float | None) -> str:
    return "" if ms is None else span(ms * 1e6)


def ours(finding: Finding) -> str:
    """What belongs to ours alone, whoever it is held against."""
    facts = [f"{finding.measurement}: {time_of(finding.ours_ms)}"]
    if finding.gb_per_s:
        facts.append(f"{short(finding.gb_per_s)} GB/s")
    if finding.of_streaming is not None:
        facts[-1] += f" ({100 * finding.of_streaming.value:.0f} % of streaming)"
    if finding.control is not None:
        facts.append(f"A/A {finding.control.value:.2f}")
    return ", ".join(facts)


def findings_table(report: Report) -> Group:
    """A paragraph for each measurement; lines are short, so that none is cut off in a terminal of 80 columns."""
    parts: list[Any] = [Text("Whole steps: medians; speed-up with the 5-95 % interval of its bootstrap")]
    widths = [max((len(cells[k]) for cells in map(row, report.findings)), default=0) for k in range(5)]
    for _, findings in itertools.groupby(report.findings, key=ours):
        found = list(findings)
        parts += ["", Text(ours(found[0]), style="bold")]
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        for k, width in enumerate(widths):
            table.add_column(justify="left" if k == 0 else "right", min_width=width, overflow="fold")
        for finding in found:
            table.add_row(*row(finding))
        parts.append(Padding(table, (0, 0, 0, 2)))
    return Group(*parts)


def row(finding: Finding) -> list[str]:
    return [
        finding.against,
        time_of(finding.theirs_ms),
        f"{short(finding.measured.value)}{finding.unit}",
        interval(finding.measured),
        finding.verdict if finding.verdict == NOISY else "",
    ]


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
        "fusedopt, new over old, by how the others changed; 5-95 % interval",
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
