"""What optimizers share that torch.optim does not have: constructor checks, and no torch step to fall back on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, cast

import torch
from torch.optim.optimizer import ParamsT

from . import _C
from .optimizer import FusedStep, Leftover


def check_hyperparameters(group: dict[str, Any], count_of_betas: int) -> None:
    """Raise torch's ValueError for what is out of range among the keys that most optimizers have."""
    lr = group.get("lr")
    if isinstance(lr, torch.Tensor) and lr.numel() != 1:
        raise ValueError("Tensor lr must be 1-element")
    for key, name in {"lr": "learning rate", "eps": "epsilon value"}.items():
        if key in group and not group[key] >= 0.0:
            raise ValueError(f"Invalid {name}: {group[key]}")
    betas = group.get("betas", ())
    if len(betas) != count_of_betas:
        raise ValueError(f"betas must be a tuple of {count_of_betas} numbers: {betas}")
    for index, beta in enumerate(betas):
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
        options: what FusedStep takes.

    Raises:
        ValueError: a hyper-parameter is out of range.
    """

    # Of a rule that the package does not have.
    _hyper_names: ClassVar[Sequence[str]] = ()

    def __init__(self, params: ParamsT, defaults: dict[str, Any], **options: Any) -> None:
        self._check(defaults)
        # torch adds this key to the defaults of a copy, and means by it what no optimizer here can do.
        super().__init__(params, {**defaults, "differentiable": False}, **options)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        if isinstance(param_group, dict):
            self._check({**self.defaults, **param_group})
        super().add_param_group(param_group)

    def _check(self, group: dict[str, Any]) -> None:
        names = self._hyper_names or _C.rules()[self._rule]["hypers"]
        check_hyperparameters(group, sum(name.startswith("betas.") for name in names))

    def _torch_step(self, closure: Callable[[], Any] | None = None) -> Any:
        raise NotImplementedError(
            f"{type(self).__name__} cannot be traced: torch has no step of it; call step() outside of torch.compile"
        )

    def _step_leftover(self, leftover: Leftover, divisor: float | torch.Tensor | None = None) -> None:
        groups = [{**self.param_groups[index], "params": params} for index, params in leftover]
        with self._only(groups), self._plain_grads(groups, divisor), self._float_counters(groups):
            refused = cast(_C.Plan, self._plan).step(self)
        if refused:
            raise RuntimeError(self._refusal(groups[refused[0][0]], [p for _, params in refused for p in params]))

    @contextmanager
    def _float_counters(self, groups: list[dict[str, Any]]) -> Iterator[None]:
        """Counters of other dtypes, which torch's optimizers count in as well, as the engine can take them."""
        lent: list[tuple[dict[str, Any], str, torch.Tensor]] = []
        for state in (self.state.get(p, {}) for group in groups for p in group["params"]):
            for name in _C.rules()[self._rule]["counters"]:
                counter = state.get(name)
                if isinstance(counter, torch.Tensor) and counter.dtype not in (torch.float32, torch.float64):
                    lent.append((state, name, counter))
                    state[name] = counter.float()
        try:
            yield
        finally:
            for state, name, counter in lent:
                state[name] = counter.copy_(state[name])

    def _refusal(self, group: dict[str, Any], params: list[torch.Tensor]) -> str:
        name = type(self).__name__
        if group.get("differentiable"):
            return f"{name} cannot be differentiated: set 'differentiable' to False in its param_groups"
        if any(p.grad is not None and p.grad.is_sparse for p in params):
            return f"{name} does not support sparse gradients; SparseAdam does"
        return (
            f"{name} steps ordinary tensors on the CPU and on CUDA devices, and one of its params or gradients is a "
            f"{type(params[0]).__name__} on {params[0].device}, which it would leave to torch's step if torch had one"
        )
