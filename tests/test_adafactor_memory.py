"""What a step of Adafactor takes beside its state."""

from __future__ import annotations

from pathlib import Path

import memory
import pytest
from support import EMULATED
from tiers import slow


@slow("a first step of torch's over a model takes ten seconds")
@pytest.mark.skipif(EMULATED, reason="the emulator keeps the device's memory on the host")
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's counters")
def test_temporaries_take_a_tenth_of_torchs() -> None:
    ours = memory.measure_apart("gpt2", "Adafactor", "fusedopt")
    torchs = memory.measure_apart("gpt2", "Adafactor", "torch for-loop")
    for kind in ("first_step_peak", "later_step_peak"):
        state = ours["state"] if kind == "first_step_peak" else 0
        assert (ours[kind] - state) * 10 <= torchs[kind] - state, (ours, torchs)
