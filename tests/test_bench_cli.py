"""The command line of the benchmarks from end to end, on tiny suites. No test asserts a time."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("rich")
pytest.importorskip("matplotlib")

from judging import Pretend

from fusedopt.bench import cli, extras, plots, runner, selection, streaming, sweeps
from fusedopt.bench.baselines import CONTROL, FUSED, LOOP, OURS
from fusedopt.bench.clock import MODES, Cpu
from fusedopt.bench.contest import Contest
from fusedopt.bench.kernel import KERNEL
from fusedopt.bench.method import Contestant, compare
from fusedopt.bench.networks import NETWORKS, Network
from fusedopt.bench.report import SCHEMA, Report
from fusedopt.bench.suites import SUITES, Suite

ROOT = Path(__file__).parent.parent
TINY = Suite("tiny", ((33, 5), (7,)), 2, 172)
QUICK = ["--quick", "--threads", "1"]


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(streaming, "CPU_ELEMENTS", 2**12)
    monkeypatch.setitem(SUITES, "tiny", TINY)


def read(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found


def test_a_run_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "folder"
    threads = torch.get_num_threads()
    rivals = [word for name in (FUSED, LOOP, KERNEL) for word in ("--baseline", name)]
    assert cli.main([*QUICK, "--suite", "tiny", *rivals, "--rounds", "4", "--out", str(out)]) == 0
    assert torch.get_num_threads() == threads
    captured = capsys.readouterr()
    assert "tiny-adamw-cold" in captured.out
    assert "A/A" in captured.out
    assert "tiny-adamw-cold" not in captured.err.replace("\r", "\n").splitlines()[-1]

    written = read(out)
    assert written["schema"] == SCHEMA
    assert written["complete"]
    assert written["failures"] == written["skipped"] == []
    assert written["machine"]["command"].startswith("python -m fusedopt.bench --quick")
    assert written["machine"]["torch"] == torch.__version__
    stream, measured = written["measurements"]
    assert stream["name"] == "streaming"
    assert set(stream["rounds_ns"]) == set(stream["bytes"]) == {"bare loop", "copy", "addition"}
    rounds = measured["rounds_ns"]
    assert set(rounds) == {OURS, CONTROL, FUSED, LOOP, KERNEL}
    assert {len(samples) for samples in rounds.values()} == {4}
    assert (measured["tensors"], measured["elements"], measured["bytes"]) == (2, 172, 28 * 172)
    assert measured["clock"] == "step"
    assert measured["fresh"]
    findings = {finding["against"]: finding for finding in written["findings"]}
    assert set(findings) == {FUSED, LOOP, KERNEL}
    ratio = compare(rounds[LOOP], rounds[OURS])
    assert findings[LOOP]["measured"] == pytest.approx({"value": ratio.value, "low": ratio.low, "high": ratio.high})
    best = min(stream["summary_ns"][name]["median"] / moved for name, moved in stream["bytes"].items())
    share = measured["bytes"] / measured["summary_ns"][OURS]["median"] * best
    assert findings[LOOP]["of_streaming"]["value"] == pytest.approx(share)
    for name in ("speedup.png", "roofline.png"):
        assert_picture(out / name)


def assert_picture(path: Path) -> None:
    """A PNG with something on it: many more colours than a blank one."""
    import matplotlib.image

    pixels = matplotlib.image.imread(path)
    assert min(pixels.shape[:2]) > 100
    assert len({tuple(pixel) for pixel in pixels[::3, ::3].reshape(-1, pixels.shape[2]).tolist()}) > 20


def test_every_key_of_the_json_is_documented(tmp_path: Path) -> None:
    documented = set(re.findall(r"`([a-z_0-9]+)`", (ROOT / "docs" / "benchmarking.md").read_text()))
    cli.main([*QUICK, "--suite", "tiny", "--baseline", FUSED, "--rounds", "2", "--no-plots", "--out", str(tmp_path)])
    written = read(tmp_path)
    keys = {*written, *written["machine"], *written["findings"][0]}
    keys |= {key for measurement in written["measurements"] for key in measurement}
    assert keys <= documented, keys - documented


@pytest.mark.parametrize(
    ("clock", "control", "said"), [("step", 1.2, ""), ("step", 1.3, " (noisy)"), ("device", 1.1, " (noisy)")]
)
def test_a_picture_says_what_is_noisy(clock: str, control: float, said: str) -> None:
    rounds = {OURS: [100.0] * 3, CONTROL: [100.0 * control] * 3}
    assert plots.doubt({"rounds_ns": rounds}, clock) == said


def test_a_rival_that_is_wrong_is_not_timed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [*QUICK, "--suite", "tiny", "--optimizer", "SGD", "--dtype", "bfloat16", "--rounds", "2", "--no-plots"]
    assert cli.main([*command, "--baseline", FUSED, "--baseline", LOOP, "--out", str(tmp_path)]) == 0
    assert f"{FUSED}: wrong: after 6 steps" in capsys.readouterr().out
    measured = read(tmp_path)["measurements"][-1]
    assert set(measured["rounds_ns"]) == {OURS, CONTROL, LOOP}
    assert measured["left_out"][FUSED].startswith("wrong: ")


def test_if_we_are_wrong_nothing_is_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runner, "verify", lambda _, names, __: dict.fromkeys(names, "wrong: by much"))
    assert cli.main([*QUICK, "--suite", "tiny", "--no-plots", "--out", str(tmp_path)]) == 1
    assert "tiny-adamw-cold: not measured: fusedopt is wrong: by much" in capsys.readouterr().err
    assert read(tmp_path)["measurements"] == []


def test_all_options_reach_the_contests(tmp_path: Path) -> None:
    options = ["--optimizer", "Adam", "--optimizer", "Lion", "--dtype", "bfloat16+float32", "--layout", "strided"]
    options += ["--layout", "contiguous", "--groups", "2", "--warm", "--rounds", "2", "--no-plots"]
    assert cli.main([*QUICK, "--suite", "tiny", *options, "--baseline", LOOP, "--out", str(tmp_path)]) == 0
    measured = read(tmp_path)["measurements"][1:]
    kind = "bfloat16-float32-state"
    assert [m["name"] for m in measured] == [
        f"tiny-{optimizer}-{kind}{layout}-2groups" for optimizer in ("adam", "lion") for layout in ("-strided", "")
    ]
    assert {m["groups"] for m in measured} == {2}
    assert not any(m["fresh"] for m in measured)
    assert {(m["dtype"], m["state_dtype"]) for m in measured} == {("torch.bfloat16", "torch.float32")}


def test_a_sweep_finds_costs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sweeps, "COUNTS", (1, 2, 4))
    monkeypatch.setattr(sweeps, "SIZES", (64, 128, 256))
    command = [*QUICK, "--sweep", "tensors", "--sweep", "elements", "--baseline", LOOP, "--rounds", "3"]
    assert cli.main([*command, "--out", str(tmp_path)]) == 0
    assert "/tensor" in capsys.readouterr().out
    written = read(tmp_path)
    assert written["findings"] == []
    assert {fit["contestant"]: fit["points"] for fit in written["fits"]} == {OURS: 4, CONTROL: 4, LOOP: 4}
    assert {fit["clock"] for fit in written["fits"]} == {"step"}
    for kind in sweeps.KINDS:
        assert_picture(tmp_path / f"cost-{kind}.png")


def test_training_compares_the_loop_with_isolation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def made() -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, 10))

    suite = Suite("training-loop", ((10, 768), (10,)), 2, 7690)
    monkeypatch.setitem(NETWORKS, "training-loop", Network(suite, made, 16, 16, 10))
    command = [*QUICK, "--training", "--baseline", FUSED, "--rounds", "2", "--no-plots"]
    assert cli.main([*command, "--out", str(tmp_path)]) == 0
    assert "speed-up in the loop over isolated" in capsys.readouterr().out
    written = read(tmp_path)
    assert [m["inside"] for m in written["measurements"]] == ["isolated", "in the loop"]
    *_, kept = written["findings"]
    inside, isolated = (
        next(f["measured"]["value"] for f in written["findings"] if f["measurement"].endswith(where))
        for where in ("in the loop", "isolated")
    )
    assert kept["measured"]["value"] == pytest.approx(inside / isolated)


def test_a_gpu_is_timed_on_each_of_its_clocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the CPU in its place."""
    monkeypatch.setattr(selection, "clock_of", lambda _: Pretend())
    options = ["--device", "cuda", "--baseline", FUSED, "--rounds", "3", "--no-plots", "--out", str(tmp_path)]
    assert cli.main([*QUICK, "--suite", "tiny", *options]) == 0
    written = read(tmp_path)
    assert [m["clock"] for m in written["measurements"][1:]] == list(MODES)
    assert [f["measurement"] for f in written["findings"]] == [f"tiny-adamw-fresh, {mode}" for mode in MODES]
    assert [f["of_streaming"] is not None for f in written["findings"]] == [True, True, False, False]
    names = [plots.suffix(mode) for mode in MODES]
    assert names == ["-device", "-device-cold-l2", "-wall", "-host"]


