"""Adafactor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from .._core.arguments import Options
from .._core.optimizer import FusedStep, Leftover
from .._core.precision import MasterWeights, Rounding


class Adafactor(FusedStep, torch.optim.Adafactor):
    r"""Adafactor, whose second moment of a matrix is the product of a column and a row, in three passes over memory.

    .. math::
        R \leftarrow R + t^\tau (\overline{g^2}^{\,cols} - R), \quad
        C \leftarrow C + t^\tau (\overline{g^2}^{\,rows} - C), \quad
        u = \frac{g}{\max(\sqrt{R C / \max(\overline{R}, \epsilon_1)}, \epsilon_1)}, \quad
        p \leftarrow (1 - \gamma \lambda) p -
        \frac{\max(\epsilon_2, \mathrm{RMS}(p)) \min(\gamma, t^{-1/2})}{\max(1, \mathrm{RMS}(u) / d)} u

    The last two dimensions of a param make its matrices, and others count them. Vectors and scalars keep the average of
    :math:`g^2` itself. No temporary is as large as a param: a step takes up to a part in 60 of the largest. There is no
    `state_dtype`: a row and a column are small already, and in fewer bits they would stand still. On a GPU such room is
    kept from step to step for every param.

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
        scale_parameter: scale steps with the RMS of the param; else the first factor of the step is 1. Default: True.
        relative_step: bound the step by :math:`t^{-1/2}`; else it is :math:`\gamma`. Default: True.
        warmup_init: bound it by :math:`10^{-6} t` as well; needs `relative_step`. Default: False.
        capturable: let CUDA graphs capture the step; `step` is kept on the param's device then. Default: False.
        max_grad_norm: scale gradients inside the update so that the norm of all together is at most this. Default:
            None.
        ema_decay: keep a moving average of the params with this factor, for `ema_parameters()`. Default: None.
        master_weights: for params in 16 bits: keep a copy in "float32" to update, or as "remainder" only the low half
            of it, beside bfloat16 params that are its upper half. Default: None.
        rounding: of what has fewer bits than the arithmetic: to "nearest"; "stochastic", up or down by chance so that
            the mean is exact; "kahan", to nearest, with what that takes from a param kept beside it. Default:
            "nearest".
        rounding_seed: where the draws of "stochastic" start. Default: 0.

    Raises:
        ValueError: a hyper-parameter is out of range, or `warmup_init` lacks `relative_step`.

    Example:
        >>> param = torch.nn.Parameter(torch.tensor([[3.0, 4.0]]))
        >>> optimizer = fusedopt.Adafactor([param], lr=0.5)
        >>> param.grad = torch.tensor([[2.0, -0.25]])
        >>> optimizer.step()
        >>> [round(p, 4) for p in param.tolist()[0]]
        [1.2322, 5.7678]

    Source: Shazeer and Stern 2018, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost"; the uses of
    :math:`\gamma` and :math:`\epsilon_1` are torch's, the three arguments before the options those of fairseq and
    transformers, whose usual setting is `scale_parameter=False, relative_step=False` with a small `lr`.
    """

    _rule = "adafactor"
    _beyond: ClassVar = {"scale_parameter": True, "relative_step": True, "warmup_init": False, "capturable": False}

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
        scale_parameter: bool = True,
        relative_step: bool = True,
        warmup_init: bool = False,
        capturable: bool = False,
        max_grad_norm: float | None = None,
        ema_decay: float | None = None,
        master_weights: MasterWeights | None = None,
        rounding: Rounding = "nearest",
        rounding_seed: int = 0,
    ) -> None:
        given = {"lr": lr, "beta2_decay": beta2_decay, "eps": eps, "d": d, "weight_decay": weight_decay}
        given.update(maximize=maximize, scale_parameter=scale_parameter, relative_step=relative_step)
        given.update(warmup_init=warmup_init, capturable=capturable)
        _check_warmup(given)
        options = Options(max_grad_norm, ema_decay, None, master_weights, rounding, rounding_seed)
        super().__init__(params, given, foreach=foreach, fused=fused, options=options)

    def _step_leftover(self, leftover: Leftover, divisor: float | Tensor | None = None) -> None:
        # torch's raises for matrices that are DTensors, and takes a shard's norm for the norm of a vector.
        self._refuse_shards(leftover)
        super()._step_leftover(leftover, divisor)

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        _check_warmup(group)


def _check_warmup(group: Mapping[str, Any]) -> None:
    if group.get("warmup_init") and not group.get("relative_step", True):
        raise ValueError("warmup_init=True bounds a relative step; it needs relative_step=True")
