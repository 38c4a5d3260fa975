"""Numbers and flags as configurations and edits leave them: sequences, None, infinite learning rates; as torch."""

from __future__ import annotations

import collections.abc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import Parameter

import fusedopt


class ConfigList(collections.abc.Sequence[Any]):
    """As OmegaConf's: a sequence, and no list."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __getitem__(self, index: Any) -> Any:
        return self.items[index]

    def __len__(self) -> int:
        return len(self.items)


SEQUENCES: list[tuple[str, str, list[float]]] = [
    *[(name, "betas", [0.8, 0.95]) for name in ("Adam", "AdamW", "NAdam", "RAdam", "Adamax", "Lion", "LAMB", "ADOPT")],
    ("Adan", "betas", [0.9, 0.8, 0.95]),
    ("AdEMAMix", "betas", [0.9, 0.8, 0.95]),
    ("Rprop", "etas", [0.5, 1.2]),
    ("Rprop", "step_sizes", [1e-6, 50.0]),
    ("Adafactor", "eps", [1e-30, 1e-3]),
]


def stepped(make: Callable[[list[Parameter]], Any], edit: dict[str, Any] | None = None) -> torch.Tensor:
    param = Parameter(torch.arange(12.0).view(4, 3) + 1)
    optimizer = make([param])
    optimizer.param_groups[0].update(edit or {})
    for scale in (1.0, -0.5, 2.0):
        param.grad = torch.full((4, 3), scale)
        optimizer.step()
    return param.detach()


@pytest.mark.parametrize("edited", [False, True], ids=["constructed", "edited"])
@pytest.mark.parametrize("kind", [list, ConfigList, np.array, torch.tensor], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(("name", "key", "value"), SEQUENCES, ids=lambda x: x if isinstance(x, str) else "")
def test_any_sequence_of_numbers(name: str, key: str, value: list[float], kind: Any, edited: bool) -> None:
    cls = getattr(fusedopt, name)
    want = stepped(lambda params: cls(params, lr=0.01, **{key: tuple(value)}))
    given = {key: kind(value) if kind is not torch.tensor else torch.tensor(value, dtype=torch.float64)}
    if kind is torch.tensor and not edited:
        pytest.skip("torch takes two tensors, not one of two numbers, in constructors")
    got = stepped(lambda params: cls(params, lr=0.01, **({} if edited else given)), given if edited else None)
    assert torch.equal(got, want)


FLAGS = [
    ("AdamW", "amsgrad"),
    ("AdamW", "maximize"),
    ("RMSprop", "centered"),
    ("SGD", "nesterov"),
    ("NAdam", "decoupled_weight_decay"),
    ("RAdam", "decoupled_weight_decay"),
    ("Adan", "no_prox"),
    ("ADOPT", "decouple"),
    ("LAMB", "trust_clip"),
    ("Muon", "nesterov"),
    ("Adafactor", "maximize"),
]


@pytest.mark.parametrize("edited", [False, True], ids=["constructed", "edited"])
@pytest.mark.parametrize(("name", "flag"), FLAGS, ids=str)
def test_a_flag_that_is_none_is_a_no(name: str, flag: str, edited: bool) -> None:
    cls = getattr(fusedopt, name)
    results = [
        stepped(
            lambda params, value=value: cls(params, lr=0.01, **({} if edited else {flag: value})),
            {flag: value} if edited else None,
        )
        for value in (False, None)
    ]
    assert torch.equal(*results)


def test_an_infinite_learning_rate_is_torchs() -> None:
    """Adafactor's relative step alone; and what an update of 0 times infinity comes to elsewhere."""
    for name, kwargs in (("Adafactor", {}), ("AdamW", {"weight_decay": 0.0}), ("NAdam", {}), ("RAdam", {})):
        ours, theirs = (
            stepped(lambda params, p=package: getattr(p, name)(params, lr=float("inf"), **kwargs))  # noqa: B023
            for package in (fusedopt, torch.optim)
        )
        torch.testing.assert_close(ours, theirs, equal_nan=True)
    assert stepped(lambda params: fusedopt.Adafactor(params, lr=float("inf"))).isfinite().all()
