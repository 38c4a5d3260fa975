"""What `make gpu` runs, without a GPU: measurements dry, what becomes of failures, the figures, the driver."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("rich")

import figures
import gpu
import gpu_all
import gpu_profile
import gpu_sanitize
import gpu_table

from fusedopt.bench import machine, method
from fusedopt.bench.baselines import FUSED, OURS
from fusedopt.bench.clock import MODES

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")

DRY = ["--dry-run", "--quick"]


def test_dry_run_writes_valid_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "dry.json"
    names = ("copy", "launches", "misaligned", "llama7b-shard8-adam", "1000x1024-adamw", "resnet50-adamw-others")
    assert gpu.main([*DRY, "--out", str(out), *(word for name in names for word in ("--only", name))]) == 0
    assert "dry run" in capsys.readouterr().out
    written = json.loads(out.read_text())
    assert written["complete"]
    assert not written["failures"]
    assert written["machine"]["gpu"]["name"].startswith("none")
    assert written["machine"]["sources"] == machine.sources()
    assert "--dry-run" in written["machine"]["command"]
    measured = {m["name"]: m for m in written["measurements"]}
    assert set(measured) >= {f"1000x1024-adamw, {mode}" for mode in MODES}
    for name, measurement in measured.items():
        assert measurement["clock"] == name.partition(", ")[2]
        for samples in measurement["rounds_ns"].values():
            assert len(samples) >= gpu_table.QUICK.minimum
    rounds = measured["llama7b-shard8-adam, device"]["rounds_ns"]
    bytes_ = measured["llama7b-shard8-adam, device"]["bytes"]
    assert bytes_[OURS] == 28 * measured["llama7b-shard8-adam, device"]["elements"]
    share = method.compare(rounds["copy"], rounds[OURS]).value * bytes_[OURS] / bytes_["copy"]
    (finding,) = (f for f in written["findings"] if f["measurement"] == "llama7b-shard8-adam, device")
    assert finding["measured"]["value"] == pytest.approx(share)
    assert finding["asked"] == 0.93
    assert figures.gpu_figures(out).count("\n|") == 1 + len(written["findings"])


def test_one_failure_costs_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError("none left")

    monkeypatch.setattr(gpu, "run_copies", fail)
    out = tmp_path / "dry.json"
    assert gpu.main([*DRY, "--only", "copy", "--only", "465groups-adamw", "--out", str(out)]) == 1
    written = json.loads(out.read_text())
    assert written["failures"] == ["copy: not measured: MemoryError: none left"]
    assert "none left" in capsys.readouterr().err
    assert {m["name"] for m in written["measurements"]} == {"465groups-adamw, wall", "465groups-adamw, host"}


def test_results_that_disagree_are_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def disagree(*_: object, **__: object) -> None:
        raise AssertionError("tensor 3 differs")

    monkeypatch.setattr(gpu, "check_agreement", disagree)
    out = tmp_path / "dry.json"
    assert gpu.main([*DRY, "--only", "465groups-adamw", "--out", str(out)]) == 1
    written = json.loads(out.read_text())
    assert written["failures"] == ["465groups-adamw: not measured: results disagree: tensor 3 differs"]
    assert written["measurements"] == []


def test_what_does_not_fit_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu.Pretend, "free_bytes", lambda _: 100)
    out = tmp_path / "dry.json"
    assert gpu.main([*DRY, "--only", "copy", "--only", "gpt2-sgd", "--out", str(out)]) == 1
    copy, model = json.loads(out.read_text())["failures"]
    assert copy.startswith("copy: not measured: two buffers")
    assert model.startswith("gpt2-sgd: not measured: needs")


def test_a_run_out_of_time_says_so(tmp_path: Path) -> None:
    out = tmp_path / "dry.json"
    assert gpu.main([*DRY, "--seconds", "0", "--only", "465groups-adamw", "--out", str(out)]) == 1
    written = json.loads(out.read_text())
    assert written["failures"] == ["465groups-adamw: not measured: out of time"]
    assert not written["complete"]


@NO_GPU
def test_without_a_gpu_nothing_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--out", str(tmp_path / "x.json")]) == 2
    assert "finds no GPU" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_page_says_what_gpus_have_measured() -> None:
    """Generated as the CPU's figures are; as long as no results are committed, it says so."""
    page = (figures.ROOT / "benchmarks/README.md").read_text()
    assert figures.gpu_figures(figures.newest_gpu()) in page


