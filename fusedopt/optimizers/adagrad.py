"""Adagrad."""

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from .._core.arguments import Options
from .._core.optimizer import FusedStep
from .._core.precision import MasterWeights, Offload, Rounding, StateDtype


class Adagrad(FusedStep, torch.optim.Adagrad):
    r"""Adagrad, in one pass over memory.

    .. math::
        g \leftarrow \nabla f(p) + \lambda p, \quad
        v \leftarrow v + g^2, \quad
        p \leftarrow p - \frac{\gamma}{1 + (t - 1) \eta} \frac{g}{\sqrt{v} + \epsilon}

    Sparse gradients take torch's own step, which updates only the rows they hold.

    Args:
        params: tensors, (name, tensor) pairs or dicts of groups; float32, float64, bfloat16, float16 or complex.
        lr: the learning rate :math:`\gamma \ge 0`, a number or a tensor of one element. Default: 1e-2.
        lr_decay: :math:`\eta \ge 0`, by which the learning rate falls with the steps taken. Default: 0.
        weight_decay: :math:`\lambda \ge 0`, an L2 penalty. Default: 0.
        initial_accumulator_value: where :math:`v` starts, at least 0. Default: 0.
        eps: :math:`\epsilon \ge 0`, added to the root. Default: 1e-10.
        foreach: accepted for torch's sake; changes nothing. Default: None.
        maximize: ascend. Default: False.
        differentiable: let autograd record the step, through torch's own code. Default: False.
        fused: changes no result; True has a GradScaler leave unscaling and skipping to the step, as for torch's fused
            steps, and keeps `step` on the param's device on CUDA. Default: None.
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
        >>> optimizer = fusedopt.Adagrad([param], lr=0.5, eps=0.0)
        >>> param.grad = torch.tensor([4.0, -0.25])
        >>> optimizer.step()
        >>> param.tolist()
        [0.5, 2.5]

    Source: Duchi, Hazan and Singer 2011, "Adaptive Subgradient Methods for Online Learning and Stochastic
    Optimization"; the decay of the learning rate is torch's.
    """

    _rule = "adagrad"

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-2,
        lr_decay: float = 0,
        weight_decay: float = 0,
        initial_accumulator_value: float = 0,
        eps: float = 1e-10,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        max_grad_norm: float | None = None,
        ema_decay: float | None = None,
        state_dtype: StateDtype = None,
        master_weights: MasterWeights | None = None,
        rounding: Rounding = "nearest",
        rounding_seed: int = 0,
        offload: Offload | None = None,
    ) -> None:
        given = {"lr": lr, "lr_decay": lr_decay, "weight_decay": weight_decay}
        more = {"initial_accumulator_value": initial_accumulator_value, "eps": eps}
        flags = {"maximize": maximize, "differentiable": differentiable}
        options = Options(max_grad_norm, ema_decay, state_dtype, master_weights, rounding, rounding_seed, offload)
        super().__init__(params, {**given, **more, **flags}, foreach=foreach, fused=fused, options=options)

    def _check_options(self) -> None:
        # torch's constructor has begun states, and what else options keep comes with a step. A state that is begun
        # passes for whole: torch.distributed.checkpoint reads no more of a file than there is. So all is made at once.
        if any(one.partner is not None or one.average for one in map(self._precision_of, self.param_groups)):
            self.state.clear()
        super()._check_options()

    def share_memory(self) -> None:
        """Put the states "sum" into memory that processes share, as torch's does; those that are not begun, begin."""
        for group in self.param_groups:
            missing = [p for p in group["params"] if not self.state.get(p)]
            if missing:
                value = self.defaults["initial_accumulator_value"]
                self.state.update(torch.optim.Adagrad(missing, initial_accumulator_value=value).state)
                self._pack_states([{**group, "params": missing}])
        super().share_memory()
