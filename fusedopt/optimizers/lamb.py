"""LAMB."""

from typing import Any, ClassVar

from torch import Tensor
from torch.optim.optimizer import ParamsT

from .._core.arguments import Options, check_number
from .._core.precision import MasterWeights, Offload, Rounding, StateDtype
from .._core.standalone import Standalone


class LAMB(Standalone):
    r"""LAMB, Adam's direction with a step size for each tensor, in two passes over memory.

    .. math::
        m \leftarrow \beta_1 m + (1 - \beta_1) g, \quad
        v \leftarrow \beta_2 v + (1 - \beta_2) g^2, \quad
        u = \frac{m / (1 - \beta_1^t)}{\sqrt{v / (1 - \beta_2^t)} + \epsilon} + \lambda p, \quad
        p \leftarrow p - \gamma \frac{\lVert p \rVert}{\lVert u \rVert} u

    where the ratio of the norms of the whole tensors is 1 if either is 0. The first pass measures, the second updates.

    Args:
        params: tensors, (name, tensor) pairs or dicts of groups; float32, float64, bfloat16, float16 or complex.
        lr: the learning rate :math:`\gamma \ge 0`, a number or a tensor of one element. Default: 1e-3.
        bias_correction: divide the averages by :math:`1 - \beta^t`. Default: True.
        betas: :math:`\beta_1, \beta_2 \in [0, 1)`. Default: (0.9, 0.999).
        eps: :math:`\epsilon \ge 0`, added to the root. Default: 1e-6.
        weight_decay: :math:`\lambda \ge 0`. Default: 0.01.
        grad_averaging: weigh the gradient in :math:`m` by :math:`1 - \beta_1`, else by 1. Default: True.
        trust_clip: hold the ratio of the norms at 1 or below. Default: False.
        always_adapt: use the ratio in groups without weight decay, too. Default: False.
        maximize: ascend. Default: False.
        capturable: let CUDA graphs capture the step; `step` is kept on the param's device then. Default: False.
        foreach: accepted for torch's sake; changes nothing. Default: None.
        fused: changes no result; True has a GradScaler leave unscaling and skipping to the step, as for torch's fused
            steps. Default: None.
        decoupled_decay: decay the param by :math:`1 - \gamma \lambda` before its norm is taken, instead of adding
            :math:`\lambda p` to the update. Default: False.
        clamp_value: what :math:`\lVert p \rVert` counts as at most in the ratio, :math:`\ge 0`; None: as it is.
            Default: None.
        caution: of Adam's direction, step along the elements that agree with the gradient in sign alone, and further
            along these, by the inverse of their share of the tensor (at most 1000 times). That comes first: then
            :math:`\lambda p` is added, to all elements, and the ratio is taken of that. Default: False.
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
        >>> optimizer = fusedopt.LAMB([param], lr=0.5, eps=0.0, weight_decay=0.0, always_adapt=True)
        >>> param.grad = torch.tensor([4.0, -0.25])
        >>> optimizer.step()
        >>> [round(p, 4) for p in param.tolist()]
        [1.2322, 5.7678]

    Source: You et al. 2020, "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes"; arguments and
    state as in timm's `lamb.py`, which clips the norm of all gradients at 1 by default: that is `max_grad_norm=1.0`
    here. `clamp_value` as in torch_optimizer's `Lamb`, where it is 10 by default. Liang et al. 2024, "Cautious
    Optimizers: Improving Training with One Line of Code" (caution), in the order of timm's.
    """

    _rule = "lamb"
    _beyond: ClassVar = {"decoupled_decay": False, "clamp_value": None, "caution": False}
    _optional = frozenset({"clamp_value"})

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        bias_correction: bool = True,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        grad_averaging: bool = True,
        trust_clip: bool = False,
        always_adapt: bool = False,
        *,
        maximize: bool = False,
        capturable: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        decoupled_decay: bool = False,
        clamp_value: float | None = None,
        caution: bool = False,
        max_grad_norm: float | None = None,
        ema_decay: float | None = None,
        state_dtype: StateDtype = None,
        master_weights: MasterWeights | None = None,
        rounding: Rounding = "nearest",
        rounding_seed: int = 0,
        offload: Offload | None = None,
    ) -> None:
        given = {"lr": lr, "bias_correction": bias_correction, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        more = {"grad_averaging": grad_averaging, "trust_clip": trust_clip, "always_adapt": always_adapt}
        flags = {"maximize": maximize, "capturable": capturable}
        beyond = {"decoupled_decay": decoupled_decay, "clamp_value": clamp_value, "caution": caution}
        options = Options(max_grad_norm, ema_decay, state_dtype, master_weights, rounding, rounding_seed, offload)
        super().__init__(params, {**given, **more, **flags, **beyond}, foreach=foreach, fused=fused, options=options)

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        if group.get("clamp_value") is not None:
            check_number("clamp_value", group["clamp_value"], "clamp_value value")