def test_the_page_without_results_claims_nothing(tmp_path: Path) -> None:
    (tmp_path / "20261122T140055.json").write_text("{}")
    (tmp_path / "quick-20271122T140055.json").write_text("{}")
    assert figures.newest_gpu(tmp_path) is None
    assert figures.gpu_figures(None) == "No GPU has run this yet, so there are no figures to give."
    for name in ("gpu-20260101T000000.json", "gpu-20270101T000000.json"):
        (tmp_path / name).write_text("{}")
    newest = figures.newest_gpu(tmp_path)
    assert newest
    assert newest.name == "gpu-20270101T000000.json"
    assert figures.newest(tmp_path).name == "20261122T140055.json"


def test_figures_go_between_their_marks_only() -> None:
    text = "a <!-- x -->old<!-- /x --> b <!-- y -->kept<!-- /y -->"
    assert figures.put(text, "x", "new") == "a <!-- x -->\nnew\n<!-- /x --> b <!-- y -->kept<!-- /y -->"
    with pytest.raises(ValueError, match="has no <!-- z -->"):
        figures.put(text, "z", "new")


def test_figures_show_what_could_not_be_measured(tmp_path: Path) -> None:
    path = tmp_path / "gpu-1.json"
    finding = {
        "measurement": "gpt2-adamw, device",
        "against": FUSED,
        "measured": {"value": 1.25, "low": 1.2, "high": 1.3},
        "unit": "x",
        "asked": 1.0,
        "at_most": False,
        "verdict": "met",
        "theirs_ms": 1.0,
        "ours_ms": 0.8,
        "gb_per_s": 4355.4,
        "of_streaming": {"value": 0.9876},
    }
    gpu_facts = {"name": "Some GPU", "driver": "1.2", "cuda": "13.0"}
    facts = {"gpu": gpu_facts, "torch": "2.11.0", "date": "2027-01-02T03:04:05", "absent": ["apex"]}
    report = {"machine": facts, "findings": [finding], "failures": ["launches: not measured: why"]}
    path.write_text(json.dumps(report))
    text = figures.gpu_figures(path)
    line = "| gpt2-adamw, device | torch fused | 1000 | 800 | 4355 (99 %) | 1.25x (1.20 to 1.30) | at least 1x: met |"
    assert line in text
    assert "Some GPU, driver 1.2, CUDA 13.0, torch 2.11.0, 2027-01-02" in text
    assert "Not installed there: apex." in text
    assert "- launches: not measured: why" in text


def test_what_the_tools_watch_runs_on_the_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_sanitize.main(["--device", "cpu"]) == 0
    assert "stepped on cpu" in capsys.readouterr().out
    gpu_profile.main("cpu", "64")
    assert "new gradients" in capsys.readouterr().out


def part(code: str, **options: Any) -> gpu_all.Part:
    defaults = {"seconds": 30.0, "least": 5.0, "log": "part.log"}
    return gpu_all.Part(options.pop("name", "part"), [sys.executable, "-c", code], **{**defaults, **options})


def test_a_part_that_goes_well(tmp_path: Path) -> None:
    code = "import os; print('limit', '{seconds}', os.environ['EXTRA'], os.environ['PYTHONPATH']); print('done')"
    outcome, lines = gpu_all.run_part(part(code, env={"EXTRA": "more"}, wants="done"), tmp_path, 30)
    assert outcome.verdict == "ok"
    assert lines[0].startswith(f"limit 18 more {gpu_all.ROOT}")
    assert lines[1:] == ["done"]
    assert (tmp_path / "part.log").read_text().startswith("== part: ")


@pytest.mark.parametrize(
    ("code", "verdict"),
    [
        ("raise SystemExit(3)", "failed: exit status 3"),
        ("print('all skipped')", "failed: its output lacks 'passed'"),
        ("import os; os.kill(os.getpid(), 9)", "failed: exit status -9"),
    ],
)
def test_a_part_that_fails(tmp_path: Path, code: str, verdict: str) -> None:
    # What another part wrote into the same log before does not count.
    (tmp_path / "part.log").write_text("passed\n")
    assert gpu_all.run_part(part(code, wants="passed"), tmp_path, 30)[0].verdict == verdict


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    missing = gpu_all.Part("ncu", ["/nowhere/ncu"], 5, 5, "ncu.log")
    assert gpu_all.run_part(missing, tmp_path, 5)[0].verdict == "failed: /nowhere/ncu: No such file or directory"


def alive(process: int) -> bool:
    """Dead ones may lie about until somebody asks what became of them."""
    try:
        return "State:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_part_that_hangs_is_ended_with_all_it_started(tmp_path: Path) -> None:
    code = (
        "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); "
        "print('child', child.pid, flush=True); time.sleep(60)"
    )
    began = time.monotonic()
    outcome, lines = gpu_all.run_part(part(code), tmp_path, 3, grace=0.5)
    assert time.monotonic() - began < 20
    assert outcome.verdict == "failed: not done after 3 s"
    child = int(lines[0].split()[1])
    deadline = time.monotonic() + 10
    while alive(child):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_part_may_print_what_it_has_before_it_is_killed(tmp_path: Path) -> None:
    code = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.default_int_handler)\n"
        "try: time.sleep(60)\n"
        "except KeyboardInterrupt: print('so far')"
    )
    outcome, lines = gpu_all.run_part(part(code), tmp_path, 2)
    assert outcome.verdict == "failed: not done after 2 s"
    assert lines[-1:] == ["so far"]


