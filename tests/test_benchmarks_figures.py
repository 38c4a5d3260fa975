"""The tables that pages show are those of the newest committed results."""

import json
from pathlib import Path

import pytest

pytest.importorskip("rich")

import figures


def test_shards_have_a_row_once_they_are_measured(tmp_path: Path) -> None:
    assert figures.newest_sharded(tmp_path) is None
    times = {"torch fused": [30e6, 20e6, 40e6], "fusedopt": [1e6, 3e6, 2e6]}
    ratio = {"value": 15.0, "low": 14.0, "high": 16.0}
    finding = {"workload": "100 params: AdamW", "against": "torch fused", "nanoseconds": times, "ratio": ratio}
    machine = {"cpu": "another processor", "date": "2026-12-01T00"}
    (tmp_path / "distributed-20261201.json").write_text(json.dumps({"machine": machine, "findings": [finding]}))
    runs = figures.newest(), figures.newest_narrow()
    without, with_them = (figures.speed(*runs, file).splitlines() for file in (None, figures.newest_sharded(tmp_path)))
    row, where = [line for line in with_them if line not in without]
    assert row.endswith("| 30 | 2 | **15.00x** (14.00 to 16.00) |")
    assert where.endswith("; the row of shards: another processor, 2026-12-01.")


def test_the_table_of_shards(tmp_path: Path) -> None:
    assert figures.sharded_figures(None) == "Not measured on this version."
    ratio = {"value": 0.25, "low": 0.25, "high": 0.25}
    common = {"asked": 0.5, "at_most": True, "verdict": "met", "against": "torch fused"}
    findings = [
        {**common, "workload": "a step", "nanoseconds": {"torch fused": [8e6], "fusedopt": [2e6]}, "ratio": ratio},
        {**common, "workload": "compiling", "seconds": {"torch fused": 4.0, "fusedopt": 1.0}, "ratio": ratio},
        {
            "workload": "a life",
            "more": {"fusedopt": {"objects": 0, "bytes": 0}, "torch fused": {"objects": 3000, "bytes": 2**21}},
            "verdict": "met",
        },
    ]
    machine = {"cpu": "A", "torch": "2", "date": "2026-12-01T00"}
    path = tmp_path / "distributed-20261201.json"
    path.write_text(json.dumps({"machine": machine, "findings": findings}))
    rows = figures.sharded_figures(path).splitlines()
    assert rows[2:5] == [
        "| a step | torch fused | 8 | 2 | 0.25x | at most 0.5x: met |",
        "| compiling | torch fused | 4000 | 1000 | 0.25x | at most 0.5x: met |",
        "| a life | | torch fused: 3,000 and 2.0 MiB | fusedopt: 0 and 0.0 MiB | | no growth: met |",
    ]


def test_pages_show_the_newest_results() -> None:
    """Figures are generated from the committed rounds; typing one in is seen here."""
    newest, others = figures.newest(), (figures.newest_narrow(), figures.newest_sharded())
    assert figures.figures(newest) in (figures.ROOT / "benchmarks/README.md").read_text()
    assert figures.speed(newest, *others) in (figures.ROOT / "README.md").read_text()
    assert figures.sharded_figures(others[1]) in (figures.ROOT / "docs/distributed.md").read_text()
    assert figures.storages(others[0]) in (figures.ROOT / "benchmarks/README.md").read_text()


def test_the_table_of_storages(tmp_path: Path) -> None:
    """Who misses the goal for certain is bold, and what was not measured is empty."""

    def found(name: str, low: float, asked: float) -> dict[str, object]:
        return {"workload": name, "ratio": {"value": low + 0.1, "low": low, "high": low + 0.2}, "asked": asked}

    findings = [found("Lion, float16 gradients of float32 params", 0.6, 0.83), found("SGD, all float32", 1.1, 1.0)]
    machine = {"cpu": "A", "threads": 2, "fusedopt": {"cpu": {"chosen": "avx2"}}, "torch": "2", "date": "2026-12-01T00"}
    path = tmp_path / "narrow-20261201.json"
    path.write_text(json.dumps({"machine": machine, "findings": findings}))
    assert figures.storages(path).splitlines()[2:4] == [
        "| Lion |  |  |  |  |  |  |  |  | **0.70** |  |",
        "| SGD | 1.20 |  |  |  |  |  |  |  |  |  |",
    ]
