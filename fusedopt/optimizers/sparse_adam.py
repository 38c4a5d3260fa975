"""SparseAdam."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from .._core.arguments import Options
from .._core.optimizer import FusedStep
from .._core.precision import MasterWeights, Rounding, StateDtype


class SparseAdam(FusedStep, torch.optim.SparseAdam):
    r"""Adam on the rows that a sparse gradient holds, in one pass over these rows.

    .. math::
        m \leftarrow \beta_1 m + (1 - \beta_1) g, \quad
        v \leftarrow \beta_2 v + (1 - \beta_2) g^2, \quad
        p \leftarrow p - \gamma \frac{\sqrt{1 - \beta_2^t}}{1 - \beta_1^t} \frac{m}{\sqrt{v} + \epsilon}

    for the rows in the gradient of an `nn.Embedding(sparse=True)`; all others, and their averages, stay as they are. As
    in torch, `step` is a Python number in the state, and a gradient without rows counts as a step. States in 8 or 4
    bits need rows of a multiple of 256 elements. There is no `ema_decay`: an average moves in every row at every step.

    Args:
        params: tensors, (name, tensor) pairs or dicts of groups; float32, float64, bfloat16 or float16.
        lr: the learning rate :math:`\gamma > 0`, a number or a tensor of one element. Default: 1e-3.
        betas: :math:`\beta_1, \beta_2 \in [0, 1)`. Default: (0.9, 0.999).
        eps: :math:`\epsilon > 0`, added to the root. Default: 1e-8.
        maximize: ascend. Default: False.
        foreach: accepted for torch's sake; changes nothing. Default: None.
        fused: changes no result; True has a GradScaler leave unscaling and skipping to the step, as for torch's fused
            steps. Default: None.
        capturable: let CUDA graphs capture a step whose gradients are coalesced; `step` is a tensor on the param's
            device then. Default: False.
        max_grad_norm: scale gradients inside the update so that the norm of all together is at most this. Default:
            None.
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
        ValueError: a hyper-parameter is out of range, or a param is sparse or complex.

    Example:
        >>> embedding = torch.nn.Embedding(1000, 4, sparse=True)
        >>> optimizer = fusedopt.SparseAdam(embedding.parameters(), lr=0.5)
        >>> before = embedding.weight.detach().clone()
        >>> embedding(torch.tensor([3, 7])).sum().backward()
        >>> optimizer.step()
        >>> (embedding.weight != before).any(1).nonzero().flatten().tolist()
        [3, 7]

    Source: Kingma and Ba 2015, "Adam: A Method for Stochastic Optimization", masked as torch does it.
    """

    _rule = "sparse_adam"
    _beyond: ClassVar = {"capturable": False}

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        maximize: bool = False,
        *,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        max_grad_norm: float | None = None,
        state_dtype: StateDtype = None,
        master_weights: MasterWeights | None = None,
        rounding: Rounding = "nearest",
        rounding_seed: int = 0,
    ) -> None:
        given = {"lr": lr, "betas": betas, "eps": eps, "maximize": maximize, "capturable": capturable}
        options = Options(max_grad_norm, None, state_dtype, master_weights, rounding, rounding_seed)
        super().__init__(params, given, foreach=foreach, fused=fused, options=options)
