"""Shards on devices, in two processes that step on the emulated one, beside two that step on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import ranks
import sharded_factored
import sharded_on_device
import sharded_sums
import torch
from support import assert_identical

# Cases of the CPU's that are as much of a device's.
OF_BOTH = [
    sharded_factored.adafactor_refuses_together,
    sharded_factored.a_failure_between_the_two_sums_is_everybodys,
    sharded_sums.muon_refuses_together_too,
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ends")


@pytest.mark.parametrize("engine", ["cpu", "emulated"])
def test_cases(engine: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The emulator is built here, so that the two do not do it at once."""
    monkeypatch.chdir(folder)
    modules = [module.__name__ for module in (sharded_on_device, sharded_factored, sharded_sums)]
    if engine == "emulated":
        from build import build

        build()
        modules.insert(0, "emulated_first")
    of = {name for name, (_, run) in ranks.CASES.items() if run.__module__ == sharded_on_device.__name__}
    if engine == "emulated":
        of |= {run.__name__ for run in OF_BOTH}
    told = ranks.run_all(2, modules, tmp_path, of)
    failed = {name: its for name, its in told.items() if its}
    assert set(told) == of
    assert not failed, "\n\n".join(f"{name}\n{its}" for name, its in failed.items())


def test_both_have_the_same_bits(folder: Path) -> None:
    for of in ("0", "1", "distance-0", "distance-1"):
        ends = [torch.load(folder / f"{engine}-{of}") for engine in ("cpu", "emulated")]
        for name in ends[0]:
            assert_identical(ends[1][name], ends[0][name])
