"""Lion."""

from typing import ClassVar

from torch import Tensor
from torch.optim.optimizer import ParamsT

from .._core.arguments import Options
from .._core.precision import MasterWeights, Offload, Rounding, StateDtype
from .._core.standalone import Standalone


class Lion(Standalone):
    r"""Lion, the sign of an interpolated momentum, in one pass over memory.

    .. math::
        p \leftarrow (1 - \gamma \lambda) p - \gamma \operatorname{sign}(\beta_1 m + (1 - \beta_1) g), \quad
        m \leftarrow \beta_2 m + (1 - \beta_2) g

    where :math:`\operatorname{sign}(0) = 0`. Its authors start with a learning rate 3 to 10 times smaller than AdamW's
    and a weight decay larger by as much.

    Args:
        params: tensors, (name, tensor) pairs or dicts of groups; float32, float64, bfloat16, float16 or complex.
        lr: the learning rate :math:`\gamma \ge 0`, a number or a tensor of one element. Default: 1e-4.
        betas: :math:`\beta_1, \beta_2 \in [0, 1)`. Default: (0.9, 0.99).
        weight_decay: :math:`\lambda \ge 0`, decoupled. Default: 0.0.
        maximize: ascend. Default: False.
        capturable: let CUDA graphs capture the step. Default: False.
        foreach: accepted for torch's sake; changes nothing. Default: None.
        fused: changes no result; True has a GradScaler leave unscaling and skipping to the step, as for torch's fused
            steps. Default: None.
        caution: move only elements whose step goes down their gradient, and these further, by the inverse of their
            share of the tensor (at most 1000 times); in groups with it a step takes two passes. Default: False.
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
        >>> optimizer = fusedopt.Lion([param], lr=0.5)
        >>> param.grad = torch.tensor([4.0, -0.25])
        >>> optimizer.step()
        >>> param.tolist()
        [0.5, 2.5]

    Sources: Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms"; arguments and state as in
    google/automl's `lion_pytorch.py`. Liang et al. 2024, "Cautious Optimizers: Improving Training with One Line of
    Code" (caution), as timm has it.
    """

    _rule = "lion"
    _beyond: ClassVar = {"caution": False}

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
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
        given = {"lr": lr, "betas": betas, "weight_decay": weight_decay}
        flags = {"maximize": maximize, "capturable": capturable, "caution": caution}
        options = Options(max_grad_norm, ema_decay, state_dtype, master_weights, rounding, rounding_seed, offload)
        super().__init__(params, {**given, **flags}, foreach=foreach, fused=fused, options=options)
