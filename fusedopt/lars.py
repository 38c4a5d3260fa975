"""LARS."""

from typing import Any

import torch
from torch.optim.optimizer import ParamsT

from .standalone import Standalone


class LARS(Standalone):
    r"""LARS, SGD with momentum and a step size for each tensor, in two passes over memory.

    .. math::
        \rho = \frac{\eta \lVert p \rVert}{\lVert g \rVert + \lambda \lVert p \rVert + \epsilon}, \quad
        b \leftarrow \mu b + (1 - \tau) \rho (g + \lambda p) \;\; (\rho (g + \lambda p) \text{ at first}), \quad
        p \leftarrow p - \gamma b

    where :math:`\rho` is 1 if either norm is 0. The first pass measures, the second updates.

    Args:
        params: tensors, (name, tensor) pairs or dicts of groups; float32, float64, bfloat16, float16 or complex.
        lr: the learning rate :math:`\gamma \ge 0`, a number or a tensor of one element.
        momentum: :math:`\mu \ge 0`.
        dampening: :math:`\tau`, which weakens the gradient's share of the buffer.
        weight_decay: :math:`\lambda \ge 0`.
        nesterov: step along the buffer as the next step will find it; needs momentum and no dampening.
        trust_coeff: :math:`\eta \ge 0`.
        eps: :math:`\epsilon \ge 0`, added to the norms.
        trust_clip: hold :math:`\rho` at :math:`\gamma` or below and divide it by :math:`\gamma`.
        always_adapt: use :math:`\rho` in groups without weight decay, too.
        maximize: ascend.
        capturable: let CUDA graphs capture the step.

    Raises:
        ValueError: a hyper-parameter is out of range.

    Example:
        >>> param = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> optimizer = fusedopt.LARS([param], lr=1.0, trust_coeff=0.5, eps=0.0, always_adapt=True)
        >>> param.grad = torch.tensor([2.0, 0.0])
        >>> optimizer.step()
        >>> param.tolist()
        [0.5, 4.0]

    Source: You, Gitman and Ginsburg 2017, "Large Batch Training of Convolutional Networks"; arguments and state as
    in timm's `lars.py`.
    """

    _rule = "lars"

    def __init__(
        self,
        params: ParamsT,
        lr: float | torch.Tensor = 1.0,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        trust_coeff: float = 0.001,
        eps: float = 1e-8,
        trust_clip: bool = False,
        always_adapt: bool = False,
        *,
        maximize: bool = False,
        capturable: bool = False,
        **options: Any,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay}
        flags = {"nesterov": nesterov, "trust_coeff": trust_coeff, "eps": eps}
        adapting = {"trust_clip": trust_clip, "always_adapt": always_adapt}
        if nesterov and (momentum <= 0 or dampening != 0):
            raise ValueError("Nesterov momentum requires a momentum and zero dampening")
        super().__init__(
            params, {**defaults, **flags, **adapting, "maximize": maximize, "capturable": capturable}, **options
        )
