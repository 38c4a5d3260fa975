"""The mutants are still changes of what stands in the sources, and the committed result is theirs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from projects import ROOT

sys.path.insert(0, str(Path(__file__).parent / "mutants"))
import mutate


def test_each_changes_one_place() -> None:
    for mutant in mutate.MUTANTS:
        text = (ROOT / mutant.file).read_text()
        assert text.count(mutant.before) == 1, mutant
        assert mutate.changed(mutant, text) != text
    assert len({(mutant.file, mutant.before, mutant.after) for mutant in mutate.MUTANTS}) == len(mutate.MUTANTS)
    assert len(mutate.MUTANTS) >= 30


def test_their_tests_are_there() -> None:
    for mutant in mutate.MUTANTS:
        named = [word for word in mutant.tests.split() if word.startswith("tests/")]
        assert named
        assert all((ROOT / name.partition("::")[0]).exists() for name in named), mutant


def test_the_last_run_killed_all() -> None:
    """All that it judged; `left` in the file says how many it did not."""
    result = json.loads(mutate.RESULT.read_text())
    judged = {(one["file"], one["before"]): one["result"] for one in result["mutants"]}
    listed = {(mutant.file, mutant.before): "killed" for mutant in mutate.MUTANTS}
    assert judged.items() <= listed.items()
    assert result["left"] == len(listed) - len(judged)
