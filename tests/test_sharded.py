"""Several processes: the cases of tests/sharded_*.py and tests/data_parallel.py, which are functions of a rank.

One test for each number of processes, since it is their start that takes the time.
"""

from __future__ import annotations

from pathlib import Path

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


@pytest.mark.parametrize("count", [2, 4])
def test_cases_of_processes(tmp_path: Path, count: int) -> None:
    names = {name for name, (_, run) in ranks.CASES.items() if run.__module__ in MODULES}
    failed = {name: told for name, told in ranks.run_all(count, MODULES, tmp_path, names).items() if told}
    assert not failed, "\n\n".join(f"{name}\n{told}" for name, told in failed.items())
