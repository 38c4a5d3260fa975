"""NovoGrad."""

from typing import Any

from torch import Tensor
from torch.optim.optimizer import ParamsT

from .._core.arguments import Options
from .._core.precision import MasterWeights, Rounding, StateDtype
from .._core.standalone import Standalone


class NovoGrad(Standalone):
    r"""NovoGrad, whose second moment is one number for a whole tensor, in two passes over memory.

    .. math::
        v \leftarrow \beta_2 v + (1 - \beta_2) \lVert g \rVert^2 \;\; (\lVert g \rVert^2 \text{ at first}), \quad
        m \leftarrow \beta_1 m + \left( \frac{g}{\sqrt{v} + \epsilon} + \lambda p \right), \quad
        p \leftarrow p - \gamma m

    The first pass reads the gradient alone. Of states it takes one like the param, half of Adam's, and :math:`v` as a
    number beside `step`, `exp_avg_norm_sq`, which no `state_dtype` concerns; on a GPU both are kept there.

    Args:
        params: tensors, (name, tensor) pairs or dicts of groups; float32, float64, bfloat16, float16 or complex.
        lr: the learning rate :math:`\gamma \ge 0`, a number or a tensor of one element. Default: 1e-3.
        betas: :math:`\beta_1, \beta_2 \in [0, 1)`. Default: (0.95, 0.98).
        eps: :math:`\epsilon \ge 0`, added to the root. Default: 1e-8.
        weight_decay: :math:`\lambda \ge 0`. Default: 0.0.
        grad_averaging: weigh what is added to :math:`m` by :math:`1 - \beta_1`, else by 1. Default: False.
        decoupled_decay: decay the param by :math:`1 - \gamma \lambda` before the step, instead of adding
            :math:`\lambda p` to the update. Default: False.
        maximize: ascend. Default: False.
        capturable: let CUDA graphs capture the step; `step` is kept on the param's device then. Default: False.
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

    Raises:
        ValueError: a hyper-parameter is out of range.

    Example:
        >>> param = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        >>> optimizer = fusedopt.NovoGrad([param], lr=0.5)
        >>> param.grad = torch.tensor([3.0, -4.0])
        >>> optimizer.step()
        >>> [round(p, 4) for p in param.tolist()]
        [0.7, 2.4]

    Source: Ginsburg et al. 2019, "Stochastic Gradient Methods with Layer-wise Adaptive Moments for Training of Deep
    Networks"; arguments and results as in timm's `NvNovoGrad`, but for its `amsgrad` and `corrected_weight_decay`.
    """

    _rule = "novograd"

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.95, 0.98),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        grad_averaging: bool = False,
        decoupled_decay: bool = False,
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
    ) -> None:
        given: dict[str, Any] = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        flags = {"grad_averaging": grad_averaging, "decoupled_decay": decoupled_decay}
        flags |= {"maximize": maximize, "capturable": capturable}
        options = Options(max_grad_norm, ema_decay, state_dtype, master_weights, rounding, rounding_seed)
        super().__init__(params, {**given, **flags}, foreach=foreach, fused=fused, options=options)
