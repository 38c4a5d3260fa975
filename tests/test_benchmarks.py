"""The benchmarks' arithmetic on known samples, and one tiny run from end to end. No test asserts a time."""

import gc
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiers import slow, thinned

pytest.importorskip("rich")

import compiled
import judging
import memory
import report
import run
import table

from fusedopt import _compiled
from fusedopt.bench import method, streaming, suites
from fusedopt.bench.baselines import CONTROL, OURS
from fusedopt.bench.entrants import GradientPool, RowPool, enter
from fusedopt.bench.report import SCHEMA, Report

TINY = "8x256-adamw"


def test_summary_of_known_samples() -> None:
    assert method.summarise([11, 1, 2, 10, 3, 9, 4, 8, 5, 7, 6]) == method.Summary(median=6, p20=3, p80=9)


def test_one_outlier_moves_no_ratio() -> None:
    assert method.compare([20] * 9 + [10_000], [10] * 10) == method.Ratio(2.0, 2.0, 2.0)


def test_bootstrap_keeps_the_pairs() -> None:
    """Where a slow round slows both sides alike, the ratio of each round is exact, and so must the interval be."""
    slow = [10, 20, 40, 80, 160, 320, 640]
    ratio = method.compare([3 * s for s in slow], slow)
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((3, 3, 3))


def test_interval_widens_with_noise() -> None:
    ratio = method.compare([10, 30, 20, 40, 25, 35, 15], [10, 11, 12, 13, 9, 10, 11])
    assert ratio.low < ratio.value < ratio.high


def test_unpaired_samples_raise() -> None:
    with pytest.raises(ValueError, match="equal lengths, got 2 and 3"):
        method.compare([1, 2], [1, 2, 3])


@pytest.mark.parametrize(
    ("ratio", "at_most", "expected"),
    [
        (method.Ratio(2.1, 1.9, 2.3), False, "met"),
        (method.Ratio(1.9, 1.8, 2.1), False, "unclear"),
        (method.Ratio(1.7, 1.6, 1.8), False, "missed"),
        (method.Ratio(1.9, 1.8, 2.1), True, "met"),
        (method.Ratio(2.1, 1.9, 2.3), True, "unclear"),
        (method.Ratio(2.3, 2.2, 2.4), True, "missed"),
    ],
)
def test_verdicts(ratio: method.Ratio, at_most: bool, expected: str) -> None:
    assert judging.verdict(ratio, 2.0, at_most) == expected


@pytest.mark.parametrize(("control", "expected"), [(0.7, "noisy"), (0.9, "met"), (1.2, "met"), (1.3, "noisy")])
def test_a_measurement_that_differs_from_itself_proves_nothing(control: float, expected: str) -> None:
    aa = method.Ratio(control, control, control)
    assert judging.verdict(method.Ratio(9.0, 8.0, 10.0), 2.0, control=aa) == expected


def test_best_is_the_lowest_median() -> None:
    rounds = {"a": [1, 9, 9], "b": [5, 5, 50], "c": [6, 6, 6]}
    assert judging.best_of(rounds, ["a", "b", "c"]) == "b"


def contestants(log: list[str], names: str) -> list[method.Contestant]:
    return [
        method.Contestant(name, call=lambda n=name: log.append(n), prepare=lambda n=name: log.append(n.lower()))
        for name in names
    ]


def test_rounds_interleave_and_prepare_before_each_call() -> None:
    log: list[str] = []
    rounds = method.interleave(contestants(log, "ABC"), method.Effort(rounds=12))
    assert {name: len(samples) for name, samples in rounds.items()} == {"A": 12, "B": 12, "C": 12}
    calls = "".join(log[1::2])
    assert "".join(log[::2]) == calls.lower()
    played = [calls[i : i + 3] for i in range(0, len(calls), 3)]
    assert all(sorted(one) == ["A", "B", "C"] for one in played)
    # Everybody goes first equally often, and follows each of the others.
    assert sorted(one[0] for one in played) == sorted("ABC" * 4)
    assert {one[i : i + 2] for one in played for i in range(2)} == {"AB", "BA", "AC", "CA", "BC", "CB"}


def test_rounds_stop_at_the_time_limit_but_not_before_the_minimum() -> None:
    rounds = method.interleave(contestants([], "AB"), method.Effort(rounds=100, seconds=0, minimum=3))
    assert len(rounds["A"]) == len(rounds["B"]) == 3


def test_collector_is_off_while_timing_and_restored_after_an_error() -> None:
    seen = []

    def fail() -> None:
        seen.append(gc.isenabled())
        raise RuntimeError("stop")

    assert gc.isenabled()
    with pytest.raises(RuntimeError, match="stop"):
        method.interleave([method.Contestant("A", fail)], method.Effort(rounds=1))
    assert seen == [False]
    assert gc.isenabled()


def test_equal_names_raise() -> None:
    with pytest.raises(ValueError, match="distinct names"):
        method.interleave(contestants([], "AA"), method.Effort(rounds=1))


