"""Schedule-Free RAdam."""

from typing import Any

from torch import Tensor
from torch.optim.optimizer import ParamsT

from .._core.arguments import Options
from .._core.precision import MasterWeights, Offload, Rounding, StateDtype
from .._core.schedule_free import ScheduleFree


class RAdamScheduleFree(ScheduleFree):
    r"""RAdam without a schedule of the learning rate, in one pass over memory.

    .. math::
        v \leftarrow \beta_2 v + (1 - \beta_2) g^2, \quad
        u = \frac{g}{\sqrt{v / (1 - \beta_2^t)} + \epsilon} + \lambda y, \quad
        z \leftarrow z - \gamma_t u, \quad
        x \leftarrow (1 - c_t) x + c_t z, \quad
        y = (1 - \beta_1) z + \beta_1 x, \quad
        c_t = \frac{t^r \gamma_{max}^q}{\sum_{i \le t} i^r \gamma_{max, i}^q}

    where :math:`\gamma_t` is :math:`\gamma` times RAdam's rectification. While that is not defined, in the first steps,
    nothing moves, or with `silent_sgd_phase=False` :math:`u = g + \lambda y`.

    The params are y, at which gradients are taken. `eval()` puts x into their place and `train()` brings y back,
    without a copy of either; training begins with y. Steps count for each param, not for its group.


    Args:
        params: tensors, (name, tensor) pairs or dicts of groups; float32, float64, bfloat16, float16 or complex.
        lr: the learning rate :math:`\gamma \ge 0`, a number or a tensor of one element. Default: 0.0025.
        betas: :math:`\beta_1 \in (0, 1)` and :math:`\beta_2 \in [0, 1)`. Default: (0.9, 0.999).
        eps: :math:`\epsilon \ge 0`, added to the root. Default: 1e-8.
        weight_decay: :math:`\lambda \ge 0`, of y. Default: 0.0.
        r: steps weigh in the average as :math:`t^r`. Default: 0.0.
        weight_lr_power: and as the largest learning rate so far to this power. Default: 2.0.
        silent_sgd_phase: stand still while there is no rectification. Default: True.
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
        offload: "cpu" has states of params on a GPU, and master weights, in host memory, where the CPU steps them:
            gradients come and params go back in parts of 32 MiB, each while another is stepped; the same bits. Default:
            None.

    Raises:
        ValueError: a hyper-parameter is out of range.

    Example:
        >>> param = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        >>> optimizer = fusedopt.RAdamScheduleFree([param], lr=0.5, betas=(0.5, 0.0), silent_sgd_phase=False)
        >>> for _ in range(2):
        ...     param.grad = torch.tensor([1.0, -1.0])
        ...     optimizer.step()
        >>> param.tolist()
        [0.125, 2.875]
        >>> optimizer.eval()
        >>> param.tolist()
        [0.25, 2.75]

    Source: Defazio et al. 2024, "The Road Less Scheduled"; arguments and results are those of Meta's package
    `schedulefree`, but for the mode at the beginning.
    """

    _rule = "radam_schedule_free"

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.0025,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
        silent_sgd_phase: bool = True,
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
        given: dict[str, Any] = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "r": r}
        given |= {"weight_lr_power": weight_lr_power, "silent_sgd_phase": silent_sgd_phase}
        flags = {"maximize": maximize, "capturable": capturable}
        options = Options(max_grad_norm, ema_decay, state_dtype, master_weights, rounding, rounding_seed, offload)
        super().__init__(params, {**given, **flags}, foreach=foreach, fused=fused, options=options)
