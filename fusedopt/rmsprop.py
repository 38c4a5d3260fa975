"""RMSprop."""

import torch

from .optimizer import FusedStep


class RMSprop(FusedStep, torch.optim.RMSprop):
    r"""RMSprop, plain, centered and with momentum, in one pass over memory.

    .. math::
        g \leftarrow \nabla f(p) + \lambda p, \quad
        v \leftarrow \alpha v + (1 - \alpha) g^2, \quad
        b \leftarrow \mu b + \frac{g}{\sqrt{v - \bar g^2} + \epsilon}, \quad
        p \leftarrow p - \gamma b

    where :math:`\bar g`, the gradient's moving average, is kept if `centered` and else 0. The variance
    :math:`v - \bar g^2` is held at 0 where rounding would make it negative and torch's root NaN.

    Args:
        params: tensors, (name, tensor) pairs or dicts of groups; float32, float64, bfloat16, float16 or complex.
        lr: the learning rate :math:`\gamma \ge 0`, a number or a tensor of one element.
        alpha: :math:`\alpha \ge 0`, the smoothing constant.
        eps: :math:`\epsilon \ge 0`, added to the root.
        weight_decay: :math:`\lambda \ge 0`, an L2 penalty.
        momentum: :math:`\mu \ge 0`.
        centered: divide by the gradient's estimated deviation instead of its root mean square.
        capturable: let CUDA graphs capture the step; `step` is kept on the param's device then.
        foreach: accepted for torch's sake; changes nothing.
        maximize: ascend.
        differentiable: let autograd record the step, through torch's own code.

    Raises:
        ValueError: a hyper-parameter is out of range.

    Example:
        >>> param = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        >>> optimizer = fusedopt.RMSprop([param], lr=0.5, alpha=0.75)
        >>> param.grad = torch.tensor([4.0, -4.0])
        >>> optimizer.step()
        >>> param.tolist()
        [0.0, 3.0]

    Sources: Hinton 2012, lecture 6e of "Neural Networks for Machine Learning"; Graves 2013, "Generating Sequences With
    Recurrent Neural Networks" (centered).
    """

    _rule = "rmsprop"
