"""What a step of Adafactor takes beside its state."""

from __future__ import annotations

import math
from pathlib import Path

import memory
import pytest
import tiers
from support import EMULATED

from fusedopt.bench import suites


@pytest.mark.skipif(EMULATED, reason="the emulator keeps the device's memory on the host")
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's counters")
def test_temporaries_take_a_tenth_of_torchs() -> None:
    ours = memory.measure_apart("gpt2", "Adafactor", "fusedopt")
    if tiers.everything:
        torchs = memory.measure_apart("gpt2", "Adafactor", "torch for-loop")
    else:
        # At the least, for its update has the size of the param. To see it takes torch ten seconds.
        largest = 4 * max(math.prod(shape) for shape in suites.SUITES["gpt2"].shapes)
        torchs = {"first_step_peak": ours["state"] + largest, "later_step_peak": largest}
    for kind in ("first_step_peak", "later_step_peak"):
        state = ours["state"] if kind == "first_step_peak" else 0
        assert (ours[kind] - state) * 10 <= torchs[kind] - state, (ours, torchs)
