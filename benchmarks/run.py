"""Measure fusedopt against torch.optim, print every promise beside its measured figure, keep the raw rounds as JSON.

python benchmarks/run.py [--quick] [--only NAME]... [--threads N] [--out FILE]
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import memory
from compiled import baselines_of
from judging import check_agreement
from report import contest_finding, in_loop_finding, kept_finding, make_table, memory_finding, temporaries_finding
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from table import CONTESTS, MEMORY, MEMORY_SUITES, NAMES, QUESTIONS, TEMPORARIES, TRAINED, effort_of

import fusedopt
from fusedopt.bench import training
from fusedopt.bench.baselines import FUSED
from fusedopt.bench.contest import Contest
from fusedopt.bench.entrants import enter
from fusedopt.bench.machine import machine, stamp_of
from fusedopt.bench.method import Effort, interleave, warm_up
from fusedopt.bench.networks import NETWORKS
from fusedopt.bench.report import Report, record
from fusedopt.bench.runner import threads
from fusedopt.bench.tables import console

RESULTS = Path(__file__).resolve().parent / "results"
Tick = Callable[[], object]


def run_contest(contest: Contest, effort: Effort, report: Report, tick: Tick) -> None:
    try:
        entrants, contestants = enter(contest, baselines=baselines_of(contest))
    except RuntimeError as error:  # such as a missing compiler
        report.failures.append(f"{contest.name}: not measured: {error}")
        return
    warm_up(contestants, effort.warmup)
    try:
        check_agreement(entrants, atol=contest.atol)
    except AssertionError as error:
        report.failures.append(f"{contest.name}: not timed, results disagree: {error}")
        return
    rounds = interleave(contestants, effort, tick)
    report.measurements.append(record(contest.name, rounds, **contest.facts()))
    report.findings += [contest_finding(q, rounds) for q in QUESTIONS if q.contest.name == contest.name]


def run_training(name: str, effort: Effort, report: Report, tick: Tick) -> None:
    suite = NETWORKS[TRAINED[name]].suite
    trainees = training.make_trainees(Contest(suite, "AdamW", (FUSED,)))
    rounds = {}
    for where, contestants in (("isolated", training.isolated(trainees)), ("in loop", training.in_loop(trainees))):
        warm_up(contestants, effort.warmup)
        rounds[where] = interleave(contestants, effort, tick)
        report.measurements.append(record(f"{name}, {where}", rounds[where]))
    report.findings.append(in_loop_finding(name, FUSED, rounds["in loop"]))
    report.findings.append(kept_finding(name, FUSED, rounds["isolated"], rounds["in loop"]))


def run_memory(report: Report) -> None:
    for suite in MEMORY_SUITES:
        sizes = {name: memory.measure_apart(suite, "AdamW", name) for name in (fusedopt.__name__, "torch fused")}
        report.measurements.append({"name": f"{MEMORY}-{suite}", "bytes": sizes})
        ours = sizes[fusedopt.__name__]
        if "reason" in ours:
            report.failures.append(f"{MEMORY}-{suite}: not measured: {ours['reason']}")
        else:
            report.findings.append(memory_finding(suite, ours))
    for question in TEMPORARIES:
        name = f"{MEMORY}-{question.suite}-{question.optimizer.lower()}"
        sizes = {
            library: memory.measure_apart(question.suite, question.optimizer, library)
            for library in (fusedopt.__name__, question.rival)
        }
        report.measurements.append({"name": name, "bytes": sizes})
        reason = next((size["reason"] for size in sizes.values() if "reason" in size), None)
        if reason is not None:
            report.failures.append(f"{name}: not measured: {reason}")
        else:
            report.findings.append(temporaries_finding(name, question, sizes[fusedopt.__name__], sizes[question.rival]))


def run_one(name: str, quick: bool, report: Report, tick: Tick) -> None:
    if name == MEMORY:
        run_memory(report)
    elif name in TRAINED:
        run_training(name, effort_of(name, quick), report, tick)
    else:
        run_contest(CONTESTS[name], effort_of(name, quick), report, tick)


def run(names: Sequence[str], report: Report, *, quick: bool, out: Path) -> None:
    """Measure ``names`` in turn. The file is rewritten after each, so an interrupted run keeps what it has."""
    columns = (TextColumn("{task.description:<28}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        whole = progress.add_task("all", total=len(names))
        for number, name in enumerate(names, 1):
            task = progress.add_task(name, total=rounds_of(name, quick))
            run_one(name, quick, report, lambda task=task: progress.advance(task))  # type: ignore[misc]
            progress.remove_task(task)
            progress.advance(whole)
            report.complete = number == len(names)
            out.write_text(report.as_json())


def rounds_of(name: str, quick: bool) -> int | None:
    if name == MEMORY:
        return None
    return effort_of(name, quick).rounds * (2 if name in TRAINED else 1)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time fusedopt against torch.optim on the CPU.")
    parser.add_argument("--quick", action="store_true", help="a few rounds each: shows that all works, proves nothing")
    parser.add_argument("--only", action="append", choices=NAMES, metavar="NAME", help=f"one of {', '.join(NAMES)}")
    parser.add_argument("--threads", type=int, default=2, help="torch.set_num_threads (default: 2)")
    parser.add_argument("--out", type=Path, help="JSON file (default: benchmarks/results/DATE.json)")
    options = parser.parse_args(arguments)
    if options.threads < 1:
        parser.error("--threads must be at least 1")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 all measured, 1 something could not be, 2 bad arguments, 130 interrupted."""
    options = parse(arguments)
    command = shlex.join(["python", "benchmarks/run.py", *(sys.argv[1:] if arguments is None else arguments)])
    with threads(options.threads):
        report = Report(machine(command))
        stamp = stamp_of(report.machine["date"])
        out = options.out or RESULTS / f"{'quick-' if options.quick else ''}{stamp}.json"
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(report.as_json())
        except OSError as error:
            print(f"cannot write {out}: {error.strerror}", file=sys.stderr)
            return 2
        status = 0
        try:
            run(list(dict.fromkeys(options.only or NAMES)), report, quick=options.quick, out=out)
        except KeyboardInterrupt:
            print("interrupted; what was measured so far is kept", file=sys.stderr)
            status = 130
    # Wide enough for every column also where the output is a file.
    console().print(make_table(report.findings))
    print(f"{report.machine['cpu']}, {options.threads} threads, torch {report.machine['torch']}; raw rounds: {out}")
    for failure in report.failures:
        print(failure, file=sys.stderr)
    return status or bool(report.failures)


if __name__ == "__main__":
    sys.exit(main())
