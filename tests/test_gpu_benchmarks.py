"""The GPU benchmarks as far as they go without a GPU: suites, clocks, arithmetic and goals."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

pytest.importorskip("rich")

import gpu_launches
import gpu_report
import gpu_table
import judging
from gpu_table import SHARE, TIME, Goal
from tiers import slow

from fusedopt.bench import baselines, contest, method, suites, traffic
from fusedopt.bench import clock as clocks
from fusedopt.bench.baselines import CONTROL, FUSED, OURS
from fusedopt.bench.clock import COLD, DEVICE, HOST, MODES, WALL
from fusedopt.bench.entrants import enter
from fusedopt.bench.streaming import COPY


def test_misaligned_suite_defeats_vectors_of_four() -> None:
    suite = suites.SUITES["64x1Mi-misaligned"]
    assert {size % 4 for size in suite.sizes} == {1, 2, 3}
    entrants, _ = enter(replace(gpu_table.MISALIGNED, suite=replace(suite.cut(), offset=1)))
    for param in entrants[OURS].params:
        entrants[OURS].prepare()
        assert param.is_leaf
        for tensor in (param, param.grad):
            assert tensor is not None
            assert tensor.data_ptr() % 16 == 4


@pytest.mark.parametrize(
    ("optimizer", "arguments", "dtype", "state", "expected"),
    [
        ("SGD", {}, torch.float32, None, 12),
        ("SGD", {"momentum": 0.9}, torch.float32, None, 20),
        ("RMSprop", {}, torch.float32, None, 20),
        ("Adam", {}, torch.float32, None, 28),
        ("AdamW", {"amsgrad": True}, torch.float32, None, 36),
        ("Adam", {}, torch.bfloat16, None, 14),
        ("Adam", {}, torch.bfloat16, torch.float32, 22),
    ],
)
def test_traffic_of_a_parameter(
    optimizer: str, arguments: dict[str, Any], dtype: torch.dtype, state: torch.dtype | None, expected: int
) -> None:
    # A param of one element has as many as its step counter, which is no traffic.
    suite = suites.Suite("small", ((5, 3), ()), 2, 16)
    entrants, contestants = enter(contest.Contest(suite, optimizer, (), arguments, dtype, False, state))
    method.warm_up(contestants, 3)
    assert traffic.traffic(entrants[OURS].optimizer) == 16 * expected
    judging.check_agreement(entrants)


def test_rows_at_rest_have_second_moments_of_zero() -> None:
    (trial, _) = [trial for trial in gpu_table.TRIALS if trial.contest.resting]
    assert trial.name == "llama7b-shard8-adam-resting"
    entrants, contestants = enter(replace(trial.contest, suite=suites.SUITES["8x256"]))
    method.warm_up(contestants, 2)
    states = entrants[OURS].optimizer.state.values()
    assert len(states) == 8
    assert not any(state["exp_avg_sq"].any() for state in states)
    judging.check_agreement(entrants)


def test_disagreement_of_a_few_is_allowed_only_if_asked_for() -> None:
    entrants, contestants = enter(replace(gpu_table.ALIGNED, suite=suites.SUITES["8x256"]))
    method.warm_up(contestants, 2)
    with torch.no_grad():
        entrants[CONTROL].params[2][:2] += 1
    judging.check_agreement(entrants, stray=2 / 256)
    with pytest.raises(AssertionError, match="differ in tensor 2"):
        judging.check_agreement(entrants, stray=1 / 256)


def test_geometric_mean_of_known_ratios() -> None:
    mean = judging.geometric_mean([([8, 8, 8], [1, 1, 1]), ([4, 4, 4], [2, 2, 2])])
    assert (mean.value, mean.low, mean.high) == pytest.approx((4, 4, 4))


def test_geometric_mean_is_no_surer_than_what_it_is_of() -> None:
    noisy, steady = [10.0, 30.0, 20.0, 40.0, 25.0], [10.0] * 5
    assert judging.geometric_mean([(noisy, steady)] * 2).low < 2.4 < judging.geometric_mean([(noisy, steady)] * 2).high


def test_rounds_hold_what_the_clock_says() -> None:
    ticks = iter(range(100))
    rounds = method.interleave(
        [method.Contestant("A", method.nothing)], method.Effort(rounds=2, repeat=3), measure=lambda _: next(ticks)
    )
    assert rounds == {"A": [1, 4]}


class FakeEvent:
    """Records when it was recorded; the start has come to pass as often as ``late`` says."""

    def __init__(self, log: list[str], late: list[bool]) -> None:
        self.log, self.late = log, late

    def record(self) -> None:
        self.log.append("event")

    def query(self) -> bool:
        return self.late.pop(0) if self.late else False

    def elapsed_time(self, end: FakeEvent) -> float:
        return 1.5


def fake_cuda(monkeypatch: pytest.MonkeyPatch, late: list[bool]) -> tuple[clocks.Cuda, list[str]]:
    """The clock of a device that logs what is asked of it."""
    log: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: log.append("synchronize"))
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: log.append(f"sleep {cycles}"))
    clock = object.__new__(clocks.Cuda)
    clock.begin()
    clock.start = clock.end = FakeEvent(log, late)  # type: ignore[assignment]
    monkeypatch.setattr(clock, "flush", lambda: log.append("flush"))
    return clock, log


def test_device_time_hides_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, log = fake_cuda(monkeypatch, [])
    step = method.Contestant("A", lambda: log.append("step"))
    assert clock.measure(DEVICE)(step) == 1_500_000
    first = f"sleep {clock.SHORTEST}"
    assert log == ["synchronize", first, "event", "step", "event", "synchronize"]
    log.clear()
    clock.measure(COLD)(step)
    assert log == ["synchronize", first, "flush", "event", "step", "event", "synchronize"]


def test_a_sample_that_saw_the_host_is_taken_again(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, log = fake_cuda(monkeypatch, [True, True, False])
    step = method.Contestant("A", method.nothing)
    assert clock.device_time(step) == 1_500_000
    slept = [line for line in log if line.startswith("sleep")]
    assert slept == [f"sleep {clock.SHORTEST << i}" for i in range(3)]
    # What it took is remembered for this contestant, until the next measurement.
    log.clear()
    clock.device_time(step)
    assert log[1] == f"sleep {clock.SHORTEST << 2}"
    clock.begin()
    clock.device_time(step)
    assert f"sleep {clock.SHORTEST}" in log


def test_a_step_that_cannot_be_hidden_is_no_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, _ = fake_cuda(monkeypatch, [True] * 100)
    with pytest.raises(RuntimeError, match="A: a call could not be issued"):
        clock.device_time(method.Contestant("A", method.nothing))


def test_host_time_waits_before_and_wall_time_also_after(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, log = fake_cuda(monkeypatch, [])
    step = method.Contestant("A", lambda: log.append("step"))
    assert clock.measure(HOST)(step) >= 0
    assert log == ["synchronize", "step"]
    log.clear()
    assert clock.measure(WALL)(step) >= 0
    assert log == ["synchronize", "step", "synchronize"]


def test_a_replay_captures_once_its_gradients_stay() -> None:
    log: list[str] = []

    class Clock(judging.Pretend):
        def capture(self, call: Any) -> Any:
            log.append("capture")
            return lambda: log.append("replay")

    step = baselines.Replay(lambda: log.append("step"), Clock())
    for _ in range(5):
        step()
    assert log == ["step"] * 3 + ["capture", "replay", "replay"]


def rounds_of(ours: int, theirs: int, copy: int | None = None) -> method.Rounds:
    rounds = {OURS: [ours] * 5, CONTROL: [ours] * 5, FUSED: [theirs] * 5}
    return rounds if copy is None else {**rounds, COPY: [copy] * 5}


@pytest.mark.parametrize(
    ("goal", "value", "verdict"),
    [
        (Goal(DEVICE, FUSED, 2.0), 2.0, "met"),
        (Goal(DEVICE, FUSED, 2.1), 2.0, "missed"),
        (Goal(DEVICE, FUSED), 2.0, "reported"),
        # 280 bytes in 10 ns against 400 bytes in 12.5 ns.
        (Goal(DEVICE, COPY, 0.87, SHARE), 0.875, "met"),
        (Goal(DEVICE, COPY, 0.88, SHARE), 0.875, "missed"),
        (Goal(HOST, "", 0.01, TIME), 0.01, "met"),
        (Goal(HOST, "", 0.009, TIME), 0.01, "missed"),
    ],
)
def test_goals_are_judged(goal: Goal, value: float, verdict: str) -> None:
    rounds = {**rounds_of(10, 20), COPY: [12.5] * 5}
    finding = gpu_report.goal_finding("x", goal, rounds, moved=280, copied=400)  # type: ignore[arg-type]
    assert finding.measured.value == pytest.approx(value)
    assert finding.verdict == verdict
    assert finding.measurement == f"x, {goal.mode}"
    assert finding.gb_per_s == pytest.approx(28)
    assert finding.of_streaming
    assert finding.of_streaming.value == pytest.approx(0.875)


def test_a_control_apart_spoils_device_time_sooner() -> None:
    rounds = {**rounds_of(100, 300), CONTROL: [110] * 5}
    verdicts = {m: gpu_report.goal_finding("x", Goal(m, FUSED, 2.0), rounds, 1, 1).verdict for m in MODES}
    assert verdicts == {DEVICE: "noisy", COLD: "noisy", WALL: "met", HOST: "met"}


def test_mean_needs_all_of_its_measurements() -> None:
    every = {name: rounds_of(10, 12) for name in gpu_table.MEAN_OF}
    mean = gpu_report.mean_finding(every, FUSED)
    assert mean
    assert mean.measured.value == pytest.approx(1.2)
    assert mean.verdict == "met"
    every.popitem()
    assert gpu_report.mean_finding(every, FUSED) is None


def test_alignment_compares_rates_not_times() -> None:
    rounds = {"aligned": [10] * 5, OURS: [30] * 5, CONTROL: [30] * 5}
    traffics = {"aligned": 100, OURS: 180}
    finding = gpu_report.alignment_finding(DEVICE, rounds, traffics)
    assert finding.measured.value == pytest.approx(0.6)
    assert finding.verdict == "met"


@pytest.mark.parametrize(("kernels", "verdict"), [({"advance": 4, "update": 4}, "met"), ({"update": 12}, "missed")])
def test_launches_are_counted_per_step(kernels: dict[str, int], verdict: str) -> None:
    assert gpu_report.launches_finding("x", 4, kernels).verdict == verdict


def test_only_work_on_the_device_counts_as_a_launch() -> None:
    events = [
        {"cat": "kernel", "name": "update"},
        {"cat": "kernel", "name": "update"},
        {"cat": "gpu_memcpy", "name": "Memcpy HtoD"},
        {"cat": "gpu_user_annotation", "name": "Optimizer.step"},
        {"cat": "cuda_runtime", "name": "cudaLaunchKernel"},
        {"name": "process_name"},
    ]
    assert gpu_launches.device_work(events) == {"update": 2, "Memcpy HtoD": 1}


@slow("a process of its own, as test_benchmarks.py has one that fails")
def test_failed_count_gives_its_reason() -> None:
    assert gpu_launches.count_apart(["no such suite"], 60) == {"reason": "KeyError: 'no such suite'"}


def asked() -> dict[tuple[str, str, str], float]:
    return {(t.name, g.mode, g.against): g.asked for t in gpu_table.TRIALS for g in t.goals if g.asked is not None}


def test_every_promise_is_asked_about() -> None:
    promises = {
        ("llama7b-shard8-adam", DEVICE, "copy"): 0.93,
        ("llama7b-shard8-adam-bfloat16", DEVICE, "copy"): 0.90,
        ("llama7b-shard8-adam-bfloat16-float32-state", DEVICE, "copy"): 0.90,
        ("1000x1024-adamw", WALL, FUSED): 5,
        ("1000x1024-adamw", HOST, ""): 30,
        ("resnet50-adamw", WALL, FUSED): 3,
        ("465groups-adamw", WALL, FUSED): 20,
    }
    for model in ("llama7b-shard8", "gpt2", "bert-large", "vit-l16", "resnet50"):
        for dtype in ("", "-bfloat16"):
            promises[f"{model}-adamw{dtype}", DEVICE, FUSED] = 1.0
    for name in gpu_table.without_fused():
        promises[f"gpt2-{name.lower()}", DEVICE, "torch foreach"] = 2.5
    assert promises.items() <= asked().items()
    assert "RMSprop" in gpu_table.without_fused()
    assert "AdamW" not in gpu_table.without_fused()
    assert {name.partition(",")[0] for name in gpu_table.MEAN_OF} <= {t.name for t in gpu_table.TRIALS}


def test_names_are_distinct() -> None:
    assert len(set(gpu_table.NAMES)) == len(gpu_table.NAMES)


def test_a_mode_has_the_rivals_it_asks_about() -> None:
    (trial,) = (t for t in gpu_table.TRIALS if t.name == "1000x1024-adamw")
    assert trial.modes == [WALL, HOST, DEVICE, COLD]
    one = gpu_table.trial("gpt2", "AdamW", [Goal(WALL, "torch for-loop"), Goal(DEVICE, FUSED)])
    assert one.rivals(WALL) == ["torch for-loop"]
    assert one.rivals(DEVICE) == [FUSED]
