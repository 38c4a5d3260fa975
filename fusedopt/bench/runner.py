"""A run: contests checked, measured on every clock of the device, and written down one after the other."""

from __future__ import annotations

import gc
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from . import training
from .baselines import BASELINES, CONTROL, OURS, first_line
from .clock import COLD, DEVICE, STEP, Clock
from .contest import Contest
from .entrants import enter
from .kernel import KERNEL, kernel_lacks
from .machine import work_of_others
from .method import Contestant, Effort, Ratio, Rounds, compare, interleave, scaled, steady, summarise, warm_up
from .oracle import small, verify
from .report import NOISY, REPORTED, Finding, Report, milliseconds, record
from .streaming import STREAMING, Ceiling, measure_ceiling
from .sweeps import span
from .traffic import footprint, traffic

# From this many bytes a step is bound by memory, and the streaming loop takes part in its rounds.
LARGE = 2**26
# How far an A/A control may be from 1. The device's clock repeats well; the host's does not.
SPREAD = {DEVICE: 1.05, COLD: 1.05}
HOST_SPREAD = 1.25
# How much of a core others may take from the threads that are timed.
CROWDED = 0.25
# Where a call of ours is short, as many in a row count as one turn as take so many nanoseconds.
TURN_NS, MOST_REPEATS = 2_000_000, 30
LEAST_ROUNDS = 5
# A rival of which not so many calls fit into the time for its measurement is left out.
LEAST_CALLS = 20
# Seconds that an element takes to be made and copied for one contestant.
SETTING_UP = 10e-9


def is_noisy(mode: str, control: Ratio, crowding: float | None = None) -> bool:
    """Whether the copies of ours differ, or others took a part of the cores that ours had use for."""
    return not steady(control, SPREAD.get(mode, HOST_SPREAD)) or (crowding or 0.0) > CROWDED


@contextmanager
def watching_others(facts: dict[str, Any]) -> Iterator[None]:
    """Notes as ``crowding`` how many cores others kept busy of those that torch's threads needed; None: unknown.

    It is what an A/A control cannot see: work that slows both copies alike.
    """
    before, began = work_of_others(), time.perf_counter()
    try:
        yield
    finally:
        after, took = work_of_others(), time.perf_counter() - began
        spare = len(os.sched_getaffinity(0)) - torch.get_num_threads() if hasattr(os, "sched_getaffinity") else 0
        facts["crowding"] = None
        if before is not None and after is not None:
            facts["crowding"] = max((after - before) / took - max(spare, 0), 0.0)


class NotMeasured(Exception):
    """Why something was left out."""


