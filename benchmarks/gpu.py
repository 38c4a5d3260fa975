"""Measure fusedopt on a GPU, print every promise beside its measured figure, keep the raw rounds as JSON.

python benchmarks/gpu.py [--quick] [--only NAME]... [--seconds N] [--out FILE] [--dry-run]
"""

from __future__ import annotations

import argparse
import gc
import shlex
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from gpu_launches import STEPS, count_apart
from gpu_report import alignment_finding, copy_finding, goal_finding, launches_finding, make_gpu_table, mean_finding
from gpu_table import (
    ALIGNED,
    ALIGNMENT,
    BANDWIDTH,
    COPY_SIZES,
    FOREIGN,
    LARGE,
    LAUNCH_SUITES,
    LAUNCHES,
    MEAN_OF,
    MISALIGNED,
    NAMES,
    ON_DEVICE,
    ON_HOST,
    QUICK,
    SHARE,
    TRIALS,
    Trial,
)
from judging import Pretend, check_agreement

from fusedopt.bench.baselines import CONTROL, FUSED, OURS, absent
from fusedopt.bench.clock import COLD, DEVICE, Clock, Cuda
from fusedopt.bench.contest import Contest
from fusedopt.bench.entrants import enter
from fusedopt.bench.machine import machine, stamp_of
from fusedopt.bench.method import Contestant, Effort, Rounds, interleave, summarise, warm_up
from fusedopt.bench.report import Report, record
from fusedopt.bench.streaming import COPY, Copy, copies
from fusedopt.bench.tables import console
from fusedopt.bench.traffic import footprint, traffic

RESULTS = Path(__file__).resolve().parent / "results"


class NotMeasured(Exception):
    """Why something was left out."""


@dataclass
class Run:
    """A run under way."""

    clock: Clock
    report: Report
    out: Path
    quick: bool
    deadline: float
    dry: bool
    # The copy that is the ceiling for the others: that of the size at which copying was fastest.
    ceiling: Copy | None = None
    rounds: dict[str, Rounds] = field(default_factory=dict)

    def effort(self, mode: str) -> Effort:
        return QUICK if self.quick else ON_DEVICE if mode in (DEVICE, COLD) else ON_HOST

    def time(self, name: str, mode: str, contestants: Sequence[Contestant], **facts: object) -> Rounds:
        """The rounds of a measurement, which go into the report."""
        rounds = interleave(contestants, self.effort(mode), measure=self.clock.measure(mode))
        self.rounds[f"{name}, {mode}"] = rounds
        self.report.measurements.append(record(f"{name}, {mode}", rounds, clock=mode, **facts))
        return rounds

    def say(self, line: str) -> None:
        print(line, flush=True)

    def save(self) -> None:
        self.out.write_text(self.report.as_json())


