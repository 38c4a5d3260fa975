"""Which of a test's combinations every change runs, and which wait for `--all` (make test-all).

A test that is parametrized over things that have nothing to do with each other says so with `thinned`. One that has
every optimizer in every one of some other situations need not: where optimizers inherit what is tested, those of KINDS
meet all situations and each of the others one. What is left reaches the same lines and branches; what breaks the
package in tests/mutants it still has to notice.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import cache
from itertools import combinations
from typing import Any

import pytest

# One of each kind of class: torch's without and with states, one whose states are a choice, ours alone, one that sums
# over whole tensors. What all inherit from one base is inherited by these.
KINDS = {"sgd", "sgd-momentum", "adamw", "adam-amsgrad", "lion", "lamb"}
# What is about the numbers of a rule sees each of its variants with all their arguments; everything else one of those
# that keep the same states.
ABOUT_NUMBERS = {"test_beyond", "test_parity", "test_reference_numbers"}

# Whether --all is given: conftest.py sets it before a test is imported. For what is no list of parameters, like how
# many examples are drawn.
everything = False

Keep = Callable[..., bool]


def thinned(why: str, *, keep: Keep | None = None, together: int = 1) -> pytest.MarkDecorator:
    """Without --all run what `keep` says of the parameters by their names, and of the rest a few.

    As many as it takes for each value of each parameter to occur; with `together=2`, each two values of any two; with
    `together=0`, none.
    """
    assert why
    return pytest.mark.thinned(keep=keep, together=together)


def of_a_kind(case: Any) -> bool:
    """Whether a case is one of KINDS."""
    return str(case) in KINDS


def select(items: list[pytest.Item], emulated: bool) -> tuple[list[pytest.Item], list[pytest.Item]]:
    """What runs without --all, and what does not.

    On the emulator what all optimizers inherit has run before, and each one's bits have been compared: one of a kind is
    enough there.
    """
    tests = defaultdict(list)
    left_out = set()
    for item in items:
        if _is_like_another(item, emulated):
            left_out.add(item)
        elif _parameters(item):
            # What an emulator has shown of a GPU is no reason to ask the GPU less.
            tests[item.path, item.originalname, _parameters(item).get("backend")].append(item)  # type: ignore[attr-defined]
    left_out.update(item for combined in tests.values() for item in _left_out(combined))
    return [item for item in items if item not in left_out], [item for item in items if item in left_out]


def _is_like_another(item: pytest.Item, emulated: bool) -> bool:
    case = _parameters(item).get("case")
    if id(case) not in _shown():
        return False
    if emulated:
        return not of_a_kind(case)
    return item.path.stem not in ABOUT_NUMBERS and not _shown()[id(case)]


@cache
def _shown() -> dict[int, bool]:
    """For each of CASES whether it is the one that stands for those with the same states."""
    from cases import CASES, ONE_PER_STATES

    stand = {id(case) for case in ONE_PER_STATES}
    return {id(case): id(case) in stand for case in CASES}


def _left_out(items: list[pytest.Item]) -> Iterator[pytest.Item]:
    marker = items[0].get_closest_marker("thinned")
    if marker is not None:
        keep, together = marker.kwargs["keep"], marker.kwargs["together"]
    elif _has_every_optimizer_in_every_situation(items):
        keep, together = of_a_kind, 1
    else:
        return
    covers = {item: set(_combinations(item, together)) for item in items}
    seen: set[Any] = set()
    for item in [item for item in items if keep is not None and _holds(keep, item)]:
        seen |= covers.pop(item)
    while covers and together:
        best = max(covers, key=lambda item: len(covers[item] - seen))
        if covers[best] <= seen:
            break
        seen |= covers.pop(best)
    yield from covers


def _has_every_optimizer_in_every_situation(items: list[pytest.Item]) -> bool:
    given = [dict(_values(item)) for item in items]
    if items[0].path.stem in ABOUT_NUMBERS or id(_parameters(items[0]).get("case")) not in _shown():
        return False
    cases = {values.pop("case") for values in given}
    situations = {tuple(values.items()) for values in given}
    return len(situations) > 1 and len(cases) * len(situations) == len(items)


def _parameters(item: pytest.Item) -> dict[str, Any]:
    callspec: Any = getattr(item, "callspec", None)
    return callspec.params if callspec else {}


def _holds(keep: Keep, item: pytest.Item) -> bool:
    given = _parameters(item)
    return keep(**{name: given[name] for name in inspect.signature(keep).parameters})


def _values(item: pytest.Item) -> list[tuple[str, Any]]:
    """Parameters by their names, in a form that can be compared."""
    return [(name, x if isinstance(x, (str, int)) else id(x)) for name, x in _parameters(item).items()]


def _combinations(item: pytest.Item, together: int) -> Iterator[tuple[Any, ...]]:
    values = _values(item)
    yield from combinations(values, min(together, len(values)))
