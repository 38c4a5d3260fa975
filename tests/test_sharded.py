"""Several processes: the cases of tests/sharded_*.py and tests/data_parallel.py, which are functions of a rank.

Those that need as many processes share them, since it is their start that takes the time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import data_parallel
import pytest
import ranks
import sharded_docs
import sharded_draws
import sharded_factored
import sharded_files
import sharded_input
import sharded_norms
import sharded_states
import sharded_steps
import sharded_sums
import sharded_training

MODULES = [
    module.__name__
    for module in (
        *(sharded_steps, sharded_states, sharded_sums, sharded_norms, sharded_training, sharded_files),
        *(data_parallel, sharded_factored, sharded_input, sharded_docs, sharded_draws),
    )
]
# Of each case the number of processes.
COUNTS = {name: count for name, (count, run) in ranks.CASES.items() if run.__module__ in MODULES}


@pytest.fixture(scope="module")
def told(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """What became of a case. All that need as many processes run when the first of them is asked for."""
    selected: list[Any] = [item for item in request.session.items if item.path == request.path]
    chosen = {item.callspec.params["name"] for item in selected}
    known: dict[str, str] = {}

    def of(name: str) -> str:
        if name not in known:
            names = [other for other in chosen if COUNTS[other] == COUNTS[name]]
            known.update(ranks.run_all(COUNTS[name], MODULES, tmp_path_factory.mktemp("ranks"), names))
        return known[name]

    return of


@pytest.mark.parametrize("name", sorted(COUNTS, key=lambda name: COUNTS[name]))
def test_a_case_in_several_processes(name: str, told: Callable[[str], str]) -> None:
    said = told(name)
    if said.startswith(ranks.SKIPPED):
        pytest.skip(said.removeprefix(ranks.SKIPPED))
    assert not said, said
