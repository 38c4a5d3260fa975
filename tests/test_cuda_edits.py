"""The table in device memory is never stale: whatever is edited between two steps, the next step has it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from backends import (  # noqa: F401
    Backend,
    backend_fixture,
    counter_flags,
    spread,
)
from cases import CASES, ONE_PER_OPTIMIZER, Case
from layouts import OF_ONE_SHAPE
from support import outcome
from test_plan import EDITS
from tiers import of_a_kind, thinned
from twins import Twins, simple

one_per_optimizer = pytest.mark.parametrize("case", ONE_PER_OPTIMIZER, ids=str)
numbers_anywhere = pytest.mark.parametrize("there", [False, True], ids=["numbers-on-host", "numbers-on-device"])


def states_become_double(optimizer: Any, params: list[Any]) -> None:
    """The tensors stay the same objects."""
    for state in optimizer.state.values():
        for value in state.values():
            value.data = value.data.double()


def states_lie_transposed(optimizer: Any, params: list[Any]) -> None:
    for value in optimizer.state[params[0]].values():
        value.data = value.data.t().contiguous().t() if value.dim() == 2 else value.data


def params_become_wide_or_narrow(optimizer: Any, params: list[Any]) -> None:
    for p in params[::2]:
        p.data = p.data.to(torch.float64 if p.dtype == torch.bfloat16 else torch.bfloat16)


MORE_EDITS = [*EDITS, states_become_double, states_lie_transposed, params_become_wide_or_narrow]


def edited_twins(backend: Backend, case: Case, there: bool) -> Twins:
    backend.numbers_on_device(there)
    twins = Twins(backend, simple(case), [torch.randn(size) for size in ((5, 3), (7,), (64,), (130,))])
    twins.train()
    return twins


@thinned("the table knows states and numbers, not rules", keep=lambda case, there: of_a_kind(case) and there)
@pytest.mark.parametrize("edit", MORE_EDITS, ids=lambda edit: edit.__name__)
@numbers_anywhere
@one_per_optimizer
def test_edits_are_seen(backend: Backend, case: Case, there: bool, edit: Callable[[Any, list[Any]], None]) -> None:
    """The same as of the plan on the CPU, which a table in device memory could come to differ from."""
    if backend.name == "cuda" and edit.__name__ == "swap_data_for_strided":
        pytest.skip("it makes a tensor on the CPU")
    twins = edited_twins(backend, case, there)
    twins.edit(edit)
    twins.train()


@thinned("a sequence is as good as another")
@pytest.mark.parametrize("seed", range(5))
@numbers_anywhere
@one_per_optimizer
def test_any_sequence_of_edits_is_seen(backend: Backend, case: Case, there: bool, seed: int) -> None:
    """What cannot be edited or stepped any more, fails on both."""
    torch.manual_seed(seed)
    twins = edited_twins(backend, case, there)
    edits = [edit for edit in MORE_EDITS if edit.__name__ not in ("swap_data_for_strided", "empty_group")]
    for which in torch.randint(0, len(edits), (12,)).tolist():
        results = [outcome(lambda: edits[which](*side)) for side in twins.both()]  # noqa: B023
        assert results[0] == results[1]
        for missing in (None, which % 4):
            twins.give([None if i == missing else spread(*p.shape) for i, p in enumerate(twins.params)])
            assert outcome(twins.ours.step) == outcome(twins.step_cpu)
            twins.check()


# Those whose options can be turned off and on again while their states stay.
OPTIONS = {"sgd-momentum": "momentum", "adamw-amsgrad": "amsgrad", "rmsprop-centered-momentum": "centered"}


@pytest.mark.parametrize("case", [case for case in CASES if case.name in OPTIONS], ids=str)
@numbers_anywhere
def test_numbers_change_while_tensors_stay(backend: Backend, case: Case, there: bool) -> None:
    """Gradients included, so that nothing but the groups tells a step from the last one."""
    backend.numbers_on_device(there)

    def build(params: list[Any]) -> Any:
        return case.ours([{"params": params[i : i + 2]} for i in range(0, 12, 2)], **counter_flags(case, there))

    twins = Twins(backend, build, [spread(30 + n) for n in range(12)])
    twins.train()

    def step_twice() -> None:
        for _ in range(2):
            twins.step_cpu()
            twins.ours.step()
            twins.check()

    def set_groups(key: str, *values: Any) -> None:
        def change(optimizer: Any, params: list[Any]) -> None:
            for group, value in zip(optimizer.param_groups, values, strict=False):
                group[key] = value

        twins.edit(change)
        step_twice()

    def count_on(optimizer: Any, params: list[Any]) -> None:
        for p in (params[1], params[6], params[7]):
            if "step" in optimizer.state[p]:
                optimizer.state[p]["step"].add_(3)

    # Groups with equal numbers share what is made of them.
    set_groups("lr", 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
    set_groups("lr", 0.1, 0.1, 0.1, 0.1, 0.1, 0.1)
    set_groups("maximize", False, True, True, False, True, False)
    set_groups("lr", 0.1, 0.1, 0.3, 0.3, 0.1, 0.1)
    set_groups("weight_decay", 0.0, 0.1, 0.1, 0.1, 0.1, 0.0)
    twins.edit(count_on)
    step_twice()
    on, key = case.kwargs[OPTIONS[case.name]], OPTIONS[case.name]
    set_groups(key, *[type(on)(0), on] * 3)
    set_groups(key, *[on] * 6)
    twins.edit(lambda o, params: o.param_groups.extend({**o.param_groups[0], "params": []} for _ in range(20)))
    step_twice()
    set_groups("lr", *(0.01 * i for i in range(1, 27)))
    twins.train()


def resident() -> int:
    """The bytes that this process has in memory, less those that it has freed."""
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_a_step_keeps_nothing(backend: Backend) -> None:
    """Not even of tensors that lie with gaps, whose places are written out at every step."""
    backend.numbers_on_device(False)
    layout = OF_ONE_SHAPE[5]
    twins = Twins(backend, simple(CASES[0]), [layout.place(torch.zeros(layout.shape)).tensor for _ in range(30)])
    twins.train(20)
    before = resident()
    for _ in range(1000):
        twins.ours.step()
    assert resident() - before < 4 << 20
