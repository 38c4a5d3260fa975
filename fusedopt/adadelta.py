"""Adadelta."""

import torch

from .optimizer import FusedStep


class Adadelta(FusedStep, torch.optim.Adadelta):
    r"""Adadelta, in one pass over memory.

    .. math::
        g \leftarrow \nabla f(p) + \lambda p, \quad
        v \leftarrow \rho v + (1 - \rho) g^2, \quad
        \delta \leftarrow \frac{\sqrt{u + \epsilon}}{\sqrt{v + \epsilon}} g, \quad
        u \leftarrow \rho u + (1 - \rho) \delta^2, \quad
        p \leftarrow p - \gamma \delta

    Args:
        params: tensors, (name, tensor) pairs or dicts of groups; float32, float64, bfloat16, float16 or complex.
        lr: the learning rate :math:`\gamma \ge 0`, a number or a tensor of one element.
        rho: :math:`\rho \in [0, 1]`, the smoothing constant.
        eps: :math:`\epsilon \ge 0`, added under both roots.
        weight_decay: :math:`\lambda \ge 0`, an L2 penalty.
        foreach: accepted for torch's sake; changes nothing.
        capturable: let CUDA graphs capture the step; `step` is kept on the param's device then.
        maximize: ascend.
        differentiable: let autograd record the step, through torch's own code.

    Raises:
        ValueError: a hyper-parameter is out of range.

    Example:
        >>> param = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        >>> optimizer = fusedopt.Adadelta([param], rho=0.75, eps=1.0)
        >>> param.grad = torch.tensor([0.0, -2.0])
        >>> optimizer.step()
        >>> param.tolist()
        [1.0, 3.4142136573791504]

    Source: Zeiler 2012, "ADADELTA: An Adaptive Learning Rate Method".
    """

    _rule = "adadelta"
