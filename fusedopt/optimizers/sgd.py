"""Stochastic gradient descent."""

from typing import ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from .._core.arguments import Options
from .._core.optimizer import FusedStep
from .._core.precision import MasterWeights, Offload, Rounding, StateDtype


class SGD(FusedStep, torch.optim.SGD):
    r"""Stochastic gradient descent with momentum, in one pass over memory.

    .. math::
        g \leftarrow \nabla f(p) + \lambda p, \qquad
        b \leftarrow \mu b + (1 - \tau) g \;\; (b \leftarrow g \text{ at first}), \qquad
        p \leftarrow p - \gamma (g + \mu b \text{ if nesterov, else } b)

    Args:
        params: tensors, (name, tensor) pairs or dicts of groups; float32, float64, bfloat16, float16 or complex.
        lr: the learning rate :math:`\gamma \ge 0`, a number or a tensor of one element. Default: 1e-3.
        momentum: :math:`\mu \ge 0`. Default: 0.
        dampening: :math:`\tau`, which weakens the gradient's share of the buffer. Default: 0.
        weight_decay: :math:`\lambda \ge 0`, an L2 penalty. Default: 0.
        nesterov: step along the buffer as the next step will find it; needs momentum and no dampening. Default: False.
        maximize: ascend. Default: False.
        foreach: accepted for torch's sake; changes nothing. Default: None.
        differentiable: let autograd record the step, through torch's own code. Default: False.
        fused: changes no result; True has a GradScaler leave unscaling and skipping to the step, as for torch's fused
            steps. Default: None.
        decoupled_weight_decay: decay the param by :math:`1 - \gamma \lambda` instead of adding :math:`\lambda p` to the
            gradient (SGDW). Default: False.
        max_grad_norm: scale gradients inside the update so that the norm of all together is at most this. Default:
            None.
        ema_decay: keep a moving average of the params with this factor, for `ema_parameters()`. Default: None.
        state_dtype: how states are stored: "float32", "bfloat16", "float16", "int8" or "int4" (blocks of 256 codes with
            a float32 scale; tensors of fewer than 4,096 elements stay in float32), or a dict by states' names. Default:
            None.
        master_weights: for params in 16 bits: keep a copy in "float32" to update, or as "remainder" only the low half
            of it, beside bfloat16 params that are its upper half. Default: None.
        rounding: of what has fewer bits than the arithmetic: to "nearest"; "stochastic", up or down by chance so that
            the mean is exact; "kahan", to nearest, with what that takes from a param kept beside it. Default:
            "nearest".
        rounding_seed: where the draws of "stochastic" start. Default: 0.
        offload: "cpu" has states of params on a GPU, and master weights, in host memory, where the CPU steps them:
            gradients come and params go back in parts of 32 MiB, each while another is stepped; the same bits. Default:
            None.

    Raises:
        ValueError: a hyper-parameter is out of range.

    Example:
        >>> param = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        >>> optimizer = fusedopt.SGD([param], lr=0.5, momentum=0.9)
        >>> param.grad = torch.tensor([1.0, -1.0])
        >>> optimizer.step()
        >>> param.tolist()
        [0.5, 2.5]

    Sources: Polyak 1964; Sutskever, Martens, Dahl and Hinton 2013, "On the importance of initialization and momentum in
    deep learning", in the form torch gives it; Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization".
    """

    _rule = "sgd"
    _beyond: ClassVar = {"decoupled_weight_decay": False}

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float | Tensor = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
        max_grad_norm: float | None = None,
        ema_decay: float | None = None,
        state_dtype: StateDtype = None,
        master_weights: MasterWeights | None = None,
        rounding: Rounding = "nearest",
        rounding_seed: int = 0,
        offload: Offload | None = None,
    ) -> None:
        given = {"lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay}
        flags = {"nesterov": nesterov, "maximize": maximize, "differentiable": differentiable}
        options = Options(max_grad_norm, ema_decay, state_dtype, master_weights, rounding, rounding_seed, offload)
        flags["decoupled_weight_decay"] = decoupled_weight_decay
        super().__init__(params, {**given, **flags}, foreach=foreach, fused=fused, options=options)
