"""What the rounds on a GPU say, goal by goal, and the table of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gpu_table import (
    ALIGNMENT,
    ALIGNMENT_ASKED,
    LAUNCHES,
    LAUNCHES_ASKED,
    MEAN,
    MEAN_ASKED,
    MEAN_OF,
    SHARE,
    SPEEDUP,
    SPREAD,
    TIME,
    Goal,
)
from judging import geometric_mean, goal_of, verdict
from report import STYLES
from rich.box import SIMPLE_HEAD
from rich.table import Table

from fusedopt.bench.baselines import CONTROL, OURS
from fusedopt.bench.method import Ratio, Rounds, Summary, compare, scaled, summarise
from fusedopt.bench.report import REPORTED, Finding, milliseconds
from fusedopt.bench.streaming import COPY


def judged(ratio: Ratio, asked: float | None, at_most: bool, control: Ratio | None, spread: float) -> str:
    return REPORTED if asked is None else verdict(ratio, asked, at_most, control, spread)


def share_of(copy: Sequence[float], copied: int, ours: Sequence[float], moved: int) -> Ratio:
    """Our bytes a second over a copy's, from rounds that both took part in."""
    return scaled(compare(copy, ours), moved / copied)


def goal_finding(trial: str, goal: Goal, rounds: Rounds, moved: int, copied: int) -> Finding:
    """``moved`` and ``copied`` are the bytes of a step and of a copy."""
    ours = rounds[OURS]
    control = compare(rounds[CONTROL], ours)
    of_streaming = share_of(rounds[COPY], copied, ours, moved) if COPY in rounds else None
    against = goal.against
    if goal.kind == TIME:
        ratio, unit = bounds(summarise(ours)), " us"
    elif goal.kind == SHARE:
        if of_streaming is None:
            raise ValueError(f"{trial}: no copy took part")
        ratio, unit, against = of_streaming, "", "rate of a copy"
    elif goal.kind == SPEEDUP:
        ratio, unit = compare(rounds[goal.against], ours), "x"
    else:
        raise ValueError(f"{trial}: there is no goal of kind {goal.kind!r}")
    at_most = goal.kind == TIME
    return Finding(
        measurement=f"{trial}, {goal.mode}",
        against=against,
        measured=ratio,
        asked=goal.asked,
        at_most=at_most,
        verdict=judged(ratio, goal.asked, at_most, control, SPREAD[goal.mode]),
        unit=unit,
        ours_ms=milliseconds(ours),
        theirs_ms=milliseconds(rounds[goal.against]) if goal.against else None,
        control=control,
        gb_per_s=moved / summarise(ours).median if of_streaming else None,
        of_streaming=of_streaming,
    )


def bounds(summary: Summary) -> Ratio:
    """A time in microseconds; its 20th and 80th percentile stand where a ratio has its interval."""
    return Ratio(summary.median / 1e3, summary.p20 / 1e3, summary.p80 / 1e3)


def alignment_finding(mode: str, rounds: Rounds, traffics: Mapping[str, int]) -> Finding:
    aligned = rounds["aligned"]
    ratio = share_of(aligned, traffics["aligned"], rounds[OURS], traffics[OURS])
    control = compare(rounds[CONTROL], rounds[OURS])
    return Finding(
        measurement=f"{ALIGNMENT}, {mode}",
        against="rate of aligned",
        measured=ratio,
        asked=ALIGNMENT_ASKED,
        at_most=False,
        verdict=verdict(ratio, ALIGNMENT_ASKED, control=control, spread=SPREAD[mode]),
        unit="",
        ours_ms=milliseconds(rounds[OURS]),
        theirs_ms=milliseconds(aligned),
        control=control,
        gb_per_s=traffics[OURS] / summarise(rounds[OURS]).median,
    )


def launches_finding(suite: str, steps: int, kernels: Mapping[str, int]) -> Finding:
    each = sum(kernels.values()) / steps
    exact = Ratio(each, each, each)
    return Finding(
        measurement=f"{LAUNCHES}, {suite}",
        against="",
        measured=exact,
        asked=LAUNCHES_ASKED,
        at_most=True,
        verdict=verdict(exact, LAUNCHES_ASKED, at_most=True),
        unit=" a step",
    )


def mean_finding(all_rounds: Mapping[str, Rounds], against: str) -> Finding | None:
    """None unless every one of its measurements was made."""
    if any(name not in all_rounds for name in MEAN_OF):
        return None
    mean = geometric_mean([(all_rounds[name][against], all_rounds[name][OURS]) for name in MEAN_OF])
    return Finding(
        measurement=MEAN,
        against=against,
        measured=mean,
        asked=MEAN_ASKED,
        at_most=False,
        verdict=verdict(mean, MEAN_ASKED),
    )


def copy_finding(name: str, samples: Sequence[float], copied: int) -> Finding:
    summary = summarise(samples)
    rate = copied / summary.median
    return Finding(
        measurement=name,
        against="",
        measured=Ratio(rate, copied / summary.p80, copied / summary.p20),
        asked=None,
        at_most=False,
        verdict=REPORTED,
        unit=" GB/s",
        ours_ms=summary.median / 1e6,
    )


def micro(milliseconds: float | None) -> str:
    return "" if milliseconds is None else f"{milliseconds * 1e3:.1f}"


def short(value: float) -> str:
    """Three digits, and no exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def span(ratio: Ratio) -> str:
    return "" if ratio.low == ratio.high else f"{short(ratio.low)} to {short(ratio.high)}"


def percent(ratio: Ratio | None) -> str:
    return "" if ratio is None else f"{ratio.value * 100:.1f} %"


def make_gpu_table(findings: Sequence[Finding]) -> Table:
    title = "fusedopt on a GPU: medians; 5-95 % bootstrap intervals of ratios, 20-80 % of single figures"
    table = Table(title=title, box=SIMPLE_HEAD)
    for heading in ("measurement", "against"):
        table.add_column(heading, no_wrap=True)
    for heading in ("theirs us", "ours us", "GB/s", "of copy", "measured", "interval", "asked", "A/A"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for finding in findings:
        table.add_row(
            finding.measurement,
            finding.against,
            micro(finding.theirs_ms),
            micro(finding.ours_ms),
            "" if finding.gb_per_s is None else f"{finding.gb_per_s:.0f}",
            percent(finding.of_streaming),
            f"{short(finding.measured.value)}{finding.unit}",
            span(finding.measured),
            goal_of(finding),
            "" if finding.control is None else f"{finding.control.value:.3f}",
            f"[{STYLES[finding.verdict]}]{finding.verdict}",
        )
    return table
