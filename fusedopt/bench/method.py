"""How a measurement is made: interleaved rounds, order statistics, bootstrap intervals."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Rounds = dict[str, list[int]]  # contestant -> nanoseconds of a call, one figure for each round


def nothing() -> None:
    """The preparation of a contestant that needs none."""


@dataclass(frozen=True)
class Contestant:
    """``call`` is timed; ``prepare`` runs before every call, off the clock."""

    name: str
    call: Callable[[], object]
    prepare: Callable[[], object] = nothing


# Runs a contestant's call once and tells how long it took, in nanoseconds.
Measure = Callable[[Contestant], int]


def call_time(contestant: Contestant) -> int:
    start = time.perf_counter_ns()
    contestant.call()
    return time.perf_counter_ns() - start


@dataclass(frozen=True)
class Effort:
    """Up to ``rounds`` rounds; after ``seconds`` no new one begins once ``minimum`` are done.

    A turn is ``repeat`` calls in a row, of which the median counts. Steps of some hundred microseconds need that: after
    the milliseconds of another contestant's turn the first call finds its caches cold and its threads asleep, and would
    measure the machine's neighbours.
    """

    rounds: int
    repeat: int = 1
    seconds: float = 30.0
    minimum: int = 5
    warmup: int = 3


@dataclass(frozen=True)
class Summary:
    """Nanoseconds. Medians and percentiles, because other work on the machine only ever adds time."""

    median: float
    p20: float
    p80: float


@dataclass(frozen=True)
class Ratio:
    """A ratio of medians with the 5th and 95th percentile of its bootstrap distribution."""

    value: float
    low: float
    high: float


def warm_up(contestants: Sequence[Contestant], rounds: int) -> None:
    for _ in range(rounds):
        for contestant in contestants:
            contestant.prepare()
            contestant.call()


def interleave(
    contestants: Sequence[Contestant],
    effort: Effort,
    tick: Callable[[], object] = nothing,
    measure: Measure = call_time,
) -> Rounds:
    """Give every contestant a turn per round, so that drift of the machine reaches all of them alike.

    The order is rotated and turned round from one round to the next: nobody always runs after the same neighbour,
    whose data then fill the caches. ``tick`` is called after each round.
    """
    rounds: Rounds = {contestant.name: [] for contestant in contestants}
    if len(rounds) != len(contestants):
        raise ValueError(f"contestants need distinct names, got {[c.name for c in contestants]}")
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    deadline = time.perf_counter() + effort.seconds
    try:
        for number in range(effort.rounds):
            if number >= effort.minimum and time.perf_counter() > deadline:
                break
            for contestant in order(contestants, number):
                turn = []
                for _ in range(effort.repeat):
                    contestant.prepare()
                    turn.append(measure(contestant))
                rounds[contestant.name].append(int(np.median(turn)))
            tick()
    finally:
        if collecting:
            gc.enable()
    return rounds


def order(contestants: Sequence[Contestant], number: int) -> list[Contestant]:
    shift = number // 2 % len(contestants)
    turned = [*contestants[shift:], *contestants[:shift]]
    return turned[::-1] if number % 2 else turned


def summarise(samples: Sequence[float]) -> Summary:
    p20, median, p80 = np.percentile(samples, [20, 50, 80])
    return Summary(float(median), float(p20), float(p80))


def medians_drawn(rounds: Mapping[str, Sequence[float]], draws: int = 2000, seed: int = 0) -> dict[str, np.ndarray]:
    """Medians of resampled rounds. All contestants draw the same ones, which keeps the pairing."""
    lengths = {len(samples) for samples in rounds.values()}
    if len(lengths) != 1:
        raise ValueError(f"paired samples must have equal lengths, got {' and '.join(map(str, sorted(lengths)))}")
    count = lengths.pop()
    picks = np.random.default_rng(seed).integers(count, size=(draws, count))
    return {name: np.median(np.asarray(samples)[picks], axis=1) for name, samples in rounds.items()}


def bootstrap(numerator: Sequence[float], denominator: Sequence[float], draws: int = 2000, seed: int = 0) -> np.ndarray:
    """Ratios of medians over resampled rounds."""
    drawn = medians_drawn({"above": numerator, "below": denominator}, draws, seed)
    return drawn["above"] / drawn["below"]


def compare(numerator: Sequence[float], denominator: Sequence[float]) -> Ratio:
    low, high = np.percentile(bootstrap(numerator, denominator), [5, 95])
    return Ratio(float(np.median(numerator) / np.median(denominator)), float(low), float(high))


def scaled(ratio: Ratio, by: float) -> Ratio:
    return Ratio(ratio.value * by, ratio.low * by, ratio.high * by)


def steady(control: Ratio, spread: float) -> bool:
    """Whether two copies of one program were about equally fast, without which a measurement proves nothing."""
    return 1 / spread <= control.value <= spread
