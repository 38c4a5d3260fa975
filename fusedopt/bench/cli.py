"""The command line of ``python -m fusedopt.bench``."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from . import selection, sweeps
from .baselines import absent
from .contest import Contest
from .diff import difference, load
from .extras import require
from .kernel import KERNEL
from .machine import machine, stamp_of
from .networks import NETWORKS, SMALL
from .output import Output
from .placement import LAYOUTS
from .report import BenchError, Report
from .runner import Runner, threads
from .suites import SUITES

ROUNDS, SECONDS = 30, 900.0
QUICK_ROUNDS, QUICK_SECONDS = 7, 40.0
INTERRUPTED = 130


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m fusedopt.bench",
        description="Time the steps of fusedopt's optimizers against torch.optim's and other packages'. "
        "`diff OLD.json NEW.json` says what became slower between two runs.",
    )
    add = made.add_argument
    add(
        "--list",
        action="store_true",
        help="show suites, optimizers, dtypes, layouts and baselines, and measure nothing",
    )
    add("--quick", action="store_true", help="small suites and few rounds: a minute on two cores, a first impression")
    add("--suite", action="append", metavar="NAME", help="repeat for several; all standard ones by default")
    add("--optimizer", action="append", metavar="NAME", help="repeat for several (default: AdamW)")
    add("--dtype", action="append", metavar="NAME", help="such as bfloat16 or bfloat16+float32 (default: float32)")
    add("--layout", action="append", metavar="NAME", help=f"{', '.join(LAYOUTS)} (default: contiguous)")
    add("--groups", type=int, metavar="N", help="split the params into N groups (default: as the suite has them)")
    add("--warm", action="store_true", help="step over the same gradients again, out of caches where they fit")
    add("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    add("--threads", type=int, metavar="N", help="torch's threads (default: as torch has them)")
    add("--baseline", action="append", metavar="NAME", help="repeat for several; all that are installed by default")
    add("--rounds", type=int, metavar="N", help=f"turns of each contestant (default: {ROUNDS})")
    add("--seconds", type=float, metavar="S", help=f"time budget; begin nothing after it (default: {SECONDS:.0f})")
    add("--out", type=Path, metavar="FOLDER", help="for results.json and the plots (default: fusedopt-bench-DATE)")
    add("--no-plots", action="store_true", help="write the JSON only")
    add(
        "--training",
        nargs="?",
        const=SMALL.name,
        choices=NETWORKS,
        help=f"time step() within forward, backward, step of a network instead (default: {SMALL.name})",
    )
    add(
        "--sweep",
        action="append",
        choices=sweeps.KINDS,
        help="time 1 to 10,000 tensors, or 2^6 to 2^26 elements, instead",
    )
    return made


@dataclass(frozen=True)
class Course:
    """What a command line asks for."""

    contests: list[Contest]
    training: bool
    must: bool
    rounds: int
    seconds: float
    kinds: dict[str, str]  # of sweep, by the suite's name


def course_of(options: argparse.Namespace) -> Course:
    """BenchError where it asks for something that there is not."""
    selection.check_numbers(rounds=options.rounds, seconds=options.seconds, groups=options.groups)
    names = selection.choose(
        "suite", options.suite or (selection.QUICK if options.quick else selection.STANDARD), list(SUITES)
    )
    suites, kinds = [SUITES[name] for name in names], {}
    if sum(map(bool, (options.suite, options.sweep, options.training))) > 1:
        raise BenchError("--suite, --sweep and --training measure different things; choose one of them")
    if options.training:
        suites = [NETWORKS[options.training].suite]
    if options.sweep:
        found = [(kind, suite) for kind in options.sweep for suite in sweeps.suites_of(kind, options.quick)]
        suites = sweeps.in_order(suite for _, suite in found)
        kinds = {suite.name: kind for kind, suite in found}
    baselines = selection.choose_baselines(options.baseline, options.quick)
    if options.sweep or options.training:
        # One tensor is no loop and has no number of tensors.
        baselines = tuple(name for name in baselines if name != KERNEL)
    contests = selection.contests_of(
        suites,
        options.optimizer or ["AdamW"],
        baselines,
        dtypes=options.dtype or ["float32"],
        layouts=options.layout or ["contiguous"],
        groups=options.groups,
        # A backward pass makes new gradients anyway, and sends its own data through the caches.
        fresh=not (options.warm or options.training),
        cold=not (options.warm or options.training) and not options.device.startswith("cuda"),
    )
    return Course(
        contests,
        bool(options.training),
        bool(options.suite or options.training),
        options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS),
        options.seconds or (QUICK_SECONDS if options.quick else SECONDS),
        kinds,
    )


def run(options: argparse.Namespace, command: str) -> int:
    """Exit status: 0 all measured, 1 something could not be, 130 interrupted. BenchError for what cannot begin."""
    require("rich")
    course = course_of(options)
    count = torch.get_num_threads() if options.threads is None else options.threads
    if options.threads is not None:
        selection.check_threads(count)
    with threads(count):
        clock = selection.clock_of(options.device)
        report = Report(machine(command))
        report.machine.update(selection.device_facts(clock))
        output = Output(options.out or Path(f"fusedopt-bench-{stamp_of(report.machine['date'])}"), not options.no_plots)
        output.save(report)
        status = 0
        try:
            measure(
                course,
                Runner(clock, report, course.rounds, course.seconds, lambda: output.save(report), must=course.must),
            )
            report.complete = True
        except KeyboardInterrupt:
            print("interrupted; what was measured so far is kept", file=sys.stderr)
            status = INTERRUPTED
        report.fits = sweeps.fit_all(report.measurements)
        output.save(report)
    from .tables import show

    show(report)
    paths = [output.path, *([] if options.no_plots else output.draw(report))]
    print("written:", *paths, sep="\n  ")
    return status or int(bool(report.failures))


def measure(course: Course, runner: Runner) -> None:
    from .progress import Bar

    with Bar(len(course.contests)) as runner.watch:
        if course.training:
            runner.run(course.contests, runner.measure_training)
        elif course.kinds:
            runner.run(
                course.contests,
                lambda contest, seconds: runner.measure(contest, seconds, course.kinds[contest.suite.name]),
            )
        else:
            runner.run(course.contests)


def show_list() -> int:
    missing = absent()
    print("suites (tensors, elements):")
    for suite in SUITES.values():
        kind = "" if suite.name in selection.STANDARD else "  only by name"
        quick = "  quick" if suite.name in selection.QUICK else ""
        print(f"  {suite.name:<24}{suite.tensors:>6}{suite.elements:>15,}{quick}{kind}")
    for what, names in (
        ("optimizers", selection.OPTIMIZERS),
        ("dtypes of params and gradients, + that of states", tuple(selection.DTYPES)),
        ("layouts", LAYOUTS),
    ):
        print(f"{what}:\n  {', '.join(names)}")
    print("baselines:")
    for name in selection.KNOWN_BASELINES:
        print(f"  {name:<24}{'absent: ' + missing[name] if name in missing else ''}".rstrip())
    return 0


def run_diff(arguments: Sequence[str]) -> int:
    """Exit status: 0 nothing became slower, 1 something did."""
    made = argparse.ArgumentParser(
        prog="python -m fusedopt.bench diff", description="Say what became slower between two runs, beyond the noise."
    )
    made.add_argument("old", type=Path, metavar="OLD.json")
    made.add_argument("new", type=Path, metavar="NEW.json")
    options = made.parse_args(arguments)
    require("rich")
    from .tables import console, difference_table

    found = difference(load(options.old), load(options.new))
    console().print(difference_table(found))
    for line in found.warnings:
        print(f"take care: {line}")
    for which, names in (("old", found.only_old), ("new", found.only_new)):
        if names:
            print(f"only in the {which} run: {', '.join(names)}")
    if found.slower:
        print(f"slower: {', '.join(change.name for change in found.slower)}", file=sys.stderr)
    return int(bool(found.slower))


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 all is well, 1 some was not measured or is slower, 2 bad input, 130 interrupted."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if given[:1] == ["diff"]:
            return run_diff(given[1:])
        options = parser().parse_args(given)
        return show_list() if options.list else run(options, shlex.join(["python", "-m", "fusedopt.bench", *given]))
    except BenchError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted before anything was measured", file=sys.stderr)
        return INTERRUPTED