def test_gradients_are_new_each_turn_and_equal_for_all() -> None:
    pool = GradientPool([3, 4], torch.float32, torch.Generator().manual_seed(0))
    first, again, second = pool.draw(0), pool.draw(0), pool.draw(1)
    assert [g.numel() for g in first] == [3, 4]
    for a, b, c in zip(first, again, second, strict=True):
        assert a.equal(b)
        assert a.data_ptr() != b.data_ptr()
        assert not a.equal(c)


@pytest.mark.parametrize("coalesced", [True, False])
def test_sparse_gradients_are_new_rows_each_turn_and_equal_for_all(coalesced: bool) -> None:
    suite = suites.Suite("tables", ((50, 3), (20, 2)), 2, 190, rows=8, coalesced=coalesced)
    pool = RowPool(suite, torch.float32, torch.Generator().manual_seed(0))
    for first, again, next_ in zip(pool.draw(1), pool.draw(1), pool.draw(2), strict=True):
        assert first.is_coalesced() == coalesced
        rows = first._indices()[0].tolist()
        assert len(set(rows)) == 8
        assert (rows == sorted(rows)) == coalesced
        assert first.to_dense().equal(again.to_dense())
        assert first._values().data_ptr() != again._values().data_ptr()
        assert set(next_._indices()[0].tolist()) != set(rows)
    for turn in range(100):  # past the end of the order, too
        checked = [
            torch.sparse_coo_tensor(g._indices(), g._values(), g.shape, check_invariants=True) for g in pool.draw(turn)
        ]
        assert [g.coalesce().values().shape for g in checked] == [(8, 3), (8, 2)]


def test_gradients_of_an_embedding_are_uncoalesced() -> None:
    """Which is why one row of the table is about such."""
    embedding = torch.nn.Embedding(5, 2, sparse=True)
    embedding(torch.tensor([3, 1])).sum().backward()
    assert embedding.weight.grad is not None
    assert not embedding.weight.grad.is_coalesced()


def test_compiled_contest_has_a_compiled_and_a_built_in_class() -> None:
    asked = table.CONTESTS["1000x256-adamw-compiled"]
    entrants, _ = enter(replace(asked, suite=asked.suite.cut()), baselines=compiled.baselines_of(asked))
    types = {name: type(entrant.optimizer).__name__ for name, entrant in entrants.items()}
    assert types == {OURS: "CompiledAdamW", compiled.BUILT_IN: "AdamW", CONTROL: "CompiledAdamW"}


