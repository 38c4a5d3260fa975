"""The benchmark of sharded training runs in its processes, compares equal results and writes what it measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiers import slow

pytest.importorskip("rich")

import distributed


@slow("rounds of seconds, in processes of their own")
def test_a_quick_run_writes_its_rounds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
        pytest.skip("needs gloo")
    out = tmp_path / "found.json"
    assert distributed.main(["--quick", "--only", "100 params: clip", "--out", str(out)]) == 0
    written = json.loads(out.read_text())
    (finding,) = written["findings"]
    beside = {distributed.REDUCES, distributed.UNCLIPPED, distributed.BOTH}
    assert set(finding["nanoseconds"]) == {distributed.OURS, distributed.CONTROL, distributed.FUSED, *beside}
    assert len(finding["nanoseconds"][distributed.OURS]) == 5
    assert (written["machine"]["processes"], written["machine"]["threads"]) == (2, 1)
    assert "at least" in capsys.readouterr().out


def test_growth_is_told() -> None:
    assert distributed.grows({"objects": 3, "bytes": 4096}, 1000) == "met"
    assert distributed.grows({"objects": 2000, "bytes": 0}, 1000) == "missed"
    assert distributed.grows({"objects": 0, "bytes": 2**25}, 1000) == "missed"
