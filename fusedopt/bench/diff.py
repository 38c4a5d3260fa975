"""What became slower between two runs, beyond what noise explains."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .baselines import CONTROL, OURS
from .kernel import KERNEL
from .method import Ratio, compare, medians_drawn
from .report import BenchError

SLOWER, FASTER, SAME = "slower", "faster", "same"
# Two runs of one program on a quiet machine differ by this much.
LEAST_NOISE = 0.02
# What tells that the machine itself was slower: other people's programs, which have not changed.
NO_WITNESS = (OURS, CONTROL, KERNEL)


@dataclass(frozen=True)
class Change:
    """Ours in the new run over ours in the old one; below 1 it became faster.

    ``machine`` is the same ratio of the contestants that are not ours, by which ``change`` is already divided: a busy
    neighbour or another clock slows them just as much. ``noise`` is how far a ratio may be from 1 and mean nothing.
    """

    name: str
    change: Ratio
    machine: float | None
    noise: float

    @property
    def verdict(self) -> str:
        if self.change.low > 1 + self.noise:
            return SLOWER
        return FASTER if self.change.high < 1 / (1 + self.noise) else SAME


@dataclass(frozen=True)
class Difference:
    changes: list[Change]
    only_old: list[str]
    only_new: list[str]
    warnings: list[str]

    @property
    def slower(self) -> list[Change]:
        return [change for change in self.changes if change.verdict == SLOWER]


def load(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except OSError as error:
        raise BenchError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise BenchError(f"{path} is no JSON: {error}") from error
    if not isinstance(found, dict) or "measurements" not in found or "schema" not in found:
        raise BenchError(f"{path} holds no measurements; give the results.json of two runs")
    return found


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> Difference:
    """Measurement by measurement, as far as both runs have it."""
    before, after = measured(old), measured(new)
    common = [name for name in before if name in after]
    if not common:
        raise BenchError("the two runs have no measurement in common; measure the same suites and optimizers")
    warnings = [
        f"{fact} differs: {old['machine'].get(fact)} and {new['machine'].get(fact)}"
        for fact in ("cpu", "threads", "torch", "python")
        if old["machine"].get(fact) != new["machine"].get(fact)
    ]
    return Difference(
        [change_of(name, before[name], after[name]) for name in common],
        [name for name in before if name not in after],
        [name for name in after if name not in before],
        warnings,
    )


def measured(run: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {m["name"]: m["rounds_ns"] for m in run["measurements"] if OURS in m.get("rounds_ns", {})}


def change_of(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Change:
    """Rounds of different runs are no pairs, so each run draws its own; within a run they are, and stay together."""
    drawn_old, drawn_new = medians_drawn(old, seed=0), medians_drawn(new, seed=1)
    witnesses = [who for who in old if who in new and who not in NO_WITNESS]
    draws = drawn_new[OURS] / drawn_old[OURS]
    value = float(np.median(new[OURS]) / np.median(old[OURS]))
    machine = None
    if witnesses:
        moved = np.mean([np.log(drawn_new[who] / drawn_old[who]) for who in witnesses], axis=0)
        machine = float(np.exp(np.mean([np.log(np.median(new[who]) / np.median(old[who])) for who in witnesses])))
        draws, value = draws / np.exp(moved), value / machine
    low, high = np.percentile(draws, [5, 95])
    controls = [compare(run[CONTROL], run[OURS]).value for run in (old, new) if CONTROL in run]
    noise = max([LEAST_NOISE, *(max(control, 1 / control) - 1 for control in controls)])
    return Change(name, Ratio(value, float(low), float(high)), machine, noise)
