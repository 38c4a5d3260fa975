"""AdEMAMix."""

from typing import Any

from torch import Tensor
from torch.optim.optimizer import ParamsT

from .._core.arguments import Options, check_number
from .._core.precision import MasterWeights, Offload, Rounding, StateDtype
from .._core.standalone import Standalone


class AdEMAMix(Standalone):
    r"""AdEMAMix, Adam with a second, much slower average of the gradients, in one pass over memory.

    .. math::
        m \leftarrow \beta_1 m + (1 - \beta_1) g, \quad
        s \leftarrow \beta_3^{(t)} s + (1 - \beta_3^{(t)}) g, \quad
        v \leftarrow \beta_2 v + (1 - \beta_2) g^2, \\
        p \leftarrow (1 - \gamma \lambda) p
        - \gamma \frac{m / (1 - \beta_1^t) + \alpha^{(t)} s}{\sqrt{v / (1 - \beta_2^t)} + \epsilon}

    where :math:`\alpha^{(t)}` grows to :math:`\alpha` in proportion to t, and :math:`\beta_3^{(t)}` from
    :math:`\beta_1` to :math:`\beta_3` so that the half-life of the average does. One step of the slow average is less
    than 16 bits tell from none: for params in 16 bits give `master_weights`, `rounding` or `state_dtype`.

    Args:
        params: tensors, (name, tensor) pairs or dicts of groups; float32, float64, bfloat16, float16 or complex.
        lr: the learning rate :math:`\gamma \ge 0`, a number or a tensor of one element. Default: 1e-3.
        betas: :math:`\beta_1, \beta_2, \beta_3 \in [0, 1)`. Default: (0.9, 0.999, 0.9999).
        alpha: :math:`\alpha \ge 0`, the weight of the slow average. Default: 5.0.
        t_alpha: the steps in which it grows to that, :math:`\ge 0`; None: it is that from the start. Default: None.
        t_beta3: the steps in which :math:`\beta_3` is reached, :math:`\ge 0`; None: it is there from the start.
            Default: None.
        eps: :math:`\epsilon \ge 0`, added to the root. Default: 1e-8.
        weight_decay: :math:`\lambda \ge 0`, decoupled. Default: 1e-2.
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
        >>> optimizer = fusedopt.AdEMAMix([param], lr=0.5, betas=(0.5, 0.75, 0.75), alpha=4.0, weight_decay=0.0)
        >>> param.grad = torch.tensor([4.0, -0.25])
        >>> optimizer.step()
        >>> param.tolist()
        [0.0, 3.0]

    Source: Pagliardini et al. 2024, "The AdEMAMix Optimizer: Better, Faster, Older"; arguments as in bitsandbytes'
    `AdEMAMix`, whose state has both averages in one tensor.
    """

    _rule = "ademamix"
    _optional = frozenset({"t_alpha", "t_beta3"})

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
        alpha: float = 5.0,
        t_alpha: int | None = None,
        t_beta3: int | None = None,
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
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
        given = {"lr": lr, "betas": betas, "alpha": alpha, "t_alpha": t_alpha, "t_beta3": t_beta3}
        flags = {"eps": eps, "weight_decay": weight_decay, "maximize": maximize, "capturable": capturable}
        options = Options(max_grad_norm, ema_decay, state_dtype, master_weights, rounding, rounding_seed, offload)
        super().__init__(params, {**given, **flags}, foreach=foreach, fused=fused, options=options)

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        for name in ("alpha", "t_alpha", "t_beta3"):
            if not (name in self._optional and group[name] is None):
                check_number(name, group[name], f"{name} value")
