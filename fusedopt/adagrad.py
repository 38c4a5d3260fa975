"""Adagrad."""

import torch

from .optimizer import FusedStep


class Adagrad(FusedStep, torch.optim.Adagrad):
    r"""Adagrad, in one pass over memory.

    .. math::
        g \leftarrow \nabla f(p) + \lambda p, \quad
        v \leftarrow v + g^2, \quad
        p \leftarrow p - \frac{\gamma}{1 + (t - 1) \eta} \frac{g}{\sqrt{v} + \epsilon}

    Sparse gradients take torch's own step, which updates only the rows they hold.

    Args:
        params: tensors, (name, tensor) pairs or dicts of groups; float32, float64, bfloat16, float16 or complex.
        lr: the learning rate :math:`\gamma \ge 0`, a number or a tensor of one element.
        lr_decay: :math:`\eta \ge 0`, by which the learning rate falls with the steps taken.
        weight_decay: :math:`\lambda \ge 0`, an L2 penalty.
        initial_accumulator_value: where :math:`v` starts, at least 0.
        eps: :math:`\epsilon \ge 0`, added to the root.
        foreach: accepted for torch's sake; changes nothing.
        maximize: ascend.
        differentiable: let autograd record the step, through torch's own code.
        fused: changes no result; on CUDA `step` is kept on the param's device then, as torch's fused step has it.

    Raises:
        ValueError: a hyper-parameter is out of range.

    Example:
        >>> param = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        >>> optimizer = fusedopt.Adagrad([param], lr=0.5, eps=0.0)
        >>> param.grad = torch.tensor([4.0, -0.25])
        >>> optimizer.step()
        >>> param.tolist()
        [0.5, 2.5]

    Source: Duchi, Hazan and Singer 2011, "Adaptive Subgradient Methods for Online Learning and Stochastic
    Optimization"; the decay of the learning rate is torch's.
    """

    _rule = "adagrad"
