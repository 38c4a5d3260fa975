"""Lion."""

from typing import Any

import torch
from torch.optim.optimizer import ParamsT

from .standalone import Standalone


class Lion(Standalone):
    r"""Lion, the sign of an interpolated momentum, in one pass over memory.

    .. math::
        p \leftarrow (1 - \gamma \lambda) p - \gamma \operatorname{sign}(\beta_1 m + (1 - \beta_1) g), \quad
        m \leftarrow \beta_2 m + (1 - \beta_2) g

    where :math:`\operatorname{sign}(0) = 0`. Its authors start with a learning rate 3 to 10 times smaller than AdamW's
    and a weight decay larger by as much.

    Args:
        params: tensors, (name, tensor) pairs or dicts of groups; float32, float64, bfloat16, float16 or complex.
        lr: the learning rate :math:`\gamma \ge 0`, a number or a tensor of one element.
        betas: :math:`\beta_1, \beta_2 \in [0, 1)`.
        weight_decay: :math:`\lambda \ge 0`, decoupled.
        maximize: ascend.
        capturable: let CUDA graphs capture the step.

    Raises:
        ValueError: a hyper-parameter is out of range.

    Example:
        >>> param = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        >>> optimizer = fusedopt.Lion([param], lr=0.5)
        >>> param.grad = torch.tensor([4.0, -0.25])
        >>> optimizer.step()
        >>> param.tolist()
        [0.5, 2.5]

    Source: Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms"; arguments and state as in google/automl's
    `lion_pytorch.py`.
    """

    _rule = "lion"

    def __init__(
        self,
        params: ParamsT,
        lr: float | torch.Tensor = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        capturable: bool = False,
        **options: Any,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "maximize": maximize, "capturable": capturable}, **options)