@pytest.mark.parametrize("who", [LOOP, OURS])
def test_a_step_that_has_no_device_time_keeps_its_others(monkeypatch: pytest.MonkeyPatch, who: str) -> None:
    def refuse(_: Pretend, contestant: Contestant, cold: bool = False) -> int:
        if contestant.name == who:
            raise RuntimeError(f"{who}: a call could not be issued while the device waited")
        return 1000

    pretend = Pretend()
    monkeypatch.setattr(Pretend, "device_time", refuse)
    report = Report({})
    course = runner.Runner(pretend, report, rounds=2, seconds=60)
    monkeypatch.setattr(course, "measure_ceiling", lambda: None)
    course.ceiling = streaming.Ceiling(Contestant("copy", lambda: None), 1, 1.0, {}, {})
    course.run([Contest(TINY, "AdamW", (LOOP,))])
    assert report.failures == []
    if who == OURS:
        assert [m["clock"] for m in report.measurements] == ["wall", "host"]
        assert len(report.skipped) == 2
        assert "could not be issued" in report.skipped[0]
        return
    reason = f"{LOOP}: a call could not be issued while the device waited"
    assert {m["clock"]: m["left_out"].get(LOOP) for m in report.measurements} == {
        "device": reason,
        "device, cold L2": reason,
        "wall": None,
        "host": None,
    }