@pytest.fixture(scope="module", autouse=True)
def _compiled_for_this_processor() -> Iterator[None]:
    """What is compiled here is made for what runs here alone; test_compiled.py makes all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_compiled._C, "built_isas", lambda: [_compiled._C.chosen_isa()[0]])
        yield


@thinned(
    "rows differ in what one harness steps, which tests of the optimizers do, too",
    keep=lambda name: list(table.CONTESTS).index(name) % 3 == 0,
    together=0,
)
@pytest.mark.parametrize("name", table.CONTESTS)
def test_every_row_runs_and_stays_finite(name: str) -> None:
    """As many steps as the full measurement takes, over a few small tensors."""
    effort = table.effort_of(name)
    tiny = replace(table.CONTESTS[name], suite=table.CONTESTS[name].suite.cut())
    found = Report({})
    with run.threads(1):  # which torch would wake for every one of thousands of steps
        run.run_contest(tiny, replace(effort, rounds=2, repeat=1), found, method.nothing)
        entrants, contestants = enter(tiny, baselines=compiled.baselines_of(tiny))
        method.warm_up(contestants, effort.warmup + effort.rounds * effort.repeat)
    assert not found.failures
    assert [f.measurement for f in found.findings] == [
        q.contest.name for q in table.QUESTIONS if q.contest.name == name
    ]
    for entrant in entrants.values():
        assert all(param.isfinite().all() for param in entrant.params)


def test_what_cannot_be_compiled_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("a rule needs a C++17 compiler")

    monkeypatch.setattr(compiled, "compiled_adamw", fail)
    found = Report({})
    run.run_contest(table.CONTESTS["1000x256-adamw-compiled"], table.QUICK, found, method.nothing)
    assert found.failures == ["1000x256-adamw-compiled: not measured: a rule needs a C++17 compiler"]


@pytest.mark.parametrize("name", ["8x256-adamw", "1000x256-sgd", "1000x256-rmsprop", "480groups-adamw"])
def test_contestants_agree(name: str) -> None:
    entrants, entered = enter(table.CONTESTS[name])
    method.warm_up(entered, 2)
    judging.check_agreement(entrants)


def test_disagreement_is_noticed() -> None:
    entrants, entered = enter(table.CONTESTS[TINY])
    method.warm_up(entered, 1)
    with torch.no_grad():
        entrants["torch fused"].params[3][7] += 1e-3
    with pytest.raises(AssertionError, match="torch fused and fusedopt differ in tensor 3"):
        judging.check_agreement(entrants)


def test_every_group_has_its_own_tensor() -> None:
    entrants, _ = enter(table.CONTESTS["480groups-adamw"])
    for entrant in entrants.values():
        assert [len(group["params"]) for group in entrant.optimizer.param_groups] == [1] * 480


def test_bare_loop_touches_its_states() -> None:
    bare = streaming.BareLoop(1000)
    before = [t.clone() for t in (bare.param, bare.exp_avg, bare.exp_avg_sq)]
    bare()
    for old, new in zip(before, (bare.param, bare.exp_avg, bare.exp_avg_sq), strict=True):
        assert not old.equal(new)


def test_in_the_loop_a_step_is_held_against_torchs() -> None:
    in_loop = {"torch fused": [48, 48], OURS: [40, 40], CONTROL: [40, 40]}
    finding = report.in_loop_finding("x", "torch fused", in_loop)
    assert finding.measured.value == pytest.approx(1.2)
    assert finding.verdict == "missed"


def test_kept_finding_divides_the_two_ratios() -> None:
    isolated = {"torch fused": [30, 30], OURS: [10, 10], CONTROL: [10, 10]}
    in_loop = {"torch fused": [48, 48], OURS: [12, 12], CONTROL: [12, 12]}
    finding = report.kept_finding("x", "torch fused", isolated, in_loop)
    assert finding.measured.value == pytest.approx(4 / 3)
    assert finding.verdict == "met"


@pytest.mark.parametrize(("over", "expected"), [(2**20, "met"), (2**20 + 4096, "missed")])
def test_memory_finding_compares_with_the_allowance(over: int, expected: str) -> None:
    finding = report.memory_finding("resnet50", {"state": 2**27, "first_step_peak": 2**27 + over})
    assert finding.verdict == expected


@pytest.mark.parametrize(("ours", "expected"), [(2**20, "met"), (2**20 + 4096, "missed"), (0, "met")])
def test_temporaries_are_compared_with_the_rivals(ours: int, expected: str) -> None:
    question = table.Temporaries("gpt2", "Adafactor", "torch for-loop", 10)
    finding = report.temporaries_finding("x", question, {"later_step_peak": ours}, {"later_step_peak": 10 * 2**20})
    assert finding.verdict == expected


@slow("a process of its own takes seconds to begin, and the next test has one, too")
def test_memory_measurement_counts_the_state() -> None:
    sizes = memory.measure_apart("1000x256", "AdamW", "fusedopt")
    if "reason" in sizes:
        pytest.skip(sizes["reason"])
    assert sizes["state"] == 1000 * (2 * 256 * 4 + 4)


def test_failed_memory_process_gives_its_reason() -> None:
    assert memory.measure_apart("no such suite", "AdamW", "fusedopt") == {"reason": "KeyError: 'no such suite'"}


def test_run_writes_valid_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "tiny.json"
    threads = torch.get_num_threads()
    assert run.main(["--quick", "--only", TINY, "--out", str(out), "--threads", "1"]) == 0
    assert torch.get_num_threads() == threads
    assert TINY in capsys.readouterr().out
    written = json.loads(out.read_text())
    assert written["schema"] == SCHEMA
    assert written["complete"]
    assert not written["failures"]
    assert written["machine"]["threads"] == 1
    assert written["machine"]["torch"] == torch.__version__
    assert "--quick" in written["machine"]["command"]
    (measurement,) = written["measurements"]
    assert measurement["elements"] == 2_048
    raw = measurement["rounds_ns"]
    assert set(raw) == {OURS, CONTROL, "torch fused"}
    assert {len(samples) for samples in raw.values()} <= set(range(table.QUICK.minimum, table.QUICK.rounds + 1))
    assert all(sample > 0 for samples in raw.values() for sample in samples)
    (finding,) = written["findings"]
    assert finding["asked"] == 12
    expected = method.compare(raw["torch fused"], raw[OURS])
    assert finding["measured"]["value"] == pytest.approx(expected.value)


def test_run_reports_disagreement_instead_of_timing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def disagree(_: object, **__: object) -> None:
        raise AssertionError("tensor 3 differs")

    monkeypatch.setattr(run, "check_agreement", disagree)
    out = tmp_path / "tiny.json"
    assert run.main(["--quick", "--only", TINY, "--out", str(out)]) == 1
    assert "results disagree: tensor 3 differs" in capsys.readouterr().err
    assert json.loads(out.read_text())["measurements"] == []


def test_interrupted_run_keeps_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "run_memory", interrupt)
    out = tmp_path / "part.json"
    assert run.main(["--quick", "--only", TINY, "--only", "memory", "--out", str(out)]) == 130
    assert "interrupted" in capsys.readouterr().err
    written = json.loads(out.read_text())
    assert not written["complete"]
    assert [m["name"] for m in written["measurements"]] == [TINY]


def test_run_refuses_bad_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run.main(["--only", "no-such-thing"])
    with pytest.raises(SystemExit):
        run.main(["--threads", "0"])
    (tmp_path / "file").write_text("")
    assert run.main(["--only", TINY, "--out", str(tmp_path / "file" / "x.json")]) == 2
    assert "cannot write" in capsys.readouterr().err
