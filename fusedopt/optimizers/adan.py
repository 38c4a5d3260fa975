"""Adan."""

from typing import ClassVar

from torch import Tensor
from torch.optim.optimizer import ParamsT

from .._core.arguments import Options
from .._core.precision import MasterWeights, Offload, Rounding, StateDtype
from .._core.standalone import Standalone


class Adan(Standalone):
    r"""Adan, adaptive Nesterov momentum, in one pass over memory.

    .. math::
        d = g - g_{\text{prev}} \;\; (0 \text{ at first}), \quad
        m \leftarrow \beta_1 m + (1 - \beta_1) g, \quad
        v \leftarrow \beta_2 v + (1 - \beta_2) d, \quad
        n \leftarrow \beta_3 n + (1 - \beta_3) (g + \beta_2 d)^2, \\
        p \leftarrow \frac{1}{1 + \gamma \lambda} \left( p - \gamma
        \frac{m / (1 - \beta_1^t) + \beta_2 v / (1 - \beta_2^t)}{\sqrt{n / (1 - \beta_3^t)} + \epsilon} \right)

    The paper's betas are one minus these. Each param counts its own steps in its state, where the reference has one
    counter a group.

    Args:
        params: tensors, (name, tensor) pairs or dicts of groups; float32, float64, bfloat16, float16 or complex.
        lr: the learning rate :math:`\gamma \ge 0`, a number or a tensor of one element. Default: 1e-3.
        betas: :math:`\beta_1, \beta_2, \beta_3 \in [0, 1)`. Default: (0.98, 0.92, 0.99).
        eps: :math:`\epsilon \ge 0`, added to the root. Default: 1e-8.
        weight_decay: :math:`\lambda \ge 0`. Default: 0.0.
        no_prox: decay the param before the step as AdamW does, by :math:`1 - \gamma \lambda`, not after it. Default:
            False.
        maximize: ascend. Default: False.
        capturable: let CUDA graphs capture the step; `step` is kept on the param's device then. Default: False.
        foreach: accepted for torch's sake; changes nothing. Default: None.
        fused: changes no result; True has a GradScaler leave unscaling and skipping to the step, as for torch's fused
            steps. Default: None.
        caution: step along :math:`m` only in elements where it agrees with the gradient in sign, and further in these,
            by the inverse of their share of the tensor (at most 1000 times); :math:`v`'s part of the step stays. In
            groups with it a step takes two passes. Default: False.
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
        >>> optimizer = fusedopt.Adan([param], lr=0.5, betas=(0.5, 0.5, 0.75), eps=0.0)
        >>> param.grad = torch.tensor([4.0, -0.25])
        >>> optimizer.step()
        >>> param.tolist()
        [0.5, 2.5]

    Sources: Xie et al. 2022, "Adan: Adaptive Nesterov Momentum Algorithm for Faster Optimizing Deep Models";
    arguments and state as in sail-sg/Adan's `adan.py`, whose clipping of all gradients is not part of it. Liang et al.
    2024, "Cautious Optimizers: Improving Training with One Line of Code" (caution), as timm has it.
    """

    _rule = "adan"
    _beyond: ClassVar = {"caution": False}

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float, float] = (0.98, 0.92, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        no_prox: bool = False,
        *,
        maximize: bool = False,
        capturable: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        caution: bool = False,
        max_grad_norm: float | None = None,
        ema_decay: float | None = None,
        state_dtype: StateDtype = None,
        master_weights: MasterWeights | None = None,
        rounding: Rounding = "nearest",
        rounding_seed: int = 0,
        offload: Offload | None = None,
    ) -> None:
        given = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "no_prox": no_prox}
        flags = {"maximize": maximize, "capturable": capturable, "caution": caution}
        options = Options(max_grad_norm, ema_decay, state_dtype, master_weights, rounding, rounding_seed, offload)
        super().__init__(params, {**given, **flags}, foreach=foreach, fused=fused, options=options)
