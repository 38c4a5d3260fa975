"""Warnings name the line of the caller, through whatever frames of torch and of the package they come."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from options import steps
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.nn import Parameter

import fusedopt


class _Verbose(fusedopt.AdamW):
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)  # the caller's line


class _Wrapper:
    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state_dict)  # the caller's line


def _directly(params: Any, file: Any) -> None:
    fusedopt.AdamW(params).load_state_dict(file)  # the caller's line


def _hooked(params: Any, file: Any) -> None:
    optimizer = fusedopt.AdamW(params)
    optimizer.register_load_state_dict_pre_hook(lambda *_: None)
    optimizer.load_state_dict(file)  # the caller's line


def _distributed(params: Any, file: Any) -> None:
    model = torch.nn.ParameterList(params)
    optimizer = fusedopt.AdamW(model.parameters(), state_dtype={"exp_avg": "int8"})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer.load_state_dict(file)
        flat = get_optimizer_state_dict(model, optimizer)
        flat["state"]["0"]["exp_avg"] = torch.randn(4100)
    set_optimizer_state_dict(model, optimizer, flat)  # the caller's line


LOADS: dict[str, Callable[[Any, Any], None]] = {
    "directly": _directly,
    "with a hook": _hooked,
    "subclass": lambda params, file: _Verbose(params).load_state_dict(file),
    "wrapper": lambda params, file: _Wrapper(fusedopt.AdamW(params)).load_state_dict(file),
    "torch's checkpoints": _distributed,
}


@pytest.mark.parametrize("load", LOADS.values(), ids=LOADS)
def test_losses_of_a_load_are_the_callers(load: Callable[[Any, Any], None]) -> None:
    params = [Parameter(torch.ones(4100))]
    file = steps(fusedopt.AdamW(params, ema_decay=0.5)).state_dict()
    with pytest.warns(UserWarning, match="the state was saved under other options") as warned:
        load(params, file)
    assert {w.filename for w in warned} == {__file__}
    lines = Path(__file__).read_text().splitlines()
    assert all("# the caller's line" in lines[w.lineno - 1] for w in warned)


def test_an_empty_generator_is_the_callers() -> None:
    with pytest.warns(UserWarning, match="`parameters` is an empty generator") as warned:
        fusedopt.clip_grad_norm_((p for p in ()), 1.0)
    assert [w.filename for w in warned] == [__file__]
