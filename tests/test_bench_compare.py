"""A user's own params, fitted costs, and the difference of two runs."""

from __future__ import annotations

import contextlib
import doctest
import fcntl
import json
import os
import pty
import re
import struct
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("rich")
pytest.importorskip("matplotlib")

from fusedopt import bench
from fusedopt.bench import cli, comparison, diff, runner, streaming, sweeps
from fusedopt.bench.baselines import CONTROL, FUSED, LOOP, OURS
from fusedopt.bench.method import Ratio
from fusedopt.bench.report import BenchError

QUICK: dict[str, Any] = {"baselines": [LOOP], "rounds": 2, "seconds": 120}


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(streaming, "CPU_ELEMENTS", 2**12)


def test_a_model_is_measured_and_left_alone(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Linear(5, 3)).to(memory_format=torch.channels_last)
    model[1].bias.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = bench.compare(model, {"SGD": {"lr": 0.1}}, out=tmp_path, **QUICK)
    assert report.complete
    assert report.failures == []
    measured = report.measurements[-1]
    assert (measured["tensors"], measured["elements"], measured["groups"]) == (3, 72 + 4 + 15, 1)
    assert (measured["layout"], measured["arguments"]) == ("channels-last", {"lr": 0.1})
    assert [finding.against for finding in report.findings] == [LOOP]
    for name, value in model.state_dict().items():
        assert value.equal(before[name])
    assert all(p.grad is None for p in model.parameters())
    assert json.loads((tmp_path / "results.json").read_text())["complete"]
    assert (tmp_path / "speedup.png").stat().st_size > 5_000


def test_one_name_is_enough_and_tables_are_printed_and_again(capsys: pytest.CaptureFixture[str]) -> None:
    report = bench.compare(nn.Linear(3, 2), "SGD", **QUICK)
    printed = capsys.readouterr().out
    assert "your-model-sgd-cold" in printed
    assert LOOP in printed
    report.show()
    assert capsys.readouterr().out == printed
    bench.compare(nn.Linear(3, 2), "SGD", show=False, **QUICK)
    assert capsys.readouterr().out == ""


IN_A_TERMINAL = """
import sys
from fusedopt.bench.diff import Change, Difference
from fusedopt.bench.method import Ratio
from fusedopt.bench.report import Finding, Report
from fusedopt.bench.tables import console, difference_table, show
ratio, long = Ratio(12.3456, 10.1234, 14.5678), "misaligned-adamw-bfloat16-float32-state-fresh"
finding = Finding(long, "fusedopt, one tensor", ratio, None, False, "noisy", "x", 12.34, 1234.5, ratio, 46.78, ratio)
cost = {"fixed": 1234.5, "per_tensor": 123.4, "per_element": 0.123}
fit = {"contestant": "fusedopt, one tensor", "optimizer": "AdamW", "dtype": "torch.bfloat16", "clock": "step", **cost}
# For each line that it is given: by then the terminal has another width.
while sys.stdin.readline():
    show(Report({"cpu": "a processor", "threads": 2, "torch": "2.13.0"}, [finding], fits=[fit]))
    console().print(difference_table(Difference([Change(long, ratio, 1.0, 0.1234)], [], [], [])))
    print("\\f", end="", flush=True)
"""


@pytest.fixture(scope="module")
def in_a_terminal() -> Iterator[Callable[[int], str]]:
    """What a program prints that finds itself in a terminal so wide."""
    child, terminal = pty.fork()
    if child == 0:
        os.environ.pop("COLUMNS", None)
        os.environ["TERM"] = "xterm"
        os.execv(sys.executable, [sys.executable, "-c", IN_A_TERMINAL])

    def printed(columns: int) -> str:
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        os.write(terminal, b"\n")
        text = b""
        with contextlib.suppress(OSError):  # which a terminal whose program has ended raises
            while not text.endswith(b"\f") and (chunk := os.read(terminal, 4096)):
                text += chunk
        assert text.endswith(b"\f"), text.decode()
        return re.sub(r"\x1b\[[0-9;?]*[a-z]", "", text.decode().rstrip("\f"))

    yield printed
    os.close(terminal)
    os.waitpid(child, 0)


@pytest.mark.parametrize("columns", [80, 110, 132])
def test_no_figure_is_cut_off_in_a_terminal(in_a_terminal: Callable[[int], str], columns: int) -> None:
    printed = in_a_terminal(columns)
    assert "\u2026" not in printed
    words = " ".join(printed.split())
    for whole in ("12.3x", "10.1 to 14.6", "1.23 s", "12.3 ms, 46.8 GB/s (1235 % of streaming), A/A 12.35", "noisy"):
        assert whole in words
    for whole in ("1.23 us", "12.346", "10.123 to 14.568", "1.000", "12 %", "slower"):
        assert whole in words
    assert max(len(line.rstrip("\r")) for line in printed.split("\n")) <= columns


