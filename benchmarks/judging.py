"""What the project's promises are judged by, beside what every benchmark is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from fusedopt.bench.baselines import OURS
from fusedopt.bench.clock import MODES, Cpu
from fusedopt.bench.entrants import Entrant
from fusedopt.bench.method import Ratio, bootstrap, steady
from fusedopt.bench.report import Finding


class Pretend(Cpu):
    """The CPU in a GPU's place: everything runs, and nothing that comes out says anything about a GPU."""

    modes = MODES

    def free_bytes(self) -> int:
        return 2**30

    def facts(self) -> dict[str, Any]:
        return {"name": "none, a dry run on the CPU", "cuda": None, "driver": None}


def check_agreement(entrants: dict[str, Entrant], stray: float = 0, atol: float = 1e-5) -> None:
    """Raise AssertionError unless all hold the same parameters up to rounding: a wrong result is not worth timing.

    ``stray`` is the share of a tensor's elements that may differ by more. Among hundreds of millions in 16 bits a few
    were within a rounding of a tie several times in a row.
    """
    # The default atol of 1e-5 supposes float32 state; a moment held in 16 bits is up to 0.4 % off, and so are updates.
    half = entrants[OURS].params[0].dtype != torch.float32
    rtol, atol = (1.6e-2, 1e-4) if half else (1.3e-6, atol)
    for name, entrant in entrants.items():
        for index, (ours, theirs) in enumerate(zip(entrants[OURS].params, entrant.params, strict=True)):
            if theirs.equal(ours):  # as the control's always are: tolerances take longer
                continue
            apart = int(torch.isclose(theirs, ours, rtol=rtol, atol=atol).logical_not().sum())
            if apart <= stray * ours.numel():
                continue
            try:
                torch.testing.assert_close(theirs, ours, rtol=rtol, atol=atol)
            except AssertionError as error:
                raise AssertionError(f"{name} and {OURS} differ in tensor {index}: {error}") from error


def geometric_mean(pairs: Sequence[tuple[Sequence[float], Sequence[float]]]) -> Ratio:
    """Of the ratios of several measurements, each resampled on its own."""
    logs = [np.log(bootstrap(above, below, seed=seed)) for seed, (above, below) in enumerate(pairs)]
    low, high = np.exp(np.percentile(np.mean(logs, axis=0), [5, 95]))
    value = np.exp(np.mean([np.log(np.median(above) / np.median(below)) for above, below in pairs]))
    return Ratio(float(value), float(low), float(high))


def best_of(rounds: Mapping[str, Sequence[float]], names: Sequence[str]) -> str:
    return min(names, key=lambda name: float(np.median(rounds[name])))


def verdict(
    ratio: Ratio, asked: float, at_most: bool = False, control: Ratio | None = None, spread: float = 1.25
) -> str:
    """``met``, ``missed``, ``unclear`` where only the interval reaches the asked value, or ``noisy``.

    Noisy is a measurement whose A/A control, two copies of one program, is off by a quarter (``spread``): it can prove
    nothing.
    """
    if control is not None and not steady(control, spread):
        return "noisy"
    if ratio.value <= asked if at_most else ratio.value >= asked:
        return "met"
    return "unclear" if ratio.low <= asked <= ratio.high else "missed"


def goal_of(finding: Finding) -> str:
    """What it asks for, as tables have it."""
    return "" if finding.asked is None else f"{'<=' if finding.at_most else '>='} {finding.asked:g}{finding.unit}"
