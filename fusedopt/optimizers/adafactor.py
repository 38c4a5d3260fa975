"""Adafactor."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from .. import _C
from .._core.arguments import Options
from .._core.kept import refuse_options
from .._core.optimizer import FusedStep
from .._core.unread import FLAGS


class Adafactor(FusedStep, torch.optim.Adafactor):
    r"""Adafactor, whose second moment of a matrix is the product of a column and a row, in three passes over memory.

    .. math::
        R \leftarrow R + t^\tau (\overline{g^2}^{\,cols} - R), \quad
        C \leftarrow C + t^\tau (\overline{g^2}^{\,rows} - C), \quad
        u = \frac{g}{\max(\sqrt{R C / \max(\overline{R}, \epsilon_1)}, \epsilon_1)}, \quad
        p \leftarrow (1 - \gamma \lambda) p -
        \frac{\max(\epsilon_2, \mathrm{RMS}(p)) \min(\gamma, t^{-1/2})}{\max(1, \mathrm{RMS}(u) / d)} u

    The last two dimensions of a param make its matrices, and others count them. Vectors and scalars keep the average of
    :math:`g^2` itself. No temporary is as large as a param: a step takes up to a part in 60 of the largest.

    Args:
        params: tensors, (name, tensor) pairs or dicts of groups; float32, float64, bfloat16 or float16.
        lr: :math:`\gamma \ge 0`, the largest relative step and the factor of the decay; a number or a tensor of one
            element. Default: 1e-2.
        beta2_decay: :math:`\tau \le 0`, by which the averages come to forget less. Default: -0.8.
        eps: :math:`\epsilon_1 \ge 0`, a bound of the root from below, None for the machine epsilon of each param's
            dtype; and :math:`\epsilon_2 \ge 0`, the smallest size that a param is taken to have. Default: (None, 1e-3).
        d: how large the RMS of an update may be, at least 1. Default: 1.0.
        weight_decay: :math:`\lambda \ge 0`, decoupled. Default: 0.0.
        foreach: accepted for torch's sake; changes nothing. Default: None.
        maximize: ascend. Default: False.
        fused: changes no result; True has a GradScaler leave unscaling and skipping to the step, as for torch's fused
            steps. Default: None.
        max_grad_norm: scale gradients inside the update so that the norm of all together is at most this. Default:
            None.

    Raises:
        ValueError: a hyper-parameter is out of range.

    Example:
        >>> param = torch.nn.Parameter(torch.tensor([[3.0, 4.0]]))
        >>> optimizer = fusedopt.Adafactor([param], lr=0.5)
        >>> param.grad = torch.tensor([[2.0, -0.25]])
        >>> optimizer.step()
        >>> [round(p, 4) for p in param.tolist()[0]]
        [1.2322, 5.7678]

    Source: Shazeer and Stern 2018, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost"; the uses of
    :math:`\gamma` and :math:`\epsilon_1` are torch's.
    """

    _has_options = False
    _reads = dict.fromkeys(("lr", "beta2_decay", "eps", "d", "weight_decay", *FLAGS))

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-2,
        beta2_decay: float = -0.8,
        eps: tuple[float | None, float] = (None, 1e-3),
        d: float = 1.0,
        weight_decay: float = 0.0,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        fused: bool | None = None,
        max_grad_norm: float | None = None,
    ) -> None:
        given = {"lr": lr, "beta2_decay": beta2_decay, "eps": eps, "d": d, "weight_decay": weight_decay}
        given["maximize"] = maximize
        super().__init__(params, given, foreach=foreach, fused=fused, options=Options(max_grad_norm))

    def _fused_step(self, closure: Callable[[], Any] | None = None, zero_grad: bool = False) -> Any:
        refuse_options(self.param_groups, self.defaults)
        return super()._fused_step(closure, zero_grad)

    def _make_plan(self, engine: ModuleType = _C) -> Any:
        return engine.FactoredPlan()