def test_an_interrupted_run_keeps_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measure = runner.Runner.measure

    def interrupt(self: runner.Runner, contest: Contest, *rest: Any) -> None:
        if contest.optimizer == "SGD":
            raise KeyboardInterrupt
        measure(self, contest, *rest)

    monkeypatch.setattr(runner.Runner, "measure", interrupt)
    options = ["--optimizer", "AdamW", "--optimizer", "SGD", "--baseline", LOOP, "--rounds", "2", "--no-plots"]
    assert cli.main([*QUICK, "--suite", "tiny", *options, "--out", str(tmp_path)]) == 130
    captured = capsys.readouterr()
    assert "interrupted; what was measured so far is kept" in captured.err
    assert "tiny-adamw-cold" in captured.out
    written = read(tmp_path)
    assert not written["complete"]
    assert [m["name"] for m in written["measurements"]] == ["streaming", "tiny-adamw-cold"]


def test_one_failure_costs_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(contest: Contest, _: object = None) -> tuple[dict[str, Any], list[Any]]:
        if contest.optimizer == "SGD":
            raise MemoryError("none left")
        return enter(contest, Cpu())

    enter = runner.enter
    monkeypatch.setattr(runner, "enter", fail)
    options = ["--optimizer", "SGD", "--optimizer", "AdamW", "--baseline", LOOP, "--rounds", "2", "--no-plots"]
    assert cli.main([*QUICK, "--suite", "tiny", *options, "--out", str(tmp_path)]) == 1
    assert "tiny-sgd-cold: not measured: MemoryError: none left" in capsys.readouterr().err
    assert [m["name"] for m in read(tmp_path)["measurements"]] == ["streaming", "tiny-adamw-cold"]


def test_what_does_not_fit_is_skipped_and_a_failure_if_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Cpu, "free_bytes", lambda _: 2**30)
    monkeypatch.setattr(selection, "QUICK", ("llama7b", "tiny"))
    options = [*QUICK, "--baseline", LOOP, "--rounds", "2", "--no-plots", "--out", str(tmp_path)]
    sentence = "llama7b-adamw-cold: not measured: needs 276.1 GiB of memory, and 1.0 GiB are free"
    assert cli.main(options) == 0
    assert sentence in capsys.readouterr().out
    assert cli.main([*options, "--suite", "llama7b"]) == 1
    assert sentence in capsys.readouterr().err


