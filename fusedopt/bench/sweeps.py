"""What a step costs, tensor by tensor and element by element: two sweeps, and one line through all of their points."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .suites import Suite

TENSORS, ELEMENTS = KINDS = ("tensors", "elements")
# Of so many elements each is a tensor of the first sweep.
EACH = 64
COUNTS = (1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000)
ROUNDS_OF_FIT = 20
SIZES = tuple(2**power for power in range(6, 27, 2))


def suites_of(kind: str, quick: bool = False) -> list[Suite]:
    """Quickly: every other point, the ends among them, up to 2^22 elements."""
    if kind == TENSORS:
        counts = COUNTS[::2] if quick else COUNTS
        return [Suite(f"sweep-{n}-tensors", ((EACH,),) * n, n, EACH * n) for n in counts]
    if kind != ELEMENTS:
        raise ValueError(f"there is no sweep over {kind!r}; sweeps are over {', '.join(KINDS)}")
    sizes = [size for size in SIZES[::2] if size <= 2**22] if quick else SIZES
    return [Suite(f"sweep-{n}-elements", ((n,),), 1, n) for n in sizes]


def in_order(suites: Iterable[Suite]) -> list[Suite]:
    """The cheapest first, so that a run out of time has points of each; a tensor costs as much as 10,000 elements."""
    return sorted(suites, key=lambda suite: suite.tensors * 10_000 + suite.elements)


@dataclass(frozen=True)
class Cost:
    """Nanoseconds of a step: ``fixed`` + ``per_tensor`` for each tensor + ``per_element`` for each element.

    A cost is None where the points do not tell it from another.
    """

    fixed: float
    per_tensor: float | None
    per_element: float | None

    def at(self, tensors: float, elements: float) -> float:
        return self.fixed + (self.per_tensor or 0) * tensors + (self.per_element or 0) * elements

    def __str__(self) -> str:
        parts = [span(self.fixed)]
        parts += [] if self.per_tensor is None else [f"{span(self.per_tensor)}/tensor"]
        parts += [] if self.per_element is None else [f"{span(self.per_element)}/element"]
        return " + ".join(parts)


def span(nanoseconds: float) -> str:
    """With three digits, in the unit that suits."""
    for unit, size in (("s", 1e9), ("ms", 1e6), ("us", 1e3)):
        if nanoseconds >= size:
            return f"{nanoseconds / size:.3g} {unit}"
    return f"{nanoseconds:.3g} ns"


def fit(points: Sequence[tuple[int, int, float]]) -> Cost:
    """The costs, none below zero, that miss the points (tensors, elements, nanoseconds) least.

    A miss is measured by its factor, sqrt(time / fit) - sqrt(fit / time), because the points span five orders of
    magnitude and the largest would leave nothing to the others: least squares, weighted anew by what they found.
    """
    tensors, elements, times = (np.asarray(column, dtype=float) for column in zip(*points, strict=True))
    columns = {"fixed": np.ones_like(times)}
    if len(set(tensors)) > 1:
        columns["per_tensor"] = tensors
    # In a sweep of equal tensors elements and tensors grow together: what an element costs is in what a tensor does.
    if len(set(elements / tensors)) > 1:
        columns["per_element"] = elements
    system = np.stack(list(columns.values()), axis=1)
    found = times
    for _ in range(ROUNDS_OF_FIT):
        weights = 1 / np.sqrt(times * found)
        costs = non_negative(system * weights[:, None], times * weights)
        found = system @ costs
    named = dict(zip(columns, map(float, costs), strict=True))
    return Cost(named["fixed"], named.get("per_tensor"), named.get("per_element"))


def non_negative(system: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Least squares without negative coefficients: the best of the plain ones over each subset of the columns."""
    count = system.shape[1]
    best, least = np.zeros(count), float("inf")
    for size in range(1, count + 1):
        for chosen in map(list, itertools.combinations(range(count), size)):
            some, *_ = np.linalg.lstsq(system[:, chosen], target, rcond=None)
            missed = float(np.sum((system[:, chosen] @ some - target) ** 2))
            if (some >= 0).all() and missed < least:
                least = missed
                best = np.zeros(count)
                best[chosen] = some
    return best


def fit_all(measurements: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The cost of each contestant over all points of the sweeps, by clock and by what was measured."""
    points: dict[tuple[str, ...], list[tuple[int, int, float]]] = defaultdict(list)
    for m in measurements:
        if "sweep" in m:
            for contestant, summary in m["summary_ns"].items():
                key = (contestant, m["optimizer"], m["dtype"], m["clock"])
                points[key].append((m["tensors"], m["elements"], summary["median"]))
    names = ("contestant", "optimizer", "dtype", "clock")
    return [
        {**dict(zip(names, key, strict=True)), "points": len(found), **asdict(fit(found))}
        for key, found in points.items()
        if len(found) >= 3
    ]
