"""Arguments of the functions of fusedopt.functional."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def lists_of_adam(count: int = 2, **of_states: Any) -> dict[str, Any]:
    """Arguments of adam()."""

    def some() -> list[Tensor]:
        return [torch.zeros(3 + i, **of_states) for i in range(count)]

    return {
        "params": [torch.ones(3 + i) for i in range(count)],
        "grads": [torch.full((3 + i,), 0.5) for i in range(count)],
        "exp_avgs": some(),
        "exp_avg_sqs": some(),
        "max_exp_avg_sqs": [],
        "state_steps": [torch.tensor(0.0) for _ in range(count)],
        "amsgrad": False,
        "beta1": 0.9,
        "beta2": 0.99,
        "lr": 0.1,
        "weight_decay": 0.0,
        "eps": 1e-8,
        "maximize": False,
    }


def tensors(given: dict[str, Any]) -> list[Tensor]:
    return [value for values in given.values() if isinstance(values, list) for value in values if value is not None]
