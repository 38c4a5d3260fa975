"""Which of a test's combinations every change runs, and which wait for `--all` (make test-all).

A test that is parametrized over things that have nothing to do with each other says so with `thinned`. What is left
reaches the same lines and branches; what breaks the package in tests/mutants it still has to notice.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import combinations
from typing import Any

import pytest

# One of each kind of class: torch's without and with states, one whose states are a choice, ours alone, one that sums
# over whole tensors. What all inherit from one base is inherited by these.
KINDS = {"sgd", "sgd-momentum", "adamw", "adam-amsgrad", "lion", "lamb"}

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


def select(items: list[pytest.Item], one_per_optimizer: bool) -> tuple[list[pytest.Item], list[pytest.Item]]:
    """What runs without --all, and what does not. On the emulator an optimizer's variants have run before."""
    tests = defaultdict(list)
    left_out = set()
    for item in items:
        if one_per_optimizer and _is_another_variant(item):
            left_out.add(item)
        elif item.get_closest_marker("thinned"):
            tests[item.path, item.originalname].append(item)  # type: ignore[attr-defined]
    left_out.update(item for combined in tests.values() for item in _left_out(combined))
    return [item for item in items if item not in left_out], [item for item in items if item in left_out]


def _is_another_variant(item: pytest.Item) -> bool:
    from cases import CASES, ONE_PER_OPTIMIZER

    case = _parameters(item).get("case")
    return case in CASES and case not in ONE_PER_OPTIMIZER


def _left_out(items: list[pytest.Item]) -> Iterator[pytest.Item]:
    marker = items[0].get_closest_marker("thinned")
    assert marker is not None
    keep, together = marker.kwargs["keep"], marker.kwargs["together"]
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


def _parameters(item: pytest.Item) -> dict[str, Any]:
    callspec: Any = getattr(item, "callspec", None)
    return callspec.params if callspec else {}


def _holds(keep: Keep, item: pytest.Item) -> bool:
    given = _parameters(item)
    return keep(**{name: given[name] for name in inspect.signature(keep).parameters})


def _combinations(item: pytest.Item, together: int) -> Iterator[tuple[Any, ...]]:
    values = [
        (name, str(value) if isinstance(value, (str, int)) else id(value)) for name, value in _parameters(item).items()
    ]
    yield from combinations(values, min(together, len(values)))
