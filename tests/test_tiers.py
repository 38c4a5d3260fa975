"""What runs without --all: what a test keeps, and a few that between them have every value."""

from __future__ import annotations

from itertools import product
from types import SimpleNamespace
from typing import Any

from cases import CASES, ONE_PER_OPTIMIZER, ONE_PER_STATES, Case
from tiers import KINDS, ON_DEVICE, few, of_a_kind, select, thinned


def calls(**parameters: Any) -> list[Any]:
    """As pytest makes them of a test that is parametrized over all combinations."""
    return [
        SimpleNamespace(params=dict(zip(parameters, given, strict=True))) for given in product(*parameters.values())
    ]


def kept(given: list[Any], mark: Any = None, module: str = "test_x", emulated: bool = False) -> list[tuple[Any, ...]]:
    left = select(given, module, mark and mark.mark, emulated)
    assert left == [call for call in given if call in left]
    return [tuple(call.params.values()) for call in left]


def test_every_value_occurs() -> None:
    left = kept(calls(a=range(5), b="xyz"), thinned("why"))
    assert len(left) == 5
    assert ({a for a, _ in left}, {b for _, b in left}) == (set(range(5)), set("xyz"))


def test_every_two_values_occur_together() -> None:
    left = kept(calls(a=range(3), b=range(3), c=range(3)), thinned("why", together=2))
    assert len(left) < 27
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert {(row[i], row[j]) for row in left} == set(product(range(3), repeat=2))


def test_what_a_test_keeps_runs_whole() -> None:
    left = kept(calls(a=range(4), b=range(6)), thinned("why", keep=lambda a: a == 1))
    assert {b for a, b in left if a == 1} == set(range(6))
    assert {a for a, _ in left} == set(range(4))
    assert len(left) == 6 + 3
    assert len(kept(calls(a=range(4), b=range(6)), thinned("why", keep=lambda a: a == 1, together=0))) == 6


def test_other_tests_run_whole() -> None:
    assert len(kept(calls(name="abc", b=range(2)))) == 6


def test_of_variants_that_keep_the_same_states_one_is_enough_but_for_numbers() -> None:
    given = calls(case=CASES)
    assert kept(given) == [(case,) for case in CASES if case in ONE_PER_STATES]
    assert {(case.optimizer, *case.kept) for (case,) in kept(given)} == {(c.optimizer, *c.kept) for c in CASES}
    assert len(kept(given, module="test_parity")) == len(CASES)


def test_of_optimizers_in_several_situations_those_of_a_kind_meet_all() -> None:
    left = kept(calls(case=ONE_PER_OPTIMIZER, b=range(3)))
    some = [case for case in ONE_PER_OPTIMIZER if of_a_kind(case)]
    assert [case for case, _ in left if case in some] == [case for case in some for _ in range(3)]
    assert {case.name for case, _ in left} == {case.name for case in ONE_PER_OPTIMIZER}
    assert len(left) == len(ONE_PER_OPTIMIZER) + 2 * len(some)


def test_a_list_of_pairs_is_no_product() -> None:
    given = calls(case=ONE_PER_OPTIMIZER[:5], b=range(3))
    assert len(kept(given[1:])) == len(given) - 1


def test_on_the_emulator_one_of_a_kind_is_enough() -> None:
    assert {case.name for (case,) in kept(calls(case=CASES), emulated=True)} == KINDS
    assert len(kept(calls(name="abc"), emulated=True)) == 3
    extreme = [Case(f"{name}-extreme", name, {"lr": 0.0}) for name in ("AdamW", "Adagrad")]
    assert kept(calls(case=extreme), emulated=True) == [(extreme[0],)]
    assert len(kept(calls(case=extreme))) == 2


def test_the_emulated_device_is_asked_with_some_optimizers_and_a_gpu_with_all() -> None:
    left = kept(calls(case=CASES, backend=["emulated", "cuda"]), module="test_cuda_x")
    assert {case.name for case, backend in left if backend == "emulated"} == ON_DEVICE
    assert [case for case, backend in left if backend == "cuda"] == [case for case in CASES if case in ONE_PER_STATES]
    assert len(kept(calls(case=CASES), thinned("why", each_rule=True), "test_cuda_x")) == len(ONE_PER_STATES)
    # What is about others alone is not left out whole.
    others = [case for case in ONE_PER_STATES if case.name not in ON_DEVICE]
    assert kept(calls(case=others), module="test_cuda_x") == [(case,) for case in others]


def test_a_few_have_every_value_or_are_some_of_a_long_list() -> None:
    left = [call.params for call in few(calls(a=range(4), b=range(6)))]
    assert ({given["a"] for given in left}, {given["b"] for given in left}) == ({*range(4)}, {*range(6)})
    assert len(left) == 6
    assert [call.params["a"] for call in few(calls(a=range(20)))] == [0, 3, 6, 9, 12, 15, 18]
    assert few([]) == []


def test_a_gpu_is_asked_for_all_that_the_emulator_has_shown() -> None:
    left = kept(calls(backend=["emulated", "cuda"], a=range(4)), thinned("why"))
    assert left == [(backend, a) for backend in ("emulated", "cuda") for a in range(4)]
