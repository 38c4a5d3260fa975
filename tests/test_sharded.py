"""DTensors: the cases of tests/sharded_*.py, each a function of a rank, by name. Processes are started once for all."""

from __future__ import annotations

from pathlib import Path

import pytest
import ranks
import sharded_states
import sharded_steps

MODULES = tuple(module.__name__ for module in (sharded_steps, sharded_states))
pytestmark = pytest.mark.xdist_group("sharded")


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, str]]:
    folders: dict[int, Path] = {count: tmp_path_factory.mktemp(f"ranks{count}") for count in (2, 4)}
    return {count: ranks.run_all(count, MODULES, folder) for count, folder in folders.items()}


@pytest.mark.parametrize("name", ranks.CASES)
def test_in_several_processes(outcomes: dict[int, dict[str, str]], name: str) -> None:
    _, count, _ = ranks.CASES[name]
    told = outcomes[count][name]
    assert not told, told
