"""The comparisons of small tensors and of storages: what they measure and hold against what."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import cold
import narrow
import offload
import pytest

import fusedopt


def _run(script: ModuleType, tmp_path: Path, *arguments: str) -> list[dict[str, Any]]:
    out = tmp_path / "found.json"
    assert script.main(["--quick", "--seconds", "1", "--out", str(out), *arguments]) == 0
    written = json.loads(out.read_text())
    assert written["machine"]["command"].startswith("python")
    found: list[dict[str, Any]] = written["findings"]
    return found


def test_states_in_fewer_bits_are_held_against_float32_of_the_same_run(tmp_path: Path) -> None:
    found = _run(narrow, tmp_path, "--only", "float32 with")
    assert [line["workload"] for line in found] == [f"AdamW, float32 with {name} states" for name in narrow.STORAGES]
    for line in found:
        medians = line["medians"]
        assert line["ratio"]["value"] == medians["float32"] / medians["fusedopt"]
        assert set(line["nanoseconds"]) == {"float32", "fusedopt", "fusedopt again", "bare loop"}


def test_the_best_of_torch_is_the_rival_in_every_dtype(tmp_path: Path) -> None:
    found = _run(narrow, tmp_path, "--only", "AdamW, all")
    assert [line["workload"] for line in found] == [
        f"AdamW, all {dtype}" for dtype in ("float32", "bfloat16", "float16", "float64", "complex64")
    ]
    for line in found:
        torchs = {name: time for name, time in line["medians"].items() if name.startswith("torch")}
        assert line["against"] == min(torchs, key=lambda name: torchs[name])
        assert "fused" in str(torchs) or line["workload"] == "AdamW, all complex64"


def test_float16_is_held_against_bfloat16_in_its_place(tmp_path: Path) -> None:
    found = _run(narrow, tmp_path, "--only", "Lion, float16")
    assert [line["workload"] for line in found] == [f"Lion, float16 {mix}" for mix in narrow.MIXES]
    assert {line["against"] for line in found} == {"the same with bfloat16"}
    assert {"Lion", "LAMB", "Adagrad"} <= set(narrow.every_rule())


@pytest.mark.parametrize("caches", ["cold", "warm"])
def test_many_tensors_are_held_against_the_sum_of_their_parts(tmp_path: Path, caches: str) -> None:
    found = _run(cold, tmp_path, "--only", "1000 x 256 adamw", *(["--warm"] if caches == "warm" else []))
    assert [line["against"] for line in found] == ["torch fused", "the sum of its parts"]
    assert {line["cold"] for line in found} == {caches == "cold"}
    assert set(found[0]["medians"]) >= {"fusedopt", "fusedopt again", "objects alone", "numbers alone", "torch fused"}


def test_the_host_part_of_an_offloaded_step_is_held_against_conversions(tmp_path: Path) -> None:
    found = _run(offload, tmp_path)
    pairs = [(line["ours"], line["against"]) for line in found]
    assert pairs[:3] == [
        (offload.OURS, offload.CONTROL),
        (offload.OURS, offload.TORCH),
        (offload.COPYING, offload.TORCH),
    ]
    assert {line["asked"] for line in found if line["against"] != offload.DEEPSPEED} == {None}


def test_all_workloads_step_what_they_say() -> None:
    for workload in cold.WORKLOADS:
        small = cold.replace(workload, sizes=workload.sizes[:3])
        for step in (cold.ours(small), cold.theirs(small)):
            step()
    assert {name for name in narrow.RULES if not hasattr(fusedopt, name)} == set()