def test_failing_parts_cost_the_others_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = [
        part("print('a'); raise SystemExit(1)", name="fails"),
        part("import time; time.sleep(60)", name="hangs", seconds=1.0, least=1.0),
        part("print('first'); print('last')", name="works", show=1),
    ]
    tell = gpu_all.Teller(tmp_path / "summary.txt")
    outcomes = gpu_all.run_parts(parts, tmp_path, 60, tell)
    assert [o.verdict.partition(":")[0] for o in outcomes] == ["failed", "failed", "ok"]
    summary = (tmp_path / "summary.txt").read_text()
    assert summary == capsys.readouterr().out
    assert "    last\n" in summary
    assert "    first\n" not in summary


def test_time_is_kept_for_later_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = []

    def run_part(part: gpu_all.Part, _: Path, limit: float) -> tuple[gpu_all.Outcome, list[str]]:
        limits.append(round(limit))
        return gpu_all.Outcome(part.name, "ok", 0), []

    monkeypatch.setattr(gpu_all, "run_part", run_part)
    parts = [part("", seconds=100.0, least=20.0), part("", seconds=100.0, least=30.0), part("", least=10.0)]
    outcomes = gpu_all.run_parts(parts, tmp_path, 120, gpu_all.Teller(tmp_path / "summary.txt"))
    assert limits == [80, 100, 30]
    assert {o.verdict for o in outcomes} == {"ok"}
    limits.clear()
    outcomes = gpu_all.run_parts(parts, tmp_path, 41, gpu_all.Teller(tmp_path / "summary.txt"))
    assert outcomes[0].verdict == "failed: no time was left for it"
    assert limits == [31, 30]


def test_the_parts_fit_into_ten_minutes_and_eight_files(tmp_path: Path) -> None:
    parts = gpu_all.parts_for("9.0", tmp_path / "gpu-1.json")
    assert [p.name for p in parts] == [
        *("build", "built", "tests", "memcheck", "racecheck", "initcheck", "benchmarks", "end of step", "ncu")
    ]
    # A part that hangs takes a grace beyond its limit, and the device is asked before all.
    assert gpu_all.TOTAL + gpu_all.GRACE * 2 < 480
    assert sum(p.least for p in parts) < gpu_all.TOTAL - 60
    assert len({p.log for p in parts} | {"summary.txt", "gpu-1.json", "end-of-step-gpu-1.json"}) <= 8
    assert gpu_all.LOG_HEAD + gpu_all.LOG_TAIL < 16 * 2**20
    assert parts[0].env == {"TORCH_CUDA_ARCH_LIST": "9.0"}
    for p in parts:
        for word in p.command:
            if word.endswith(".py"):
                assert (gpu_all.ROOT / word).exists(), word


def test_long_logs_lose_their_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_all, "LOG_HEAD", 3)
    monkeypatch.setattr(gpu_all, "LOG_TAIL", 4)
    log = tmp_path / "x.log"
    for content, kept in ((b"1234567", b"1234567"), (b"12345678", b"123\n[... shortened ...]\n5678")):
        log.write_bytes(content)
        gpu_all.shorten(log)
        assert log.read_bytes() == kept


@pytest.mark.parametrize(("code", "status"), [("print('fine')", 0), ("raise SystemExit(1)", 1)])
def test_exit_status_tells_whether_a_part_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, status: int
) -> None:
    monkeypatch.setattr(gpu_all, "DEVICE", "print('capability 9.0')")
    asked: list[str] = []

    def parts_for(capability: str, results: Path) -> list[gpu_all.Part]:
        asked.append(capability)
        results.write_text("{}")
        return [part("", name="good"), part(code, name="other")]

    monkeypatch.setattr(gpu_all, "parts_for", parts_for)
    assert gpu_all.main(["--out", str(tmp_path / "out")]) == status
    assert asked == ["9.0"]
    summary = (tmp_path / "out" / "summary.txt").read_text()
    assert "good" in summary
    assert "figures.py" in summary


def test_without_a_gpu_there_is_nothing_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_all, "DEVICE", "raise SystemExit('torch finds no GPU')")
    assert gpu_all.main(["--out", str(tmp_path)]) == 1
    summary = (tmp_path / "summary.txt").read_text()
    assert "torch finds no GPU" in summary
    assert "nothing else can run" in summary
