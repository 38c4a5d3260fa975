"""What a run writes: facts of the machine, findings, the rounds themselves, and what could not be measured."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from .method import Ratio, Rounds, summarise

SCHEMA = 2
REPORTED, NOISY = "reported", "noisy"


class BenchError(Exception):
    """Why a run cannot go on, in a sentence for whoever started it."""


@dataclass(frozen=True)
class Finding:
    """A measured figure beside the asked one. Times are medians in milliseconds; ``control`` is the A/A ratio.

    Where a step is bound by memory also the rate of our traffic in GB/s and its share of the streaming bandwidth that
    the same rounds reach.
    """

    measurement: str
    against: str
    measured: Ratio
    asked: float | None
    at_most: bool
    verdict: str
    unit: str = "x"
    ours_ms: float | None = None
    theirs_ms: float | None = None
    control: Ratio | None = None
    gb_per_s: float | None = None
    of_streaming: Ratio | None = None

    @property
    def interval(self) -> str:
        ratio = self.measured
        return "" if ratio.low == ratio.high else f"{ratio.low:.2f}-{ratio.high:.2f}"


@dataclass
class Report:
    """Everything a run has found so far."""

    machine: dict[str, Any]
    findings: list[Finding] = field(default_factory=list)
    measurements: list[dict[str, Any]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    fits: list[dict[str, Any]] = field(default_factory=list)
    complete: bool = False

    def as_json(self) -> str:
        return json.dumps({"schema": SCHEMA, **asdict(self)}, indent=1, default=str) + "\n"

    def show(self) -> None:
        """Print the tables, as the command does; they need rich, as BenchError says where it is missing."""
        from .extras import require

        require("rich")
        from .tables import show

        show(self)


def record(name: str, rounds: Rounds, **facts: Any) -> dict[str, Any]:
    summaries = {contestant: asdict(summarise(samples)) for contestant, samples in rounds.items()}
    return {"name": name, **facts, "summary_ns": summaries, "rounds_ns": rounds}


def milliseconds(rounds: Sequence[float]) -> float:
    return summarise(rounds).median / 1e6
