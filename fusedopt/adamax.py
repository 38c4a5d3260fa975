"""Adamax."""

import torch

from .optimizer import FusedStep


class Adamax(FusedStep, torch.optim.Adamax):
    r"""Adamax, Adam with the infinity norm, in one pass over memory.

    .. math::
        g \leftarrow \nabla f(p) + \lambda p, \quad
        m \leftarrow \beta_1 m + (1 - \beta_1) g, \quad
        u \leftarrow \max(\beta_2 u, |g| + \epsilon), \quad
        p \leftarrow p - \frac{\gamma}{1 - \beta_1^t} \frac{m}{u}

    Args:
        params: tensors, (name, tensor) pairs or dicts of groups; float32, float64, bfloat16, float16 or complex.
        lr: the learning rate :math:`\gamma \ge 0`, a number or a tensor of one element.
        betas: :math:`\beta_1, \beta_2 \in [0, 1)`.
        eps: :math:`\epsilon \ge 0`, added to the magnitude of the gradient.
        weight_decay: :math:`\lambda \ge 0`, an L2 penalty.
        foreach: accepted for torch's sake; changes nothing.
        maximize: ascend.
        differentiable: let autograd record the step, through torch's own code.
        capturable: let CUDA graphs capture the step; `step` is kept on the param's device then.

    Raises:
        ValueError: a hyper-parameter is out of range.

    Example:
        >>> param = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        >>> optimizer = fusedopt.Adamax([param], lr=0.5, eps=0.0, betas=(0.5, 0.5))
        >>> param.grad = torch.tensor([4.0, -0.25])
        >>> optimizer.step()
        >>> param.tolist()
        [0.5, 2.5]

    Source: Kingma and Ba 2015, "Adam: A Method for Stochastic Optimization", section 7.1.
    """

    _rule = "adamax"
