"""Each row of docs/moving-in.md is run here, with the versions that the page names."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path

import test_calls
import test_refusals
import test_take_over

from fusedopt._peers.registry import name_of

PAGE = (Path(__file__).parent.parent.parent / "docs/moving-in.md").read_text()
# By their sources: no build of these steps on a CPU. Their files are in tests/test_foreign.py.
BY_SOURCES = {"apex.FusedAdam", "apex.FusedSGD", "apex.FusedLAMB", "apex.FusedNovoGrad"}
BY_SOURCES |= {"transformer_engine.FusedAdam", "transformer_engine.FusedSGD"}
# The same class as the one that is run, for CUDA or with other bits.
OF_OTHERS = {"deepspeed.FusedAdam", "torchao.Adam4bit", "torchao.AdamFp8"}
# Of tests with a name of their own.
ALONE = {
    "pytorch_optimizer.SophiaH": test_calls.test_steps_by_estimates_of_the_hessian_are_the_same,
    "deepspeed.DeepSpeedCPULion": test_calls.test_an_update_of_0_moves_deepspeeds_lion,
    # Without use_muon in its groups it does not begin.
    "pytorch_optimizer.Muon": test_refusals.test_every_other_rule_is_a_class_of_theirs,
}


def _rows(heading: str) -> list[str]:
    """The first column, where each call is in backticks."""
    section = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return [line.split("|")[1] for line in section.splitlines() if line.startswith("| ") and "their call" not in line]


def _named(cell: str) -> set[str]:
    return {call.partition("(")[0] for call in re.findall(r"`([^`]+)`", cell)} - {"optimize_1d=True"}


def _ran() -> set[str]:
    called = {name_of(call.theirs) for call in (*test_calls.SAME, *test_calls.OTHER)}
    files = {name_of(path) for path, *_ in test_refusals.FILES} | test_refusals.PATHS.keys()
    return called | files | {name_of(run.path) for run in test_take_over.RUNS} | ALONE.keys()


def test_each_row_is_run() -> None:
    ran = _ran() | BY_SOURCES | OF_OTHERS
    for heading in ("What is the same", "The same name, another rule"):
        rows = _rows(heading)
        assert len(rows) > 20
        for cell in rows:
            names = {name for name in _named(cell) if re.fullmatch(r"\w+\.\w+", name)}
            missing = names - ran
            assert not missing, (heading, cell)
            # dadaptation.* and others of timm's with caution=True
            assert names or "dadaptation" in cell or "caution" in cell, cell


def test_the_page_names_the_versions_that_run() -> None:
    said = PAGE.partition("`make test-peers`): ")[2].partition(", under torch")[0]
    found = dict(item.split() for item in said.replace("\n", " ").split(", "))
    for package, number in found.items():
        assert version(package) == number, package
    needed = {name_of(call.theirs).partition(".")[0] for call in test_calls.SAME}
    assert len(found) >= len(needed) - 2
