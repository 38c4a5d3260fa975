"""LAMB."""

from typing import Any

import torch
from torch.optim.optimizer import ParamsT

from .standalone import Standalone


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
        lr: the learning rate :math:`\gamma \ge 0`, a number or a tensor of one element.
        bias_correction: divide the averages by :math:`1 - \beta^t`.
        betas: :math:`\beta_1, \beta_2 \in [0, 1)`.
        eps: :math:`\epsilon \ge 0`, added to the root.
        weight_decay: :math:`\lambda \ge 0`.
        grad_averaging: weigh the gradient in :math:`m` by :math:`1 - \beta_1`, else by 1.
        trust_clip: hold the ratio of the norms at 1 or below.
        always_adapt: use the ratio in groups without weight decay, too.
        maximize: ascend.
        capturable: let CUDA graphs capture the step; `step` is kept on the param's device then.

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
    state as in timm's `lamb.py`, whose clipping of all gradients is not part of it.
    """

    _rule = "lamb"

    def __init__(
        self,
        params: ParamsT,
        lr: float | torch.Tensor = 1e-3,
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
        **options: Any,
    ) -> None:
        defaults = {
            "lr": lr,
            "bias_correction": bias_correction,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
        }
        flags = {"grad_averaging": grad_averaging, "trust_clip": trust_clip, "always_adapt": always_adapt}
        super().__init__(params, {**defaults, **flags, "maximize": maximize, "capturable": capturable}, **options)
