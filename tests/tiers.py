"""Which of a test's combinations every change runs, and which wait for `--all` (make test-all).

A test that is parametrized over things that have nothing to do with each other says so with `thinned`. One that has
every optimizer in every one of some other situations need not: where optimizers inherit what is tested, those of KINDS
meet all situations and each of the others one. What is left reaches the same lines and branches; what breaks the
package in tests/mutants it still has to notice.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from itertools import combinations
from typing import Any, Protocol

import pytest

# One of each kind of class: torch's without and with states, one whose states are a choice, ours alone, one that sums
# over whole tensors. What all inherit from one base is inherited by these.
KINDS = {"sgd", "sgd-momentum", "adamw", "adam-amsgrad", "lion", "lamb"}
# What the CUDA engine is asked with: these, one whose step is over all params and one with several counters, which lie
# on the device. That a rule's numbers are the CPU's in every mix of storages, size and place is the engine test's, for
# each rule (tests/sanitize/cuda_engine_test.cpp); tables, launches, streams, graphs and errors know no rule.
ON_DEVICE = KINDS | {"asgd", "prodigy"}
# What is about the numbers of a rule sees each of its variants with all their arguments; everything else one of those
# that keep the same states.
ABOUT_NUMBERS = {"test_beyond", "test_parity", "test_reference_numbers"}

# Whether --all is given: conftest.py sets it before a test is imported. For what is no list of parameters, like how
# many examples are drawn.
everything = False

Keep = Callable[..., bool]


class Call(Protocol):
    """What pytest makes an item of."""

    params: Mapping[str, Any]


def thinned(why: str, *, keep: Keep | None = None, together: int = 1, each_rule: bool = False) -> pytest.MarkDecorator:
    """Without --all run what `keep` says of the parameters by their names, and of the rest a few.

    As many as it takes for each value of each parameter to occur; with `together=2`, each two values of any two; with
    `together=0`, none. With `each_rule` a test of the CUDA engine sees them all, and not those of ON_DEVICE alone.
    """
    assert why
    return pytest.mark.thinned(keep=keep, together=together, each_rule=each_rule)


def slow(why: str) -> pytest.MarkDecorator:
    """Leave a whole test to --all: what it takes seconds to show is not about a step, or is shown by others in part."""
    assert why
    return pytest.mark.slow


def of_a_kind(case: Any) -> bool:
    """Whether a case is one of KINDS."""
    return str(case) in KINDS


def select(calls: Sequence[Call], module: str, mark: pytest.Mark | None, emulated: bool) -> list[Call]:
    """Which of a test's calls, as pytest names a set of parameters, run without --all.

    On the emulator what all optimizers inherit has run before, and the engine test has compared each one's bits: one of
    a kind is enough there. What an emulator has shown of a GPU is no reason to ask the GPU less.
    """
    each_rule = mark is not None and mark.kwargs["each_rule"]
    device = module.startswith("test_cuda_") and not each_rule
    left = [call for call in calls if not _is_like_another(call, module, emulated, device)]
    if device and not emulated:
        # Some are about other optimizers alone.
        left = left or [call for call in calls if not _is_like_another(call, module, False, False)]
    backends = defaultdict(list)
    for call in left:
        backends[call.params.get("backend")].append(call)
    left_out = {id(call) for calls in backends.values() for call in _left_out(calls, module, mark)}
    return [call for call in left if id(call) not in left_out]


def few(calls: Sequence[Call], most: int = 8) -> list[Call]:
    """As many as it takes for each value of each parameter to occur; if that are more than some, some of these."""
    left_out = {id(call) for call in _left_out(calls, "", thinned("run in another way whole").mark)}
    left = [call for call in calls if id(call) not in left_out]
    return left[:: -(-len(left) // most)] if left else []


def _is_like_another(call: Call, module: str, emulated: bool, device: bool) -> bool:
    case = call.params.get("case")
    if id(case) not in _shown():
        # Other arguments of an optimizer, extreme ones.
        return emulated and getattr(case, "optimizer", None) not in (None, *_optimizers_of_a_kind())
    if emulated:
        return not of_a_kind(case)
    if device and call.params.get("backend") != "cuda":
        return str(case) not in ON_DEVICE
    return module not in ABOUT_NUMBERS and not _shown()[id(case)]


@cache
def _optimizers_of_a_kind() -> set[str]:
    from cases import named

    return {named(name).optimizer for name in KINDS}


@cache
def _shown() -> dict[int, bool]:
    """For each of CASES whether it is the one that stands for those with the same states."""
    from cases import CASES, ONE_PER_STATES

    stand = {id(case) for case in ONE_PER_STATES}
    return {id(case): id(case) in stand for case in CASES}


def _left_out(calls: Sequence[Call], module: str, mark: pytest.Mark | None) -> Iterator[Call]:
    if mark is not None:
        keep, together = mark.kwargs["keep"], mark.kwargs["together"]
    elif module not in ABOUT_NUMBERS and _have_every_optimizer_in_every_situation(calls):
        keep, together = of_a_kind, 1
    else:
        return
    names = () if keep is None else inspect.signature(keep).parameters
    covers = [(call, set(combinations(_values(call), min(together, len(call.params))))) for call in calls]
    seen: set[Any] = set()
    rest = []
    for call, covered in covers:
        if keep is not None and keep(**{name: call.params[name] for name in names}):
            seen |= covered
        else:
            rest.append((call, covered))
    while rest and together:
        best = max(range(len(rest)), key=lambda at: len(rest[at][1] - seen))
        if rest[best][1] <= seen:
            break
        seen |= rest.pop(best)[1]
    yield from (call for call, _ in rest)


def _have_every_optimizer_in_every_situation(calls: Sequence[Call]) -> bool:
    if id(calls[0].params.get("case")) not in _shown():
        return False
    given = [dict(_values(call)) for call in calls]
    cases = {values.pop("case") for values in given}
    situations = {tuple(values.items()) for values in given}
    return len(situations) > 1 and len(cases) * len(situations) == len(calls)


def _values(call: Call) -> list[tuple[str, Any]]:
    """Parameters by their names, in a form that can be compared."""
    return [(name, x if isinstance(x, (str, int)) else id(x)) for name, x in call.params.items()]