def test_no_measurement_begins_after_the_time_budget(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--suite", "gpt2", "--seconds", "1e-3", "--no-plots", "--out", str(tmp_path)]
    assert cli.main([*QUICK, *options]) == 1
    assert "gpt2-adamw-cold: not measured: out of time" in capsys.readouterr().err


def test_a_rival_that_would_take_all_the_time_is_left_out() -> None:
    report = Report({})
    course = runner.Runner(Cpu(), report, rounds=2, seconds=60)
    left_out: dict[str, str] = {}
    contestants = [Contestant(name, lambda: None) for name in (OURS, LOOP)]
    assert [c.name for c in course.warm(contestants, 60, left_out)] == [OURS, LOOP]
    assert [c.name for c in course.warm(contestants, 0, left_out)] == [OURS]
    assert left_out[LOOP].startswith("too slow for the time budget: a step took ")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--suite", "resnet5"], "suite 'resnet5' is not known; did you mean 'resnet50'?"),
        (["--suite", "?"], "suite '?' is not known; one of 1x64, "),
        (["--optimizer", "adamw"], "optimizer 'adamw' is not known; did you mean 'AdamW'?"),
        (["--dtype", "int8"], "dtype 'int8' is not known; one of float32"),
        (["--layout", "spiral"], "layout 'spiral' is not known; one of contiguous"),
        (["--baseline", "torch fuse"], "baseline 'torch fuse' is not known; did you mean 'torch fused'?"),
        (["--device", "abacus"], "device 'abacus' is not known; use cpu, cuda or cuda:0"),
        (["--device", "meta"], "device 'meta' has no clock here; use cpu, cuda or cuda:0"),
        (["--rounds", "0"], "rounds is 0; it must be greater than 0"),
        (["--seconds", "-1"], "seconds is -1; it must be greater than 0"),
        (["--groups", "0"], "groups is 0; it must be greater than 0"),
        (["--threads", "0"], "threads is 0; it must be greater than 0"),
        (["--threads", "9999"], "threads is 9999, and there are "),
        (["--suite", "tiny", "--training"], "--suite, --sweep and --training measure different things; choose one"),
        (["--sweep", "tensors", "--training"], "--suite, --sweep and --training measure different things; choose one"),
    ],
)
def test_bad_input_gives_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], sentence: str
) -> None:
    assert cli.main(["--quick", "--out", str(tmp_path / "none"), *options]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_its_device_gives_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--quick", "--device", "cuda"]) == 2
    assert f"device 'cuda': torch {torch.__version__} finds no GPU; use --device cpu" in capsys.readouterr().err


def test_a_gpu_of_too_high_a_number_gives_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(selection.BenchError, match="device 'cuda:2': torch finds 2 GPUs, cuda:0 to cuda:1"):
        selection.clock_of("cuda:2")


def test_a_folder_that_cannot_be_written_gives_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert cli.main([*QUICK, "--suite", "tiny", "--out", str(tmp_path / "file" / "x")]) == 2
    assert re.search(r"cannot write .*results.json: .*; choose another folder", capsys.readouterr().err)


def test_a_baseline_that_is_not_installed_gives_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(type(selection.BASELINES["apex"]), "absent", lambda _: "not installed")
    assert cli.main([*QUICK, "--baseline", "apex"]) == 2
    assert "baseline 'apex' cannot take part: not installed; leave it out or install it" in capsys.readouterr().err
    assert "apex" not in selection.choose_baselines(None)


@pytest.mark.parametrize(
    ("missing", "sentence"),
    [
        ("rich", "the tables and the progress bar need rich, which is not installed: python -m pip install rich"),
        ("matplotlib", "the plots need matplotlib, which is not installed: python -m pip install matplotlib"),
    ],
)
def test_a_library_that_is_missing_gives_a_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    missing: str,
    sentence: str,
) -> None:
    found = extras.importlib.util.find_spec
    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda name: None if name == missing else found(name))
    assert cli.main([*QUICK, "--suite", "tiny", "--out", str(tmp_path)]) == 2
    assert sentence in capsys.readouterr().err


def test_the_list_names_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--list"]) == 0
    listed = capsys.readouterr().out
    for name in (*SUITES, *selection.OPTIMIZERS, *selection.DTYPES, *selection.KNOWN_BASELINES):
        assert name in listed
    for name, reason in cli.absent().items():
        assert re.search(rf"^ +{name} +absent: {re.escape(reason)}$", listed, re.MULTILINE)


def test_standard_suites_and_baselines_are_known() -> None:
    assert {*selection.STANDARD, *selection.QUICK} <= set(SUITES)
    assert {*selection.STANDARD_BASELINES, *selection.QUICK_BASELINES} <= set(selection.KNOWN_BASELINES)


def test_the_module_runs_as_a_program() -> None:
    done = subprocess.run([sys.executable, "-m", "fusedopt.bench", "--suite", "?"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("suite '?' is not known")
    assert done.stdout == ""


def test_the_package_ships_all_of_its_folders() -> None:
    packages = json.loads(re.findall(r"^packages = (\[.*\])$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[0])
    found = {str(p.parent.relative_to(ROOT)).replace("/", ".") for p in (ROOT / "fusedopt").rglob("__init__.py")}
    assert found == set(packages)
