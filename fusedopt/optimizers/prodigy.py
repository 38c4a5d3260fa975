"""Prodigy."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from .._core.arguments import Options, check_number
from .._core.divided import refuse_part
from .._core.optimizer import Leftover
from .._core.precision import MasterWeights, Rounding, StateDtype
from .._core.standalone import Standalone

# What a step concludes from its sums, in every group, under the reference's names.
_KEPT = ("d", "d_max", "d_numerator", "k")


class Prodigy(Standalone):
    r"""Adam whose learning rate is a distance :math:`d` that it estimates on the way, in two passes over memory.

    .. math::
        r \leftarrow \beta_3 r + \frac{d}{d_0} d \gamma \sum \langle g, p_0 - p \rangle, \quad
        s \leftarrow \beta_3 s + \frac{d}{d_0} d \gamma g, \quad
        \hat{d} = c \frac{r}{\sum \lVert s \rVert_1}, \\
        m \leftarrow \beta_1 m + (1 - \beta_1) d g, \quad
        v \leftarrow \beta_2 v + (1 - \beta_2) d^2 g^2, \quad
        p \leftarrow (1 - d \gamma \lambda) p - d \gamma \frac{m}{\sqrt{v} + d' \epsilon}

    where the sums are over all params of all groups, :math:`p_0` is where a param began, and
    :math:`d' = \max(d, \hat{d})` is the next step's :math:`d`. It is the same for all groups, which hold it as "d", and
    beside it "d_max", "d_numerator" and "k", the steps so far: as numbers, or on a GPU, for which no step waits, as
    tensors. A step whose sums are not finite leaves it as it is. Params are on one device. Groups whose `lr` is 0 stand
    still and count for nothing.

    States in float16 are too coarse for :math:`d^2 g^2`, and an :math:`s` or :math:`p_0` that is rounded makes another
    distance: of a `state_dtype` only "exp_avg" and "exp_avg_sq" should have a part.

    Args:
        params: tensors, (name, tensor) pairs or dicts of groups; float32, float64, bfloat16, float16 or complex.
        lr: the factor :math:`\gamma \ge 0` of the distance, for schedules; a number or a tensor of one element. It is
            the same in all groups, or 0. Default: 1.0.
        betas: :math:`\beta_1, \beta_2 \in [0, 1)`, the same in all groups. Default: (0.9, 0.999).
        beta3: :math:`\beta_3 \in [0, 1)`, None for the root of :math:`\beta_2`. Default: None.
        eps: :math:`\epsilon > 0`. Default: 1e-8.
        weight_decay: :math:`\lambda \ge 0`. Default: 0.0.
        decouple: decay the param as above, else add :math:`\lambda p` to the gradient. Default: True.
        use_bias_correction: multiply :math:`\gamma` by :math:`\sqrt{1 - \beta_2^k} / (1 - \beta_1^k)`. Default: False.
        safeguard_warmup: leave :math:`\gamma` out of :math:`s`, for long warm-ups. Default: False.
        d0: where :math:`d` begins, positive. Default: 1e-6.
        d_coef: :math:`c > 0`, by which to make all steps larger or smaller. Default: 1.0.
        growth_rate: the most that :math:`d` may be multiplied by in a step, positive. Default: inf.
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
        ValueError: a hyper-parameter is out of range. From a step, groups differ in one that is for all.

    Example:
        >>> param = torch.nn.Parameter(torch.tensor([1.0, -1.0]))
        >>> optimizer = fusedopt.Prodigy([param], d0=0.1)
        >>> for _ in range(3):
        ...     param.grad = param.detach().clone()
        ...     optimizer.step()
        >>> [round(p, 4) for p in param.tolist()], round(optimizer.param_groups[0]["d"], 4)
        ([-0.3016, 0.3016], 0.2544)

    Source: Mishchenko and Defazio 2023, "Prodigy: An Expeditiously Adaptive Parameter-Free Learner"; arguments, state
    and results as in the authors' package `prodigyopt` 1.1.2, but for `slice_p`, and `fsdp_in_use`: shards are DTensors
    here.
    """

    _rule = "prodigy"
    _optional = frozenset({"beta3"})

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1.0,
        betas: tuple[float, float] = (0.9, 0.999),
        beta3: float | None = None,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decouple: bool = True,
        use_bias_correction: bool = False,
        safeguard_warmup: bool = False,
        d0: float = 1e-6,
        d_coef: float = 1.0,
        growth_rate: float = math.inf,
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
        given: dict[str, Any] = {"lr": lr, "betas": betas, "beta3": beta3, "eps": eps, "weight_decay": weight_decay}
        given |= {"decouple": decouple, "use_bias_correction": use_bias_correction}
        given |= {"safeguard_warmup": safeguard_warmup, "d0": d0, "d_coef": d_coef, "growth_rate": growth_rate}
        given |= {"d": d0, "d_max": d0, "d_numerator": 0.0, "k": 0, "maximize": maximize, "capturable": capturable}
        options = Options(max_grad_norm, ema_decay, state_dtype, master_weights, rounding, rounding_seed)
        super().__init__(params, given, foreach=foreach, fused=fused, options=options)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of params with hyper-parameters of its own, to which the distance so far belongs as well.

        Args:
            param_group: a dict with "params" and any of the constructor's arguments.

        Raises:
            ValueError: a hyper-parameter is out of range, the group has an option, which is the whole optimizer's, a
                param is in another group already, or ZeroRedundancyOptimizer or FSDP1 has given this process some of
                the params.
            TypeError: a number is given as text.
            RuntimeError: a CUDA graph has captured a step, and its replays would leave the group's distance behind.
        """
        if self._captured():
            raise RuntimeError(
                "a CUDA graph has captured a step of this optimizer, and its replays would move 'd' in the groups of "
                "the capture alone, while all groups have one; call add_param_group() before the capture, or drop the "
                "graph first"
            )
        if isinstance(param_group, dict) and self.param_groups:
            first = self.param_groups[0]
            kept = {key: value.clone() if isinstance(value, Tensor) else value for key, value in _kept(first).items()}
            param_group = {**kept, **param_group}
        super().add_param_group(param_group)
        try:
            refuse_part(
                self.param_groups,
                "the distance would be of those alone;",
                "use an optimizer whose steps need no other params, as AdamW",
            )
        except ValueError:
            del self.param_groups[-1]
            raise

    def _step_leftover(self, leftover: Leftover, divisor: float | torch.Tensor | None = None) -> bool:
        # Sums are of all params: with those that only another form of their gradients lets step, all do.
        groups = enumerate(self.param_groups)
        every = [(index, [p for p in group["params"] if p.grad is not None]) for index, group in groups]
        super()._step_leftover(every, divisor)
        return True

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        if group.get("beta3") is not None:
            check_number("beta3", group["beta3"], "beta3 value", below=1.0)
        for name in ("eps", "d0", "d_coef", "growth_rate"):
            check_number(name, group[name], f"{name} value")
            if group[name] == 0:
                raise ValueError(f"Invalid {name} value: {group[name]}")


def _kept(group: dict[str, Any]) -> dict[str, Any]:
    return {key: group[key] for key in _KEPT}
