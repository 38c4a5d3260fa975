"""A name that nobody knows is refused by that name, in place of standing for whatever an else has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gpu_report
import gpu_table
import pytest
import torch

import fusedopt
from fusedopt import _C, _toolchain
from fusedopt._core import precision
from fusedopt.bench import BenchError, baselines, clock, placement, sweeps
from fusedopt.bench.selection import choose


def adamw(**options: Any) -> Any:
    return fusedopt.AdamW([torch.nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))], **options)


def partnered() -> Any:
    param = torch.zeros(2, dtype=torch.bfloat16)
    return precision.exact_param(param, "unheard", param)


def goal() -> Any:
    goal = gpu_table.Goal(clock.DEVICE, baselines.FUSED, 1.0, "unheard")
    rounds = {name: [1.0, 1.0] for name in (baselines.OURS, baselines.CONTROL, baselines.FUSED)}
    return gpu_report.goal_finding("trial", goal, rounds, 1, 1)  # type: ignore[arg-type]


ACTS: dict[str, Callable[[], Any]] = {
    "state_dtype": lambda: adamw(state_dtype="unheard"),
    "state_dtype of a state": lambda: adamw(state_dtype={"exp_avg": "unheard"}),
    "state in state_dtype": lambda: adamw(state_dtype={"unheard": "int8"}),
    "master_weights": lambda: adamw(master_weights="unheard"),
    "rounding": lambda: adamw(rounding="unheard"),
    "partner": partnered,
    "instruction set": lambda: _C.use_isa("unheard"),
    "suite, optimizer, dtype, layout or baseline": lambda: choose("suite", ["unheard"], ["gpt2"]),
    "layout of a tensor": lambda: placement.place(torch.zeros(2), "unheard"),
    "sweep": lambda: sweeps.suites_of("unheard"),
    "goal": goal,
    "clock": lambda: clock.Cpu().measure("unheard"),
}


@pytest.mark.parametrize("act", ACTS.values(), ids=ACTS)
def test_an_unknown_name_is_refused(act: Callable[[], Any]) -> None:
    with pytest.raises((ValueError, BenchError, KeyError), match="unheard"):
        act()


def test_the_environment_says_0_or_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSEDOPT_CUDA", "off")
    with pytest.raises(ValueError, match="FUSEDOPT_CUDA is 'off'; use 0"):
        _toolchain.Cuda()
    monkeypatch.setenv("FUSEDOPT_CUDA", "0")
    assert _toolchain.Cuda().missing == "FUSEDOPT_CUDA=0"
