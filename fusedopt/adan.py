"""Adan."""

from typing import Any

import torch
from torch.optim.optimizer import ParamsT

from .standalone import Standalone


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
        lr: the learning rate :math:`\gamma \ge 0`, a number or a tensor of one element.
        betas: :math:`\beta_1, \beta_2, \beta_3 \in [0, 1)`.
        eps: :math:`\epsilon \ge 0`, added to the root.
        weight_decay: :math:`\lambda \ge 0`.
        no_prox: decay the param before the step as AdamW does, by :math:`1 - \gamma \lambda`, not after it.
        maximize: ascend.
        capturable: let CUDA graphs capture the step; `step` is kept on the param's device then.

    Raises:
        ValueError: a hyper-parameter is out of range.

    Example:
        >>> param = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        >>> optimizer = fusedopt.Adan([param], lr=0.5, betas=(0.5, 0.5, 0.75), eps=0.0)
        >>> param.grad = torch.tensor([4.0, -0.25])
        >>> optimizer.step()
        >>> param.tolist()
        [0.5, 2.5]

    Source: Xie et al. 2022, "Adan: Adaptive Nesterov Momentum Algorithm for Faster Optimizing Deep Models";
    arguments and state as in sail-sg/Adan's `adan.py`, whose clipping of all gradients is not part of it.
    """

    _rule = "adan"

    def __init__(
        self,
        params: ParamsT,
        lr: float | torch.Tensor = 1e-3,
        betas: tuple[float, float, float] = (0.98, 0.92, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        no_prox: bool = False,
        *,
        maximize: bool = False,
        capturable: bool = False,
        **options: Any,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "no_prox": no_prox}
        super().__init__(params, {**defaults, "maximize": maximize, "capturable": capturable}, **options)
