"""Stochastic gradient descent."""

import torch

from .optimizer import FusedStep


class SGD(FusedStep, torch.optim.SGD):
    r"""Stochastic gradient descent with momentum, in one pass over memory.

    .. math::
        g \leftarrow \nabla f(p) + \lambda p, \qquad
        b \leftarrow \mu b + (1 - \tau) g \;\; (b \leftarrow g \text{ at first}), \qquad
        p \leftarrow p - \gamma (g + \mu b \text{ if nesterov, else } b)

    Args:
        params: tensors, (name, tensor) pairs or dicts of groups; float32, float64, bfloat16, float16 or complex.
        lr: the learning rate :math:`\gamma \ge 0`, a number or a tensor of one element.
        momentum: :math:`\mu \ge 0`.
        dampening: :math:`\tau`, which weakens the gradient's share of the buffer.
        weight_decay: :math:`\lambda \ge 0`, an L2 penalty.
        nesterov: step along the buffer as the next step will find it; needs momentum and no dampening.
        maximize: ascend.
        foreach: accepted for torch's sake; changes nothing.
        differentiable: let autograd record the step, through torch's own code.
        fused: accepted for torch's sake; changes nothing.

    Raises:
        ValueError: a hyper-parameter is out of range.

    Example:
        >>> param = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        >>> optimizer = fusedopt.SGD([param], lr=0.5, momentum=0.9)
        >>> param.grad = torch.tensor([1.0, -1.0])
        >>> optimizer.step()
        >>> param.tolist()
        [0.5, 2.5]

    Sources: Polyak 1964; Sutskever, Martens, Dahl and Hinton 2013, "On the importance of initialization and momentum in
    deep learning", in the form torch gives it.
    """

    _rule = "sgd"