def run_copies(run: Run) -> None:
    """Finds the ceiling; two buffers of the largest size must leave room for the models."""
    free = run.clock.free_bytes() or 0
    sizes = [size for size in (size // 2**10 if run.dry else size for size in COPY_SIZES) if 6 * size <= free]
    if not sizes:
        raise NotMeasured(f"two buffers of {COPY_SIZES[0] / 2**30:g} GiB are too much for {free / 2**30:.1f} GiB")
    named = {f"{COPY} of {size / 2**20:g} MiB": copy for size, copy in copies(sizes, run.clock).items()}
    contestants = [Contestant(name, copy) for name, copy in named.items()]
    warm_up(contestants, 2)
    rounds = run.time(BANDWIDTH, DEVICE, contestants, bytes={name: copy.traffic for name, copy in named.items()})
    run.report.findings += [copy_finding(name, rounds[name], copy.traffic) for name, copy in named.items()]
    rates = {name: copy.traffic / summarise(rounds[name]).median for name, copy in named.items()}
    fastest = max(named, key=lambda name: rates[name])
    run.ceiling = named[fastest]
    run.say(f"  {fastest}: {rates[fastest]:.0f} GB/s")


def run_launches(run: Run) -> None:
    if run.dry:
        run.say("  a dry run launches nothing")
        return
    found = count_apart(LAUNCH_SUITES, 90)
    if "reason" in found:
        raise NotMeasured(found["reason"])
    run.report.measurements.append({"name": LAUNCHES, "steps": STEPS, "kernels": found})
    run.report.findings += [launches_finding(suite, STEPS, kernels) for suite, kernels in found.items()]


def enter_alignment(aligned: Contest, misaligned: Contest, clock: Clock) -> tuple[list[Contestant], dict[str, int]]:
    """Ours on two suites of one size, of which the second defeats vector loads; and the bytes of a step of each."""
    contestants, traffics = [], {}
    for contest, names in ((aligned, ("aligned",)), (misaligned, (OURS, CONTROL))):
        entrants, _ = enter(contest, clock)
        for name, entrant in zip(names, entrants.values(), strict=False):
            contestants.append(replace(entrant.contestant(OURS), name=name))
            entrant.prepare()
            entrant.optimizer.step()
            traffics[name] = traffic(entrant.optimizer)
    return contestants, traffics


def run_alignment(run: Run) -> None:
    aligned, misaligned = ALIGNED, MISALIGNED
    if run.dry:
        aligned, misaligned = (replace(c, suite=c.suite.cut()) for c in (ALIGNED, MISALIGNED))
    contestants, traffics = enter_alignment(aligned, misaligned, run.clock)
    warm_up(contestants, run.effort(DEVICE).warmup)
    rounds = run.time(ALIGNMENT, DEVICE, contestants, bytes=traffics)
    run.report.findings.append(alignment_finding(DEVICE, rounds, traffics))


def run_trial(run: Run, trial: Trial) -> None:
    contest = trial.contest
    needs = footprint(contest, len(contest.rivals) + 2)
    free = run.clock.free_bytes() or 0
    if needs > free:
        raise NotMeasured(f"needs {needs / 2**30:.0f} GiB, and {free / 2**30:.0f} are free")
    entrants, contestants = enter(contest, run.clock)
    if run.ceiling:
        contestants.append(Contestant(COPY, run.ceiling))
    warm_up(contestants, run.effort(DEVICE).warmup)
    run.clock.synchronize()
    try:
        check_agreement(entrants, stray=0 if contest.dtype == torch.float32 else 1e-5)
    except AssertionError as error:
        raise NotMeasured(f"results disagree: {error}") from error
    moved = traffic(entrants[OURS].optimizer)
    facts = {
        **contest.facts(),
        "bytes": {OURS: moved, **({COPY: run.ceiling.traffic} if run.ceiling else {})},
    }
    for mode in trial.modes:
        ceiling = mode in (DEVICE, COLD) and (moved >= LARGE or any(g.kind == SHARE for g in trial.goals))
        out = {*contest.rivals, COPY} - {*trial.rivals(mode), *((COPY,) if ceiling else ())}
        taking_part = [c for c in contestants if c.name not in out]
        rounds = run.time(trial.name, mode, taking_part, **facts)
        copied = run.ceiling.traffic if run.ceiling else 0
        for goal in trial.goals:
            if goal.mode == mode:
                finding = goal_finding(trial.name, goal, rounds, moved, copied)
                run.report.findings.append(finding)
                against = f" against {goal.against}" if goal.against else ""
                run.say(f"  {mode}{against}: {finding.measured.value:.3g}{finding.unit} {finding.verdict}")


def run_one(run: Run, name: str) -> None:
    special = {BANDWIDTH: run_copies, LAUNCHES: run_launches, ALIGNMENT: run_alignment}
    if name in special:
        special[name](run)
    else:
        (trial,) = (t for t in TRIALS if t.name == name)
        run_trial(run, trial.cut() if run.dry else trial)


def expected(name: str) -> float:
    """Seconds that it takes at most, as far as one can know."""
    return 60 if name.endswith("-compiled") else 30 if name == LAUNCHES else 10


def run_all(run: Run, names: Sequence[str]) -> None:
    """Measure ``names`` in turn; a failure costs no other. The file is rewritten after each."""
    for name in names:
        began = time.perf_counter()
        if began + expected(name) > run.deadline:
            run.report.failures.append(f"{name}: not measured: out of time")
            continue
        run.say(name)
        try:
            run.clock.begin()
            run_one(run, name)
        except NotMeasured as error:
            run.report.failures.append(f"{name}: not measured: {error}")
        except Exception as error:
            traceback.print_exc()
            first = (str(error).splitlines() or [""])[0]
            run.report.failures.append(f"{name}: not measured: {type(error).__name__}: {first}")
        # The next one needs the memory.
        gc.collect()
        if run.clock.device.type == "cuda":
            torch.cuda.empty_cache()
        run.save()
        run.say(f"  {time.perf_counter() - began:.1f} s")
    mean = mean_finding(run.rounds, FUSED)
    if mean:
        run.report.findings.append(mean)
    elif any(name.partition(",")[0] in names for name in MEAN_OF):
        run.report.failures.append("the geometric mean was not made: some of its measurements are missing")
    run.report.complete = not any("out of time" in failure for failure in run.report.failures)
    run.save()


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time fusedopt against torch.optim on a GPU.")
    parser.add_argument("--quick", action="store_true", help="a few rounds each: shows that all works, proves nothing")
    parser.add_argument("--only", action="append", choices=NAMES, metavar="NAME", help=f"one of {', '.join(NAMES)}")
    parser.add_argument("--seconds", type=float, default=300, help="begin nothing that may last longer (default: 300)")
    parser.add_argument("--out", type=Path, help="JSON file (default: benchmarks/results/gpu-DATE.json)")
    parser.add_argument("--dry-run", action="store_true", help="tiny parameter sets on the CPU, to see everything run")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 all measured, 1 something could not be, 2 bad arguments or no GPU, 130 interrupted."""
    options = parse(arguments)
    began = time.perf_counter()
    if not options.dry_run and not torch.cuda.is_available():
        print(f"torch {torch.__version__} finds no GPU; --dry-run runs everything on the CPU", file=sys.stderr)
        return 2
    # A graph is captured after a few plain steps, which torch warns of.
    warnings.filterwarnings("ignore", message=".*capturable=True.*")
    clock: Clock = Pretend() if options.dry_run else Cuda()
    clock.heat()
    command = shlex.join(["python", "benchmarks/gpu.py", *(sys.argv[1:] if arguments is None else arguments)])
    missing = [name for name in FOREIGN if name in absent()]
    report = Report({**machine(command), "gpu": clock.facts(), "absent": missing})
    prefix = "quick-gpu-" if options.quick or options.dry_run else "gpu-"
    out = options.out or RESULTS / f"{prefix}{stamp_of(report.machine['date'])}.json"
    run = Run(clock, report, out, options.quick, began + options.seconds, options.dry_run)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        run.save()
    except OSError as error:
        print(f"cannot write {out}: {error.strerror}", file=sys.stderr)
        return 2
    status = 0
    try:
        run_all(run, list(dict.fromkeys(options.only or NAMES)))
    except KeyboardInterrupt:
        print("interrupted; what was measured so far is kept", file=sys.stderr)
        status = 130
    # Wide enough for every column also where the output is a file.
    console().print(make_gpu_table(report.findings))
    gpu = report.machine["gpu"]
    print(f"{gpu['name']}, driver {gpu['driver']}, CUDA {gpu['cuda']}, torch {report.machine['torch']}")
    print(f"raw rounds: {out}")
    for failure in report.failures:
        print(failure, file=sys.stderr)
    return status or bool(report.failures)


if __name__ == "__main__":
    # Asked to end by whoever limits the time: what there is is still printed.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
