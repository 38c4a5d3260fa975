"""Rules as a user of GenericOptimizer would write them down, for the tests of what the base class does."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fusedopt import GenericOptimizer


class Adam(GenericOptimizer):
    """As one would write it down; the base class does the rest."""

    def __init__(
        self, params: Any, lr: Any = 1e-3, betas: Any = (0.9, 0.999), eps: float = 1e-8, **options: Any
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps}, **options)

    def init_state(self, state: dict[str, Any], group: dict[str, Any], param: Tensor) -> None:
        state["exp_avg"] = torch.zeros_like(param)
        state["exp_avg_sq"] = torch.zeros_like(param)

    def step_param(self, state: dict[str, Any], group: dict[str, Any], grad: Tensor, param: Tensor) -> None:
        assert not torch.is_grad_enabled()
        assert not param.is_complex()
        beta1, beta2 = group["betas"]
        t = state["step"].item()
        state["exp_avg"].lerp_(grad, 1 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        root = (state["exp_avg_sq"].sqrt() / (1 - beta2**t) ** 0.5).add_(group["eps"])
        param.addcdiv_(state["exp_avg"], root, value=-float(group["lr"]) / (1 - beta1**t))


class KeepsFloat32(Adam):
    """State in float32 whatever the param's dtype, and a count in int64."""

    def init_state(self, state: dict[str, Any], group: dict[str, Any], param: Tensor) -> None:
        state["average"] = torch.zeros_like(param, dtype=torch.float32)
        state["signs"] = torch.zeros_like(param, dtype=torch.int64)

    def step_param(self, state: dict[str, Any], group: dict[str, Any], grad: Tensor, param: Tensor) -> None:
        state["average"].lerp_(grad.float(), 0.1)
        state["signs"] += grad > 0
        param.sub_(state["average"], alpha=group["lr"])
