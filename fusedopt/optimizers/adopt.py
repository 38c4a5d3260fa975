"""ADOPT."""

from typing import Any

from torch import Tensor
from torch.optim.optimizer import ParamsT

from .._core.arguments import Options, check_number
from .._core.precision import MasterWeights, Offload, Rounding, StateDtype
from .._core.standalone import Standalone


class ADOPT(Standalone):
    r"""ADOPT, Adam whose gradients are normalised by the squares before them, in one pass over memory.

    .. math::
        c = \operatorname{clip}\left(\frac{g}{\max(\sqrt{v}, \epsilon)}, \pm (t - 1)^k \right), \quad
        m \leftarrow \beta_1 m + (1 - \beta_1) c, \quad
        p \leftarrow p - \gamma m, \quad
        v \leftarrow \beta_2 v + (1 - \beta_2) g^2

    where the first step makes :math:`v = g^2` and leaves the param as it is. A penalty
    :math:`\lambda p` is added to g; with `decouple` the param decays by :math:`1 - \gamma \lambda` instead, from the
    second step on.

    Args:
        params: tensors, (name, tensor) pairs or dicts of groups; float32, float64, bfloat16, float16 or complex.
        lr: the learning rate :math:`\gamma \ge 0`, a number or a tensor of one element. Default: 1e-3.
        betas: :math:`\beta_1, \beta_2 \in [0, 1)`. Default: (0.9, 0.9999).
        eps: :math:`\epsilon \ge 0`, the least that a gradient is divided by. Default: 1e-6.
        clip_exp: the exponent :math:`k \ge 0` of the bound; None: there is no bound. Default: 0.25.
        weight_decay: :math:`\lambda \ge 0`. Default: 0.0.
        decouple: decay the param, not the gradient. Default: False.
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
        >>> optimizer = fusedopt.ADOPT([param], lr=0.5, betas=(0.5, 0.75))
        >>> for _ in range(2):
        ...     param.grad = torch.tensor([4.0, -0.25])
        ...     optimizer.step()
        >>> param.tolist()
        [0.75, 2.25]

    Source: Taniguchi et al. 2024, "ADOPT: Modified Adam Can Converge with Any :math:`\beta_2` with the Optimal Rate";
    arguments and state as in the authors' `adopt.py`, with the exponent in the place of their function `clip_lambda`,
    as timm has it.
    """

    _rule = "adopt"
    _optional = frozenset({"clip_exp"})

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.9999),
        eps: float = 1e-6,
        clip_exp: float | None = 0.25,
        weight_decay: float = 0.0,
        decouple: bool = False,
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
        given = {"lr": lr, "betas": betas, "eps": eps, "clip_exp": clip_exp, "weight_decay": weight_decay}
        flags = {"decouple": decouple, "maximize": maximize, "capturable": capturable}
        options = Options(max_grad_norm, ema_decay, state_dtype, master_weights, rounding, rounding_seed, offload)
        super().__init__(params, {**given, **flags}, foreach=foreach, fused=fused, options=options)

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        if group["clip_exp"] is not None:
            check_number("clip_exp", group["clip_exp"], "clip_exp value")
