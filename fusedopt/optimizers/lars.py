"""LARS."""

from typing import Any

from torch import Tensor
from torch.optim.optimizer import ParamsT

from .._core.arguments import Options, check_nesterov
from .._core.precision import MasterWeights, Offload, Rounding, StateDtype
from .._core.standalone import Standalone


class LARS(Standalone):
    r"""LARS, SGD with momentum and a step size for each tensor, in two passes over memory.

    .. math::
        \rho = \frac{\eta \lVert p \rVert}{\lVert g \rVert + \lambda \lVert p \rVert + \epsilon}, \quad
        b \leftarrow \mu b + (1 - \tau) \rho (g + \lambda p) \;\; (\rho (g + \lambda p) \text{ at first}), \quad
        p \leftarrow p - \gamma b

    where :math:`\rho` is 1 if either norm is 0. The first pass measures, the second updates.

    Args:
        params: tensors, (name, tensor) pairs or dicts of groups; float32, float64, bfloat16, float16 or complex.
        lr: the learning rate :math:`\gamma \ge 0`, a number or a tensor of one element. Default: 1.0.
        momentum: :math:`\mu \ge 0`. Default: 0.0.
        dampening: :math:`\tau`, which weakens the gradient's share of the buffer. Default: 0.0.
        weight_decay: :math:`\lambda \ge 0`. Default: 0.0.
        nesterov: step along the buffer as the next step will find it; needs momentum and no dampening. Default: False.
        trust_coeff: :math:`\eta \ge 0`. Default: 0.001.
        eps: :math:`\epsilon \ge 0`, added to the norms. Default: 1e-8.
        trust_clip: hold :math:`\rho` at :math:`\gamma` or below and divide it by :math:`\gamma`. Default: False.
        always_adapt: use :math:`\rho` in groups without weight decay, too. Default: False.
        maximize: ascend. Default: False.
        capturable: let CUDA graphs capture the step. Default: False.
        foreach: accepted for torch's sake; changes nothing. Default: None.
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
        lr: float | Tensor = 1.0,
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
        foreach: bool | None = None,
        fused: bool | None = None,
        max_grad_norm: float | None = None,
        ema_decay: float | None = None,
        state_dtype: StateDtype = None,
        master_weights: MasterWeights | None = None,
        rounding: Rounding = "nearest",
        rounding_seed: int = 0,
        offload: Offload | None = None,
    ) -> None:
        given = {"lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay}
        more = {"nesterov": nesterov, "trust_coeff": trust_coeff, "eps": eps, "trust_clip": trust_clip}
        flags = {"always_adapt": always_adapt, "maximize": maximize, "capturable": capturable}
        options = Options(max_grad_norm, ema_decay, state_dtype, master_weights, rounding, rounding_seed, offload)
        super().__init__(params, {**given, **more, **flags}, foreach=foreach, fused=fused, options=options)

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        check_nesterov(group)
