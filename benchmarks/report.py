"""What the rounds say about the promises: one finding per question, and the table of all findings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from judging import best_of, goal_of, verdict
from rich.table import Table
from table import IN_LOOP, MEMORY, MEMORY_ALLOWANCE, Question, Temporaries

from fusedopt.bench.baselines import CONTROL, OURS
from fusedopt.bench.method import Ratio, Rounds, compare
from fusedopt.bench.report import Finding, milliseconds
from fusedopt.bench.training import kept_ratio

STYLES = {"met": "green", "noisy": "magenta", "unclear": "yellow", "missed": "bold red", "reported": "dim"}


def contest_finding(question: Question, rounds: Rounds) -> Finding:
    rival = best_of(rounds, question.against)
    # The bare loop is the floor, so there the question is how far above it we are.
    pair = (OURS, rival) if question.at_most else (rival, OURS)
    ratio = compare(rounds[pair[0]], rounds[pair[1]])
    control = compare(rounds[CONTROL], rounds[OURS])
    return Finding(
        measurement=question.contest.name,
        against=rival if len(question.against) == 1 else f"best: {rival}",
        measured=ratio,
        asked=question.asked,
        at_most=question.at_most,
        verdict=verdict(ratio, question.asked, question.at_most, control),
        ours_ms=milliseconds(rounds[OURS]),
        theirs_ms=milliseconds(rounds[rival]),
        control=control,
    )


def in_loop_finding(name: str, rival: str, in_loop: Rounds) -> Finding:
    """Is a step right after backward faster than the rival's there?"""
    ratio, control = compare(in_loop[rival], in_loop[OURS]), compare(in_loop[CONTROL], in_loop[OURS])
    return Finding(
        measurement=name,
        against=rival,
        measured=ratio,
        asked=IN_LOOP,
        at_most=False,
        verdict=verdict(ratio, IN_LOOP, control=control),
        ours_ms=milliseconds(in_loop[OURS]),
        theirs_ms=milliseconds(in_loop[rival]),
        control=control,
    )


def kept_finding(name: str, rival: str, isolated: Rounds, in_loop: Rounds) -> Finding:
    """Does the ratio inside the loop keep up with the isolated one? Their quotient must not fall below 1."""
    inside, outside = (compare(rounds[rival], rounds[OURS]) for rounds in (in_loop, isolated))
    control = compare(in_loop[CONTROL], in_loop[OURS])
    kept = kept_ratio(rival, isolated, in_loop)
    return Finding(
        measurement=name,
        against=f"{rival}: {inside.value:.2f}x in the loop, {outside.value:.2f}x isolated",
        measured=kept,
        asked=1.0,
        at_most=False,
        verdict=verdict(kept, 1.0, control=control),
        ours_ms=milliseconds(in_loop[OURS]),
        theirs_ms=milliseconds(in_loop[rival]),
        control=control,
    )


def memory_finding(suite: str, sizes: Mapping[str, Any]) -> Finding:
    over = (sizes["first_step_peak"] - sizes["state"]) / 2**20
    exact, allowed = Ratio(over, over, over), MEMORY_ALLOWANCE / 2**20
    return Finding(
        measurement=f"{MEMORY}-{suite}",
        against=f"peak of the first step over its {sizes['state'] / 2**20:.0f} MiB of state",
        measured=exact,
        asked=allowed,
        at_most=True,
        verdict=verdict(exact, allowed, at_most=True),
        unit=" MiB",
    )


def temporaries_finding(
    name: str, question: Temporaries, ours: Mapping[str, Any], theirs: Mapping[str, Any]
) -> Finding:
    kind = "later_step_peak"
    times = theirs[kind] / max(ours[kind], 1)
    exact = Ratio(times, times, times)
    return Finding(
        measurement=name,
        against=f"{question.rival}: {theirs[kind] / 2**20:.0f} MiB at the peak of a later step, ours "
        f"{ours[kind] / 2**20:.1f} MiB",
        measured=exact,
        asked=question.asked,
        at_most=False,
        verdict=verdict(exact, question.asked),
    )


def make_table(findings: Sequence[Finding]) -> Table:
    table = Table(title="fusedopt against torch.optim: whole step() calls, medians, 5-95 % bootstrap intervals")
    table.add_column("measurement", no_wrap=True)
    table.add_column("against")
    for heading in ("theirs ms", "ours ms", "measured", "interval", "asked", "A/A"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("")
    for finding in findings:
        table.add_row(
            finding.measurement,
            finding.against,
            "" if finding.theirs_ms is None else f"{finding.theirs_ms:.3f}",
            "" if finding.ours_ms is None else f"{finding.ours_ms:.3f}",
            f"{finding.measured.value:.2f}{finding.unit}",
            finding.interval,
            goal_of(finding),
            "" if finding.control is None else f"{finding.control.value:.2f}",
            f"[{STYLES[finding.verdict]}]{finding.verdict}",
        )
    return table