@pytest.mark.parametrize(("busy", "spare", "crowding"), [(0.5, 0, 0.5), (0.5, 1, 0.0), (None, 0, None)])
def test_the_work_of_others_makes_a_row_noisy(
    monkeypatch: pytest.MonkeyPatch, busy: float | None, spare: int, crowding: float | None
) -> None:
    """What slows ours and its control alike."""
    clock = iter([0.0, 2.0])
    work = iter([10.0, 11.0])
    monkeypatch.setattr(runner.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(runner, "work_of_others", lambda: None if busy is None else next(work))
    monkeypatch.setattr(runner.os, "sched_getaffinity", lambda _: range(torch.get_num_threads() + spare))
    facts: dict[str, Any] = {}
    with runner.watching_others(facts):
        pass
    assert facts["crowding"] == crowding
    assert runner.is_noisy("step", Ratio(1.0, 0.9, 1.1), crowding) == bool(crowding)


def tensor(*shape: int, **more: Any) -> torch.Tensor:
    return torch.zeros(shape, requires_grad=True, **more)


@pytest.mark.parametrize(
    ("given", "groups", "shapes"),
    [
        ([tensor(3), tensor(4)], 1, [(3,), (4,)]),
        ([("a", tensor(3)), ("b", tensor(4))], 1, [(3,), (4,)]),
        ((p for p in [tensor(2)]), 1, [(2,)]),
        ([{"params": tensor(3)}, {"params": [("b", tensor(4))], "lr": 0.1}, {"params": []}], 2, [(3,), (4,)]),
    ],
)
def test_params_are_given_as_to_an_optimizer(given: Any, groups: int, shapes: list[tuple[int, ...]]) -> None:
    found = comparison.groups_of(given)
    assert len(found) == groups
    assert list(comparison.suite_of([p for group in found for p in group]).shapes) == shapes


@pytest.mark.parametrize(
    ("params", "arguments", "sentence"),
    [
        ([], {}, "params_or_model holds no tensor that requires a gradient; there is nothing to step"),
        (
            [tensor(2), tensor(2, dtype=torch.float64)],
            {},
            "params are of more than one dtype: torch.float32, torch.float64; compare those of each apart",
        ),
        ([tensor(2), tensor(2, device="meta")], {}, "params are of more than one device: cpu, meta; compare"),
        ([tensor(2, dtype=torch.complex64)], {}, "params are of complex64; float32, float64, bfloat16 and float16 can"),
        ([tensor(2)], {"optimizers": ["AdaMW"]}, "optimizer 'AdaMW' is not known; did you mean 'AdamW'?"),
        ([tensor(2)], {"baselines": ["torch"]}, "baseline 'torch' is not known; did you mean 'torch"),
        ([tensor(2)], {"rounds": 0}, "rounds is 0; it must be greater than 0"),
        ([tensor(2)], {"seconds": -1}, "seconds is -1; it must be greater than 0"),
        ([tensor(2)], {"out": Path(__file__) / "x"}, "cannot write .*results.json: .*; choose another folder"),
    ],
)
def test_what_cannot_be_compared_gives_a_sentence(params: Any, arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BenchError, match=sentence.replace("?", r"\?")):
        bench.compare(params, **arguments)


def test_the_example_runs() -> None:
    (test,) = doctest.DocTestFinder(recurse=False).find(bench.compare, "compare", globs={"torch": torch})
    assert test.examples
    assert doctest.DocTestRunner().run(test).failed == 0


POINTS = [(n, 64 * n) for n in (1, 10, 100, 1000)] + [(1, 2**p) for p in (8, 14, 20)]


def test_costs_are_found_again() -> None:
    cost = sweeps.fit([(n, e, 5_000 + 300 * n + 0.25 * e) for n, e in POINTS])
    assert (cost.fixed, cost.per_tensor, cost.per_element) == pytest.approx((5_000, 300, 0.25))
    assert cost.at(10, 640) == pytest.approx(8_160)
    assert str(cost) == "5 us + 300 ns/tensor + 0.25 ns/element"


def test_small_and_large_times_weigh_the_same() -> None:
    """Each point is off by the same factor, up and down in turn; plain least squares would follow the largest alone."""
    times = [(n, e, (5_000 + 300 * n + 0.25 * e) * (1.1 if i % 2 else 1 / 1.1)) for i, (n, e) in enumerate(POINTS)]
    cost = sweeps.fit(times)
    for n, e, time in times:
        assert 0.8 < cost.at(n, e) / time < 1.25


def test_no_cost_is_negative() -> None:
    """A line through these falls below 0 at no tensors."""
    cost = sweeps.fit([(1, 64, 10.0), (10, 640, 200.0), (100, 6400, 4_000.0)])
    assert cost.fixed >= 0
    assert cost.per_tensor is not None
    assert cost.per_tensor > 0


def test_what_one_sweep_cannot_tell_is_not_told() -> None:
    tensors = sweeps.fit([(n, 64 * n, 100.0 + 7 * n) for n in (1, 2, 3)])
    assert (tensors.fixed, tensors.per_tensor) == pytest.approx((100, 7))
    assert tensors.per_element is None
    elements = sweeps.fit([(1, n, 100.0 + 7 * n) for n in (1, 2, 3)])
    assert elements.per_tensor is None
    assert elements.per_element == pytest.approx(7)


def test_sweeps_reach_from_end_to_end() -> None:
    assert [s.tensors for s in sweeps.suites_of("tensors")] == [1, 3, 10, 30, 100, 300, 1000, 3000, 10000]
    sizes = [s.elements for s in sweeps.suites_of("elements")]
    assert (sizes[0], sizes[-1]) == (2**6, 2**26)
    both = [suite for kind in sweeps.KINDS for suite in sweeps.suites_of(kind, quick=True)]
    assert len({suite.name for suite in both}) == len(both)
    assert [s.name for s in sweeps.in_order(both)][-1] == "sweep-10000-tensors"


def run_of(**rounds: dict[str, list[float]]) -> dict[str, Any]:
    machine = {"cpu": "x", "threads": 2, "torch": "2", "python": "3"}
    measurements = [{"name": name, "rounds_ns": samples} for name, samples in rounds.items()]
    return {"schema": 2, "machine": machine, "measurements": measurements}


def rounds_of(ours: float, theirs: float, control: float = 1.0) -> dict[str, list[float]]:
    wobble = [0.995, 1.0, 1.005, 0.998, 1.002, 1.0, 0.997]
    return {name: [t * w for w in wobble] for name, t in ((OURS, ours), (FUSED, theirs), (CONTROL, ours * control))}


@pytest.mark.parametrize(
    ("old", "new", "verdict"),
    [
        (rounds_of(100, 500), rounds_of(100, 500), diff.SAME),
        (rounds_of(100, 500), rounds_of(110, 500), diff.SLOWER),
        (rounds_of(100, 500), rounds_of(90, 500), diff.FASTER),
        # The whole machine is slower.
        (rounds_of(100, 500), rounds_of(150, 750), diff.SAME),
        # It is twice as fast, and we are not.
        (rounds_of(100, 500), rounds_of(100, 250), diff.SLOWER),
        # Copies of one program differ by more than these.
        (rounds_of(100, 500), rounds_of(110, 500, control=1.2), diff.SAME),
        (rounds_of(100, 500, control=0.8), rounds_of(110, 500), diff.SAME),
    ],
)
def test_what_became_slower(old: dict[str, list[float]], new: dict[str, list[float]], verdict: str) -> None:
    (change,) = diff.difference(run_of(a=old), run_of(a=new)).changes
    assert change.verdict == verdict


def test_no_witness_leaves_the_plain_ratio() -> None:
    old, new = {OURS: [100.0] * 5}, {OURS: [130.0] * 5}
    change = diff.change_of("a", old, new)
    assert (change.change.value, change.machine, change.noise) == (1.3, None, diff.LEAST_NOISE)


def test_diff_exits_with_1_if_something_is_slower(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    before, after = run_of(a=rounds_of(100, 500), b=rounds_of(1, 2)), run_of(a=rounds_of(120, 500), c=rounds_of(1, 2))
    after["machine"]["torch"] = "3"
    old.write_text(json.dumps(before))
    new.write_text(json.dumps(after))
    assert cli.main(["diff", str(old), str(new)]) == 1
    captured = capsys.readouterr()
    assert captured.err == "slower: a\n"
    assert "take care: torch differs: 2 and 3" in captured.out
    assert "only in the old run: b" in captured.out
    assert "only in the new run: c" in captured.out
    assert cli.main(["diff", str(old), str(old)]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "cannot read .*new.json: No such file or directory"),
        ("{", "new.json is no JSON: "),
        ("[]", "new.json holds no measurements; give the results.json of two runs"),
        (json.dumps(run_of(b=rounds_of(1, 2))), "the two runs have no measurement in common; measure the same suites"),
    ],
)
def test_what_cannot_be_compared_with_another_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, sentence: str
) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    old.write_text(json.dumps(run_of(a=rounds_of(1, 2))))
    if content is not None:
        new.write_text(content)
    assert cli.main(["diff", str(old), str(new)]) == 2
    assert re.search(sentence, capsys.readouterr().err)


def test_the_results_of_the_promises_can_be_compared_too() -> None:
    (*_, newest) = sorted((Path(__file__).parent.parent / "benchmarks" / "results").glob("[0-9]*.json"))
    found = diff.difference(diff.load(newest), diff.load(newest))
    assert found.changes
    assert found.slower == []
