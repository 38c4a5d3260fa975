"""Resilient backpropagation."""

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from .._core.arguments import Options
from .._core.optimizer import FusedStep
from .._core.precision import MasterWeights, Offload, Rounding, StateDtype


class Rprop(FusedStep, torch.optim.Rprop):
    r"""Resilient backpropagation, in one pass over memory.

    .. math::
        s \leftarrow \begin{cases} \min(\eta^+ s, s_{\max}) & g \, g_{\text{prev}} > 0 \\
        \max(\eta^- s, s_{\min}), \; g \leftarrow 0 & g \, g_{\text{prev}} < 0 \\
        s & \text{else} \end{cases} \qquad
        p \leftarrow p - \operatorname{sign}(g) s

    Only the sign of the gradient counts: for full batches, not for stochastic ones.

    Args:
        params: tensors, (name, tensor) pairs or dicts of groups; float32, float64, bfloat16, float16 or complex.
        lr: where every element's step size starts, a number or a tensor of one element, at least 0. Default: 1e-2.
        etas: :math:`0 < \eta^- < 1 < \eta^+`, by which step sizes shrink and grow. Default: (0.5, 1.2).
        step_sizes: :math:`s_{\min}, s_{\max}`. Default: (1e-6, 50).
        capturable: let CUDA graphs capture the step; `step` is kept on the param's device then. Default: False.
        foreach: accepted for torch's sake; changes nothing. Default: None.
        maximize: ascend. Default: False.
        differentiable: let autograd record the step, through torch's own code. Default: False.
        fused: changes no result; True has a GradScaler leave unscaling and skipping to the step, as for torch's fused
            steps. Default: None.
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
        >>> optimizer = fusedopt.Rprop([param], lr=0.5)
        >>> param.grad = torch.tensor([1.0, -0.25])
        >>> optimizer.step()
        >>> param.tolist()
        [0.5, 2.5]

    Source: Riedmiller and Braun 1993, "A direct adaptive method for faster backpropagation learning: the RPROP
    algorithm".
    """

    _rule = "rprop"

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-2,
        etas: tuple[float, float] = (0.5, 1.2),
        step_sizes: tuple[float, float] = (1e-6, 50),
        *,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        max_grad_norm: float | None = None,
        ema_decay: float | None = None,
        state_dtype: StateDtype = None,
        master_weights: MasterWeights | None = None,
        rounding: Rounding = "nearest",
        rounding_seed: int = 0,
        offload: Offload | None = None,
    ) -> None:
        given = {"lr": lr, "etas": etas, "step_sizes": step_sizes}
        flags = {"capturable": capturable, "maximize": maximize, "differentiable": differentiable}
        options = Options(max_grad_norm, ema_decay, state_dtype, master_weights, rounding, rounding_seed, offload)
        super().__init__(params, {**given, **flags}, foreach=foreach, fused=fused, options=options)
