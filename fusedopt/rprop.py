"""Resilient backpropagation."""

import torch

from .optimizer import FusedStep


class Rprop(FusedStep, torch.optim.Rprop):
    r"""Resilient backpropagation, in one pass over memory.

    .. math::
        s \leftarrow \begin{cases} \min(\eta^+ s, s_{\max}) & g \, g_{\text{prev}} > 0 \\
        \max(\eta^- s, s_{\min}), \; g \leftarrow 0 & g \, g_{\text{prev}} < 0 \\
        s & \text{else} \end{cases} \qquad
        p \leftarrow p - \operatorname{sign}(g) s

    Only the sign of the gradient counts: for full batches, not for stochastic ones.

    Args:
        params: tensors, (name, tensor) pairs or dicts of groups; float32, float64, bfloat16, float16 or complex.
        lr: where every element's step size starts, a number or a tensor of one element, at least 0.
        etas: :math:`0 < \eta^- < 1 < \eta^+`, by which step sizes shrink and grow.
        step_sizes: :math:`s_{\min}, s_{\max}`.
        capturable: let CUDA graphs capture the step; `step` is kept on the param's device then.
        foreach: accepted for torch's sake; changes nothing.
        maximize: ascend.
        differentiable: let autograd record the step, through torch's own code.

    Raises:
        ValueError: a hyper-parameter is out of range.

    Example:
        >>> param = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        >>> optimizer = fusedopt.Rprop([param], lr=0.5)
        >>> param.grad = torch.tensor([1.0, -0.25])
        >>> optimizer.step()
        >>> param.tolist()
        [0.5, 2.5]

    Source: Riedmiller and Braun 1993, "A direct adaptive method for faster backpropagation learning: the RPROP
    algorithm".
    """

    _rule = "rprop"
