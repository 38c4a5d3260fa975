"""RMSprop."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from .._core.arguments import Options
from .._core.optimizer import FusedStep
from .._core.precision import MasterWeights, Offload, Rounding, StateDtype


class RMSprop(FusedStep, torch.optim.RMSprop):
    r"""RMSprop, plain, centered and with momentum, in one pass over memory.

    .. math::
        g \leftarrow \nabla f(p) + \lambda p, \quad
        v \leftarrow \alpha v + (1 - \alpha) g^2, \quad
        b \leftarrow \mu b + \frac{g}{\sqrt{v - \bar g^2} + \epsilon}, \quad
        p \leftarrow p - \gamma b

    where :math:`\bar g`, the gradient's moving average, is kept if `centered` and else 0. The variance
    :math:`v - \bar g^2` is held at 0 where rounding would make it negative and torch's root NaN.

    Args:
        params: tensors, (name, tensor) pairs or dicts of groups; float32, float64, bfloat16, float16 or complex.
        lr: the learning rate :math:`\gamma \ge 0`, a number or a tensor of one element. Default: 1e-2.
        alpha: :math:`\alpha \ge 0`, the smoothing constant. Default: 0.99.
        eps: :math:`\epsilon \ge 0`, added to the root. Default: 1e-8.
        weight_decay: :math:`\lambda \ge 0`, an L2 penalty. Default: 0.
        momentum: :math:`\mu \ge 0`. Default: 0.
        centered: divide by the gradient's estimated deviation instead of its root mean square. Default: False.
        capturable: let CUDA graphs capture the step; `step` is kept on the param's device then. Default: False.
        foreach: accepted for torch's sake; changes nothing. Default: None.
        maximize: ascend. Default: False.
        differentiable: let autograd record the step, through torch's own code. Default: False.
        fused: changes no result; True has a GradScaler leave unscaling and skipping to the step, as for torch's fused
            steps. Default: None.
        initial_accumulator_value: what :math:`v` starts from, at least 0. Default: 0.0.
        eps_in_sqrt: divide by :math:`\sqrt{v - \bar g^2 + \epsilon}` instead. Default: False.
        lr_in_momentum: keep :math:`\gamma b` instead of b, so that a change of the learning rate comes with the next
            gradients only. Default: False.
        decoupled_weight_decay: decay the param by :math:`1 - \gamma \lambda` instead of adding :math:`\lambda p` to the
            gradient. Default: False.
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
        ValueError: a hyper-parameter is out of range, or an option rounds what `centered` subtracts.

    Example:
        >>> param = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        >>> optimizer = fusedopt.RMSprop([param], lr=0.5, alpha=0.75)
        >>> param.grad = torch.tensor([4.0, -4.0])
        >>> optimizer.step()
        >>> param.tolist()
        [0.0, 3.0]

    Sources: Hinton 2012, lecture 6e of "Neural Networks for Machine Learning"; Graves 2013, "Generating Sequences With
    Recurrent Neural Networks" (centered). With `initial_accumulator_value=1.0, eps_in_sqrt=True, lr_in_momentum=True`
    it is TensorFlow's, as in timm's `RMSpropTF`.
    """

    _rule = "rmsprop"
    _beyond: ClassVar = {
        "initial_accumulator_value": 0.0,
        "eps_in_sqrt": False,
        "lr_in_momentum": False,
        "decoupled_weight_decay": False,
    }

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum: float = 0,
        centered: bool = False,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        *,
        fused: bool | None = None,
        initial_accumulator_value: float = 0.0,
        eps_in_sqrt: bool = False,
        lr_in_momentum: bool = False,
        decoupled_weight_decay: bool = False,
        max_grad_norm: float | None = None,
        ema_decay: float | None = None,
        state_dtype: StateDtype = None,
        master_weights: MasterWeights | None = None,
        rounding: Rounding = "nearest",
        rounding_seed: int = 0,
        offload: Offload | None = None,
    ) -> None:
        given = {"lr": lr, "alpha": alpha, "eps": eps, "weight_decay": weight_decay, "momentum": momentum}
        flags = {"centered": centered, "capturable": capturable, "maximize": maximize, "differentiable": differentiable}
        options = Options(max_grad_norm, ema_decay, state_dtype, master_weights, rounding, rounding_seed, offload)
        beyond = {"initial_accumulator_value": initial_accumulator_value, "eps_in_sqrt": eps_in_sqrt}
        beyond |= {"lr_in_momentum": lr_in_momentum, "decoupled_weight_decay": decoupled_weight_decay}
        super().__init__(params, {**given, **flags, **beyond}, foreach=foreach, fused=fused, options=options)

    def _check_storages(self, group: Mapping[str, Any]) -> None:
        super()._check_storages(group)
        if not group.get("centered"):
            return
        precision = self._precision_of(group)
        for name in ("square_avg", "grad_avg"):
            if any(precision.rounds(name, p) for p in group["params"]):
                option = "state_dtype" if name in precision.states else "rounding='stochastic'"
                raise ValueError(
                    f"{option} rounds {name!r}, and centered=True divides by the difference of square_avg and the "
                    "square of grad_avg, which may be smaller than that rounding: a step could be any size; keep both "
                    "in float32 by state_dtype={'square_avg': 'float32', 'grad_avg': 'float32'}, or set centered=False"
                )
