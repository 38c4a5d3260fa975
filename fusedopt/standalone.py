"""What optimizers share that torch.optim does not have: constructor checks, and no torch step to fall back on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim.optimizer import ParamsT

from .optimizer import FusedStep, Leftover


def check_hyperparameters(group: dict[str, Any]) -> None:
    """Raise torch's ValueError for what is out of range among the keys that most optimizers have."""
    lr = group.get("lr")
    if isinstance(lr, torch.Tensor) and lr.numel() != 1:
        raise ValueError("Tensor lr must be 1-element")
    for key, name in {"lr": "learning rate", "eps": "epsilon value"}.items():
        if key in group and not group[key] >= 0.0:
            raise ValueError(f"Invalid {name}: {group[key]}")
    for index, beta in enumerate(group.get("betas", ())):
        if not 0.0 <= beta < 1.0:
            raise ValueError(f"Invalid beta parameter at index {index}: {beta}")
    for key in ("weight_decay", "momentum", "trust_coeff"):
        if key in group and not group[key] >= 0.0:
            raise ValueError(f"Invalid {key} value: {group[key]}")


class Standalone(FusedStep):
    """A fused optimizer without a twin in torch.optim.

    Args:
        params: tensors, (name, tensor) pairs or dicts of groups.
        defaults: the hyper-parameters of its rule, and `maximize` and `capturable`.

    Raises:
        ValueError: a hyper-parameter is out of range.
    """

    def __init__(self, params: ParamsT, defaults: dict[str, Any]) -> None:
        check_hyperparameters(defaults)
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        if isinstance(param_group, dict):
            check_hyperparameters({**self.defaults, **param_group})
        super().add_param_group(param_group)

    def _torch_step(self, closure: Callable[[], Any] | None = None) -> Any:
        raise NotImplementedError(
            f"{type(self).__name__} cannot be traced: torch has no step of it; call step() outside of torch.compile"
        )

    def _step_leftover(self, leftover: Leftover) -> None:
        name = type(self).__name__
        for _, params in leftover:
            for p in params:
                if p.grad is not None and p.grad.is_sparse:
                    raise RuntimeError(f"{name} does not support sparse gradients; SparseAdam does")
        _, (param, *_) = leftover[0]
        raise RuntimeError(
            f"{name} steps ordinary tensors on the CPU and on CUDA devices, and one of its params or gradients is a "
            f"{type(param).__name__} on {param.device}, which it would leave to torch's own step if torch had one"
        )
