"""Averaged stochastic gradient descent."""

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from .._core.arguments import Options
from .._core.optimizer import FusedStep
from .._core.precision import MasterWeights, Offload, Rounding, StateDtype


class ASGD(FusedStep, torch.optim.ASGD):
    r"""Averaged stochastic gradient descent, in one pass over memory.

    .. math::
        g \leftarrow \nabla f(p) + \lambda p, \quad
        p \leftarrow (1 - \Lambda \eta) p - \eta g, \quad
        \bar p \leftarrow \bar p + \mu (p - \bar p), \\
        \eta \leftarrow \frac{\gamma}{(1 + \Lambda \gamma t)^\alpha}, \quad
        \mu \leftarrow \frac{1}{\max(1, t - t_0)}

    The average :math:`\bar p` is `ax` in the state, :math:`\eta` starts as :math:`\gamma` and :math:`\mu` as 1; a step
    uses what the step before has left. On CUDA these counters are on the param's device, as torch's are.

    Args:
        params: tensors, (name, tensor) pairs or dicts of groups; float32, float64, bfloat16, float16 or complex.
        lr: the learning rate :math:`\gamma \ge 0`, a number or a tensor of one element. Default: 1e-2.
        lambd: :math:`\Lambda`, the decay of the param. Default: 1e-4.
        alpha: :math:`\alpha`, the power with which the learning rate falls. Default: 0.75.
        t0: :math:`t_0`, the step at which averaging begins. Default: 1e6.
        weight_decay: :math:`\lambda \ge 0`, an L2 penalty. Default: 0.
        foreach: accepted for torch's sake; changes nothing. Default: None.
        maximize: ascend. Default: False.
        differentiable: let autograd record the step, through torch's own code. Default: False.
        capturable: let CUDA graphs capture the step. Default: False.
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
        >>> optimizer = fusedopt.ASGD([param], lr=0.5, lambd=0.0)
        >>> param.grad = torch.tensor([1.0, -1.0])
        >>> optimizer.step()
        >>> param.tolist()
        [0.5, 2.5]

    Source: Polyak and Juditsky 1992, "Acceleration of stochastic approximation by averaging".
    """

    _rule = "asgd"
    _device_counters = True

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-2,
        lambd: float = 1e-4,
        alpha: float = 0.75,
        t0: float = 1e6,
        weight_decay: float = 0,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        capturable: bool = False,
        *,
        fused: bool | None = None,
        max_grad_norm: float | None = None,
        ema_decay: float | None = None,
        state_dtype: StateDtype = None,
        master_weights: MasterWeights | None = None,
        rounding: Rounding = "nearest",
        rounding_seed: int = 0,
        offload: Offload | None = None,
    ) -> None:
        given = {"lr": lr, "lambd": lambd, "alpha": alpha, "t0": t0, "weight_decay": weight_decay}
        flags = {"maximize": maximize, "differentiable": differentiable, "capturable": capturable}
        options = Options(max_grad_norm, ema_decay, state_dtype, master_weights, rounding, rounding_seed, offload)
        super().__init__(params, {**given, **flags}, foreach=foreach, fused=fused, options=options)
