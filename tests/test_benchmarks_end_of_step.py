"""The benchmark of what surrounds a step runs, compares equal results and writes what it measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("rich")

import end_of_step

from fusedopt.bench.suites import SUITES


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


@pytest.mark.parametrize("task", end_of_step.TASKS[:2], ids=lambda task: task.name)
def test_every_step_clips(task: end_of_step.Task) -> None:
    """Else torch would write gradients that ours need not."""
    entrant = end_of_step.trainees(task, SUITES["gpt2"].cut())[end_of_step.OURS]
    entrant.prepare()
    grads = [param.grad / task.grad_scale for param in entrant.params if param.grad is not None]
    assert torch.nn.utils.get_total_norm(grads) > 2 * end_of_step.MAX_NORM


def test_results_that_differ_are_not_timed() -> None:
    task = replace(end_of_step.TASKS[0], ours=end_of_step.stored(None))
    scaled = replace(task, theirs=lambda params: torch.optim.SGD(params, lr=1.0).step)
    with pytest.raises(AssertionError, match="not close"):
        end_of_step.measure(scaled, SUITES["gpt2"].cut(), end_of_step.Effort(rounds=2), lambda: None)
