"""Walks: drawn from a seed, run, and made shorter where they fail."""

from __future__ import annotations

import copy
import json
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

import torch
from torch import Tensor

from .operations import OPERATIONS
from .session import Session
from .setups import Setup, draw
from .trips import TRIPS

KINDS = ("numbers", "trips")


@dataclass
class Walk:
    """`numbers`: against the reference; `trips`: two copies, of which one makes the round trips, stay equal."""

    kind: str
    setup: Setup
    operations: list[tuple[str, int]]  # names, and the seeds of what they draw

    @classmethod
    def drawn(cls, seed: int, length: int = 24) -> Walk:
        random = Random(seed)
        kind = KINDS[seed % 2]
        names = [name for name, (_, often) in OPERATIONS.items() for _ in range(often)]
        trips = list(TRIPS)
        setup = draw(random)
        if setup.of.optimizer in ("LBFGS", "Muon"):
            # Of which there is no formula whose roundings one could bound.
            kind = "trips"
        chosen = []
        for _ in range(random.randint(length // 4, length)):
            names_or_trips = trips if random.random() < (0.25 if kind == "trips" else 0.12) else names
            chosen.append((random.choice(names_or_trips), random.getrandbits(32)))
        # Whatever came before shows in the steps after it.
        chosen += [("step", random.getrandbits(32)) for _ in range(2)]
        return cls(kind, setup, chosen)

    def run(self) -> Outcome:
        """All operations, or those before and with the first that fails."""
        told: list[str] = []
        try:
            with _quiet():
                for sentence in self._steps():
                    told.append(sentence)
        except Exception as error:
            # With its traceback the whole session would live as long as the outcome.
            return Outcome(self, told, error.with_traceback(None))
        return Outcome(self, told)

    def _steps(self) -> Iterator[str]:
        session = Session(self.setup, reference=self.kind == "numbers")
        other = copy.deepcopy(session) if self.kind == "trips" else None
        for name, seed in self.operations:
            if name in self.setup.without:
                told = None
            elif name in TRIPS:
                told = TRIPS[name](session, Random(seed))
            else:
                told = OPERATIONS[name][0](session, Random(seed))
                if other is not None:
                    OPERATIONS[name][0](other, Random(seed))
            if other is not None and name not in TRIPS:
                _assert_equal(session, other)
            yield f"{name}: {told or 'does not apply'}"

    def shorter(self) -> Iterator[Walk]:
        """Walks with something left out."""
        for size in (8, 4, 2, 1):
            for first in range(0, len(self.operations), size):
                rest = self.operations[:first] + self.operations[first + size :]
                yield replace(self, operations=rest)
        for i in range(len(self.setup.params)):
            if len(self.setup.params) > 1:
                yield self._with(params=self.setup.params[:i] + self.setup.params[i + 1 :])
            plain = replace(self.setup.params[i], layout="contiguous")
            if plain != self.setup.params[i]:
                yield self._with(params=[*self.setup.params[:i], plain, *self.setup.params[i + 1 :]])
        for key in self.setup.options:
            yield self._with(options={k: v for k, v in self.setup.options.items() if k != key})

    def _with(self, **changes: Any) -> Walk:
        return replace(self, setup=replace(self.setup, **changes))

    def to_json(self) -> str:
        return json.dumps({"kind": self.kind, "setup": self.setup.to_json(), "operations": self.operations})

    @classmethod
    def from_json(cls, text: str) -> Walk:
        read = json.loads(text)
        return cls(read["kind"], Setup.from_json(read["setup"]), [(n, s) for n, s in read["operations"]])


@dataclass
class Outcome:
    walk: Walk
    told: list[str] = field(default_factory=list)
    error: Exception | None = None

    @property
    def title(self) -> str:
        return f"{type(self.error).__name__}: {self.error}"

    @property
    def kind(self) -> str:
        """What failures that are alike have in common: any wrong number is like any other."""
        return "" if isinstance(self.error, AssertionError) else self.title[:40]

    def __str__(self) -> str:
        lines = [str(self.walk.setup), *(f"  {sentence}" for sentence in self.told)]
        if self.error is not None:
            name = self.walk.operations[len(self.told)][0] if len(self.told) < len(self.walk.operations) else ""
            lines += [f"  {name}: fails", f"{self.title}"]
        return "\n".join(lines)


def shrink(outcome: Outcome, most: int = 300) -> Outcome:
    """The shortest walk, of so many that are tried, that fails in the same way."""
    found, tried = outcome, 0
    while tried < most:
        for walk in found.walk.shorter():
            tried += 1
            other = walk.run()
            if other.error is not None and other.kind == outcome.kind:
                found = other
                break
            if tried >= most:
                return found
        else:
            return found
    return found


def report(outcome: Outcome) -> str:
    """What failed, in full and in short, and how to see it again."""
    short = shrink(outcome)
    return (
        f"{outcome.walk.kind}: {outcome}\n\nin short: {short}\n\n"
        f"again: python -m tests.walk --replay '{short.walk.to_json()}'"
    )


def walk_on(first: int, stride: int, minutes: float, stop: bool) -> Counter[str]:
    """Walk seeds, each `stride` after the last, and print failures; count walks, operations and failures."""
    torch.set_num_threads(1)
    counts: Counter[str] = Counter()
    end, told = time.monotonic() + 60 * minutes, time.monotonic()
    seed = first
    while time.monotonic() < end and not (stop and counts["failures"]):
        outcome = Walk.drawn(seed).run()
        counts["walks"] += 1
        counts["operations"] += len(outcome.told)
        if outcome.error is not None:
            counts["failures"] += 1
            print(f"{'-' * 100}\nseed {seed}, {report(outcome)}", flush=True)
        if time.monotonic() - told > 20:
            told = time.monotonic()
            print(f"seed {seed}: {dict(counts)}", file=sys.stderr, flush=True)
        seed += stride
    return counts


def _assert_equal(session: Session, other: Session) -> None:
    """Equal bits in all that a step reads or writes."""
    for i, (mine, theirs) in enumerate(zip(session.params, other.params, strict=True)):
        _same(f"param {i}", mine, theirs)
    for i, (mine, theirs) in enumerate(zip(session.states(), other.states(), strict=True)):
        assert set(mine) == set(theirs), f"param {i} has the states {sorted(mine)}, the other {sorted(theirs)}"
        for key, value in theirs.items():
            _same(f"'{key}' of param {i}", mine[key], value)
    for i, copied in other.copies.items():
        _same(f"the copy of param {i}", session.copies[i], copied)
    for mine, theirs in zip(session.optimizer.param_groups, other.optimizer.param_groups, strict=True):
        # torch gives a copy the key "differentiable" where a class does not have it.
        keys = theirs.keys() - {"params", "differentiable"}
        differ = [k for k in keys if k not in mine or mine[k] != theirs[k]]
        assert not differ, f"{differ} of a group differ: {[(mine.get(k), theirs[k]) for k in differ]}"


def _same(name: str, mine: Any, theirs: Any) -> None:
    if isinstance(theirs, list):
        assert len(mine) == len(theirs), f"{name} has {len(mine)} members, that of the other {len(theirs)}"
        for i, pair in enumerate(zip(mine, theirs, strict=True)):
            _same(f"{name}[{i}]", *pair)
        return
    if not isinstance(theirs, Tensor):
        assert mine == theirs, f"{name} is {mine!r}, that of the other {theirs!r}"
        return
    assert mine.dtype == theirs.dtype, f"{name} is {mine.dtype}, that of the other {theirs.dtype}"
    a, b = (t.detach().reshape(-1).clone(memory_format=torch.contiguous_format) for t in (mine, theirs))
    differ = (a.view(torch.uint8) != b.view(torch.uint8)).view(a.numel(), -1).any(1) if a.numel() else a.bool()
    if differ.any():
        first = int(differ.nonzero()[0])
        raise AssertionError(
            f"{name} differs in {int(differ.sum())} of {a.numel()} elements; element {first} is {a[first].item()!r}, "
            f"that of the other {b[first].item()!r}"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """torch's warnings are of no interest; ours that a checkpoint loses something is what a trip must not give."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message="the state was saved under other options")
        yield
