"""Averaged stochastic gradient descent."""

import torch

from .optimizer import FusedStep


class ASGD(FusedStep, torch.optim.ASGD):
    r"""Averaged stochastic gradient descent, in one pass over memory.

    .. math::
        g \leftarrow \nabla f(p) + \lambda p, \quad
        p \leftarrow (1 - \Lambda \eta) p - \eta g, \quad
        \bar p \leftarrow \bar p + \mu (p - \bar p), \\
        \eta \leftarrow \frac{\gamma}{(1 + \Lambda \gamma t)^\alpha}, \quad
        \mu \leftarrow \frac{1}{\max(1, t - t_0)}

    The average :math:`\bar p` is `ax` in the state, :math:`\eta` starts as :math:`\gamma` and :math:`\mu` as 1; a step
    uses what the step before has left. On CUDA these counters are on the param's device, as torch's are.

    Args:
        params: tensors, (name, tensor) pairs or dicts of groups; float32, float64, bfloat16, float16 or complex.
        lr: the learning rate :math:`\gamma \ge 0`, a number or a tensor of one element.
        lambd: :math:`\Lambda`, the decay of the param.
        alpha: :math:`\alpha`, the power with which the learning rate falls.
        t0: :math:`t_0`, the step at which averaging begins.
        weight_decay: :math:`\lambda \ge 0`, an L2 penalty.
        foreach: accepted for torch's sake; changes nothing.
        maximize: ascend.
        differentiable: let autograd record the step, through torch's own code.
        capturable: let CUDA graphs capture the step.

    Raises:
        ValueError: a hyper-parameter is out of range.

    Example:
        >>> param = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        >>> optimizer = fusedopt.ASGD([param], lr=0.5, lambd=0.0)
        >>> param.grad = torch.tensor([1.0, -1.0])
        >>> optimizer.step()
        >>> param.tolist()
        [0.5, 2.5]

    Source: Polyak and Juditsky 1992, "Acceleration of stochastic approximation by averaging".
    """

    _rule = "asgd"
    _device_counters = True
