"""DTensors, in several processes: the cases of tests/sharded_*.py, which are functions of a rank.

One test for each number of processes, since it is their start that takes the time.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import ranks
import sharded_files
import sharded_norms
import sharded_states
import sharded_steps
import sharded_sums
import sharded_training

MODULES = [
    m.__name__ for m in (sharded_steps, sharded_states, sharded_sums, sharded_norms, sharded_training, sharded_files)
]


@pytest.mark.parametrize("count", [2, 4])
def test_cases_of_processes(tmp_path: Path, count: int) -> None:
    failed = {name: told for name, told in ranks.run_all(count, MODULES, tmp_path).items() if told}
    assert not failed, "\n\n".join(f"{name}\n{told}" for name, told in failed.items())
