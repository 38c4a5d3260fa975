"""Random walks with fixed seeds, and that they notice what is wrong."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import formulas
import pytest
import tiers
import torch
from cases import APART, ONE_PER_APART, Case
from support import EMULATED
from tiers import slow
from walk.__main__ import main
from walk.operations import OPERATIONS
from walk.others import OTHERS
from walk.runner import Walk, report
from walk.setups import ParamSpec, Setup
from walk.trips import TRIPS

import fusedopt

# The emulated CUDA engine takes ten times as long.
WALKS, PARTS = (96 if EMULATED else 960), 8


@cache
def seeds() -> list[int]:
    """Without --all a sixth, and of the others those that have an optimizer which none before them has."""
    if tiers.everything:
        return list(range(WALKS))
    found, seen = [], set[str]()
    for seed in range(WALKS):
        case = Walk.drawn(seed).setup.case
        if seed < WALKS // 6 or (case not in seen and not EMULATED):
            found.append(seed)
        seen.add(case)
    return found


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("part", range(PARTS))
def test_walks_find_nothing(part: int) -> None:
    failed = []
    for seed in seeds()[part::PARTS]:
        outcome = Walk.drawn(seed).run()
        if outcome.error is not None:
            failed.append(f"seed {seed}, {report(outcome)}")
    assert not failed, "\n\n".join(failed)


@pytest.mark.skipif(EMULATED, reason="with fewer walks they need not")
def test_the_seeds_have_everything() -> None:
    walks = [Walk.drawn(seed) for seed in seeds()]
    assert {name for walk in walks for name, _ in walk.operations} == OPERATIONS.keys() | TRIPS.keys()
    assert {walk.setup.case for walk in walks} == {case.name for case in (*APART, *OTHERS)}
    assert {key for walk in walks for key in walk.setup.options} >= {
        *("master_weights", "rounding", "state_dtype", "ema_decay", "max_grad_norm", "foreach", "fused")
    }


def _walk(kind: str, *names: str, **options: Any) -> Walk:
    setup = Setup("adamw", [ParamSpec("float32", (67,)), ParamSpec("float32", (5000,))], options)
    return Walk(kind, setup, [(name, seed) for seed, name in enumerate(names)])


def _swapped(p: Any, g: Any, s: Any, h: Any) -> Any:
    return formulas.adam(p, g, s, {**h, "betas": h["betas"][::-1]})


def _larger_rate(p: Any, g: Any, s: Any, h: Any) -> Any:
    return formulas.adam(p, g, s, {**h, "lr": h["lr"] * 1.001})


@pytest.mark.skipif(EMULATED, reason="what a walk expects of a storage knows no engine")
@pytest.mark.parametrize("case", ONE_PER_APART, ids=str)
def test_what_float16_holds_of_every_state_is_known(case: Case) -> None:
    """Also of squares that have another name than Adam's."""
    setup = Setup(case.name, [ParamSpec("bfloat16", (600,))], {"state_dtype": "float16"})
    if not case.states or case.kwargs.get("centered"):
        pytest.skip("no states, or some that cannot be rounded")
    outcome = Walk("numbers", setup, [("step", seed) for seed in range(3)]).run()
    assert outcome.error is None, report(outcome)


@pytest.mark.parametrize("wrong", [_swapped, _larger_rate])
@pytest.mark.parametrize("storage", ["float32", "bfloat16", "int8", "int4"])
def test_another_formula_is_noticed(wrong: Callable[..., Any], storage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    walk = _walk("numbers", *["many_steps"] * 2, state_dtype=storage, rounding="stochastic")
    assert walk.run().error is None
    monkeypatch.setitem(formulas.RULES, "AdamW", wrong)
    assert "is wrong" in str(walk.run().error) or "are wrong" in str(walk.run().error)


def test_a_lost_state_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(self: Any, state_dict: Any) -> None:
        state = {i: {k: v for k, v in its.items() if k != "exp_avg"} for i, its in state_dict["state"].items()}
        torch.optim.Optimizer.load_state_dict(self, {**state_dict, "state": state})

    walks = [_walk(kind, "step", "step", "save_and_resume", "step") for kind in ("numbers", "trips")]
    assert [walk.run().error for walk in walks] == [None, None]
    monkeypatch.setattr(fusedopt.AdamW, "load_state_dict", load)
    assert all(walk.run().error is not None for walk in walks)


def test_the_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    fails = _walk("numbers", *["freeze_or_unfreeze", "looked_at", "many_steps", "step"], max_grad_norm=1.0)
    monkeypatch.setattr(Walk, "drawn", lambda seed: fails)
    assert main(["--minutes", "0"]) == 0
    assert capsys.readouterr().out == "0 walks, 0 operations, 0 failures\n"
    monkeypatch.setitem(formulas.RULES, "AdamW", _larger_rate)
    assert main(["--minutes", "1", "--stop", "--seed", "7"]) == 1
    said = capsys.readouterr().out
    assert said.endswith("1 walks, 2 operations, 1 failures\n")
    assert "seed 7, numbers: AdamW([float32[67] contiguous, float32[5000] contiguous], lr=0.002, max_grad" in said
    # In short, a step of one param without the option.
    short = said.split("in short: ")[1]
    assert short.split(" contiguous]")[1].startswith(", lr=0.002)\n  step: fails\nMismatch: ")
    again = short.split("--replay '")[1].split("'")[0]
    assert main(["--replay", again]) == 1
    monkeypatch.undo()
    assert main(["--replay", again]) == 0


@slow("of several processes most of the time is their imports")
@pytest.mark.skipif(EMULATED, reason="other processes do not have the emulated engine")
def test_the_command_on_several_processes() -> None:
    """From the project's root, where the folder of tests is found without being a package."""
    command = [sys.executable, "-m", "tests.walk", "--minutes", "0", "--jobs", "2"]
    ended = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=300)
    assert (ended.stdout, ended.returncode) == ("0 walks, 0 operations, 0 failures\n", 0), ended.stderr
