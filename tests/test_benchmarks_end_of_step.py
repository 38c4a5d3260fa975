"""The benchmark of clipping runs, compares equal results and writes what it measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("rich")

import end_of_step
from suites import SUITES


def test_a_quick_run_writes_its_rounds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "found.json"
    assert end_of_step.main(["--quick", "--out", str(out)]) == 0
    written = json.loads(out.read_text())
    assert [finding["task"] for finding in written["findings"]] == [task.name for task in end_of_step.TASKS]
    for finding in written["findings"]:
        assert set(finding["nanoseconds"]) == {end_of_step.OURS, end_of_step.RIVAL, end_of_step.CONTROL}
        assert len(finding["nanoseconds"]["torch"]) == 5
    assert written["machine"]["torch"] == torch.__version__
    assert "ratio" in capsys.readouterr().out


@pytest.mark.parametrize("task", end_of_step.TASKS, ids=lambda task: task.name)
def test_every_step_clips(task: end_of_step.Task) -> None:
    """Else torch would write gradients that ours need not."""
    entrant = end_of_step.trainees(task, SUITES["gpt2"].cut())[end_of_step.OURS]
    entrant.prepare()
    entrant.call()
    assert entrant.optimizer.grad_norm > 2 * end_of_step.MAX_NORM


def test_results_that_differ_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(end_of_step.Trainee, "prepare", lambda self: [p.grad.fill_(self.ours) for p in self.params])
    with pytest.raises(AssertionError, match="not close"):
        end_of_step.measure(end_of_step.TASKS[0], SUITES["gpt2"].cut(), end_of_step.Effort(rounds=2), lambda: None)