class Watcher:
    """Is told how far a run has come; this one does not care."""

    def begin(self, name: str, rounds: int) -> None: ...

    def tick(self) -> None: ...

    def end(self) -> None: ...

    def done(self) -> None: ...


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass
class Runner:
    """Measures contests into ``report`` until ``seconds`` are over; ``save`` is called whenever there is more to keep.

    ``must`` holds the names of those that were asked for by name: that they do not fit is a failure then.
    """

    clock: Clock
    report: Report
    rounds: int
    seconds: float
    save: Callable[[], object] = lambda: None
    watch: Watcher = field(default_factory=Watcher)
    must: bool = True
    ceiling: Ceiling | None = None
    verified: dict[str, dict[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.deadline = time.perf_counter() + self.seconds

    def run(self, contests: Sequence[Contest], measure: Callable[[Contest, float], None] | None = None) -> None:
        """Each in turn; a failure costs no other."""
        measure = measure or self.measure
        for number, contest in enumerate(contests):
            left = self.deadline - time.perf_counter()
            try:
                # An equal share of what is left, so that a slow contest takes no time from those after it.
                measure(contest, max(left, 0) / (len(contests) - number))
            except NotMeasured as reason:
                kept = self.report.failures if self.must else self.report.skipped
                kept.append(f"{contest.name}: not measured: {reason}")
            except Exception as error:
                logging.getLogger(__name__).debug("%s", contest.name, exc_info=True)
                self.report.failures.append(
                    f"{contest.name}: not measured: {type(error).__name__}: {first_line(error)}"
                )
            # The next one needs the memory.
            gc.collect()
            if self.clock.device.type == "cuda":
                torch.cuda.empty_cache()
            self.save()
            self.watch.done()

    def measure_ceiling(self) -> None:
        if self.ceiling is None:
            self.ceiling = measure_ceiling(self.clock)
            mode = STEP if STEP in self.clock.modes else DEVICE
            self.report.measurements.append(
                record(STREAMING, self.ceiling.rounds, clock=mode, bytes=self.ceiling.bytes)
            )

    def admit(self, contest: Contest) -> tuple[Contest, dict[str, str]]:
        """The contest with those rivals that can take part and are right, and what became of the others."""
        left_out = {}
        for name in contest.rivals:
            lacks = kernel_lacks if name == KERNEL else BASELINES[name].lacks
            left_out[name] = lacks(contest, self.clock.device)
        # The kernel has shown its bits already.
        able = [name for name in contest.rivals if not left_out[name] and name != KERNEL]
        verdicts = self.verify(contest, (OURS, *able))
        if verdicts[OURS]:
            raise NotMeasured(f"{OURS} is {verdicts[OURS]}")
        left_out.update({name: verdict for name, verdict in verdicts.items() if name != OURS})
        rivals = tuple(name for name in contest.rivals if not left_out[name])
        return replace(contest, rivals=rivals), {name: reason for name, reason in left_out.items() if reason}

    def verify(self, contest: Contest, names: Sequence[str]) -> dict[str, str]:
        """Once for each kind of contest: what is checked is the same whatever the suite."""
        known = self.verified.setdefault(repr(small(replace(contest, rivals=()))), {})
        known.update(verify(contest, [name for name in names if name not in known], self.clock))
        return {name: known[name] for name in names}

    def check_room(self, contest: Contest) -> None:
        needs, free = footprint(contest, len(contest.rivals) + 2), self.clock.free_bytes()
        if free is not None and needs > free:
            raise NotMeasured(f"needs {needs / 2**30:.1f} GiB of memory, and {free / 2**30:.1f} GiB are free")

    def check_time(self, contest: Contest) -> None:
        needs = contest.suite.elements * (len(contest.rivals) + 3) * SETTING_UP
        if time.perf_counter() + needs > self.deadline:
            raise NotMeasured("out of time")

    def measure(self, contest: Contest, seconds: float, sweep: str = "") -> None:
        # Before anything is made of it: what does not even fit without rivals needs no checking of them.
        self.check_room(replace(contest, rivals=()))
        self.check_time(contest)
        contest, left_out = self.admit(contest)
        self.check_room(contest)
        self.measure_ceiling()
        self.clock.begin()
        entrants, contestants = enter(contest, self.clock)
        contestants = self.warm(contestants, seconds, left_out)
        moved = traffic(entrants[OURS].optimizer)
        facts = {**contest.facts(), "bytes": moved, "left_out": left_out, **({"sweep": sweep} if sweep else {})}
        assert self.ceiling is not None
        for mode in self.clock.modes:
            streams = moved >= LARGE and mode in (STEP, DEVICE, COLD) and not sweep
            taking_part = [*contestants, *([self.ceiling.contestant] if streams else [])]
            known = {**facts, **({"streaming_bytes": self.ceiling.traffic} if streams else {})}
            rounds = self.time(self.named(contest.name, mode), mode, taking_part, seconds, known)
            # Of a sweep the costs are what was asked for.
            if rounds is not None and not sweep:
                self.report.findings += self.findings(contest.name, mode, rounds, moved)

    def warm(self, contestants: Sequence[Contestant], seconds: float, left_out: dict[str, str]) -> list[Contestant]:
        """Those that are fast enough for the time there is, warm; ``left_out`` is told of the others."""
        kept = []
        for contestant in contestants:
            contestant.prepare()
            contestant.call()  # makes the states
            contestant.prepare()
            took = self.clock.wall_time(contestant)
            if took / 1e9 * LEAST_CALLS > seconds and contestant.name not in (OURS, CONTROL):
                left_out[contestant.name] = f"too slow for the time budget: a step took {span(took)}"
            else:
                kept.append(contestant)
        # A graph is captured in the fourth call.
        warm_up(kept, 3)
        self.clock.synchronize()
        return kept

    def named(self, name: str, mode: str) -> str:
        return name if mode == STEP else f"{name}, {mode}"

    def time(
        self, name: str, mode: str, contestants: Sequence[Contestant], seconds: float, facts: dict[str, Any]
    ) -> Rounds | None:
        """Rounds on one clock, which go into the report; None where a step cannot be timed on it."""
        try:
            # Half of the time is for checking, making and warming up.
            each = seconds / 2 / len(self.clock.modes)
            began = time.perf_counter()
            contestants, calls, unfit = self.try_out(mode, contestants)
            repeat = 1
            # One that is to find its caches cold finds them so in the first call of a turn.
            if not facts.get("inside") and not facts.get("cold"):
                affordable = each / (LEAST_ROUNDS * (time.perf_counter() - began))
                repeat = int(min(max(min(TURN_NS / calls[OURS], affordable), 1), MOST_REPEATS))
            effort = Effort(self.rounds, repeat, each, minimum=min(LEAST_ROUNDS, self.rounds))
            self.watch.begin(name, self.rounds)
            with watching_others(facts):
                rounds = interleave(contestants, effort, self.watch.tick, self.clock.measure(mode))
        except RuntimeError as error:
            if mode not in (DEVICE, COLD):
                raise
            self.report.skipped.append(f"{name}: not measured: {first_line(error)}")
            return None
        finally:
            self.watch.end()
        facts = {**facts, "left_out": {**facts["left_out"], **unfit}}
        self.report.measurements.append(record(name, rounds, clock=mode, repeat=repeat, **facts))
        return rounds

    def try_out(
        self, mode: str, contestants: Sequence[Contestant]
    ) -> tuple[list[Contestant], dict[str, int], dict[str, str]]:
        """Those that this clock can time, the nanoseconds of a call of each, and why not the others.

        A step that synchronizes, or launches more kernels than a queue holds, has no device time.
        """
        kept, calls, unfit = [], {}, {}
        for contestant in contestants:
            contestant.prepare()
            try:
                calls[contestant.name] = max(self.clock.measure(mode)(contestant), 1)
                kept.append(contestant)
            except RuntimeError as error:
                if mode not in (DEVICE, COLD) or contestant.name in (OURS, CONTROL):
                    raise
                unfit[contestant.name] = first_line(error)
        return kept, calls, unfit

    def findings(self, name: str, mode: str, rounds: Rounds, moved: int) -> list[Finding]:
        """Ours against each of the others."""
        ours, control = rounds[OURS], compare(rounds[CONTROL], rounds[OURS])
        noisy = is_noisy(mode, control, self.report.measurements[-1]["crowding"])
        ceiling = self.ceiling.contestant.name if self.ceiling else ""
        rate = moved / summarise(ours).median if moved else None
        return [
            Finding(
                measurement=self.named(name, mode),
                against=rival,
                measured=compare(theirs, ours),
                asked=None,
                at_most=False,
                verdict=NOISY if noisy else REPORTED,
                ours_ms=milliseconds(ours),
                theirs_ms=milliseconds(theirs),
                control=control,
                gb_per_s=rate,
                of_streaming=self.share(mode, rounds, moved),
            )
            for rival, theirs in rounds.items()
            if rival not in (OURS, CONTROL, ceiling)
        ]

    def share(self, mode: str, rounds: Rounds, moved: int) -> Ratio | None:
        """Our bytes a second over those of the streaming loop, from common rounds where it took part in them."""
        if self.ceiling is None or not moved or mode not in (STEP, DEVICE, COLD):
            return None
        ours = rounds[OURS]
        if self.ceiling.contestant.name in rounds:
            return scaled(compare(rounds[self.ceiling.contestant.name], ours), moved / self.ceiling.traffic)
        times = summarise(ours)
        best = self.ceiling.gb_per_s
        return Ratio(moved / times.median / best, moved / times.p80 / best, moved / times.p20 / best)

    def measure_training(self, contest: Contest, seconds: float) -> None:
        """``step()`` right after backward of a real network, and isolated over the same params."""
        contest, left_out = self.admit(contest)
        self.check_room(contest)
        trainees = training.make_trainees(contest, self.clock)
        self.clock.begin()
        mode = DEVICE if DEVICE in self.clock.modes else STEP
        both = []
        for where, contestants in (
            ("isolated", training.isolated(trainees)),
            ("in the loop", training.in_loop(trainees)),
        ):
            warm_up(contestants, 4)
            facts = {**contest.facts(), "left_out": left_out, "inside": where}
            rounds = self.time(f"{contest.name}, {where}", mode, contestants, seconds / 2, facts)
            if rounds is None:
                return
            self.report.findings += self.findings(f"{contest.name}, {where}", mode, rounds, 0)
            both.append(rounds)
        for rival in contest.rivals:
            kept = training.kept_ratio(rival, *both)
            against = f"{rival}: speed-up in the loop over isolated"
            self.report.findings.append(Finding(contest.name, against, kept, None, False, REPORTED))
