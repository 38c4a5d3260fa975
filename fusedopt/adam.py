"""Adam and AdamW: one rule, two places for the weight decay."""

from typing import ClassVar

import torch

from .optimizer import FusedStep


class Adam(FusedStep, torch.optim.Adam):
    r"""Adam, in one pass over memory.

    .. math::
        g \leftarrow \nabla f(p) + \lambda p, \quad
        m \leftarrow \beta_1 m + (1 - \beta_1) g, \quad
        v \leftarrow \beta_2 v + (1 - \beta_2) g^2, \quad
        p \leftarrow p - \gamma \frac{m / (1 - \beta_1^t)}{\sqrt{v / (1 - \beta_2^t)} + \epsilon}

    Args:
        params: tensors, (name, tensor) pairs or dicts of groups; float32, float64, bfloat16, float16 or complex.
        lr: the learning rate :math:`\gamma \ge 0`, a number or a tensor of one element.
        betas: :math:`\beta_1, \beta_2 \in [0, 1)`, two numbers or two tensors of one element.
        eps: :math:`\epsilon \ge 0`, added to the root.
        weight_decay: :math:`\lambda \ge 0`, an L2 penalty.
        amsgrad: divide by the largest :math:`v` so far.
        foreach: accepted for torch's sake; changes nothing.
        maximize: ascend.
        capturable: let CUDA graphs capture the step; `step` is kept on the param's device then.
        differentiable: let autograd record the step, through torch's own code.
        fused: changes no result; on CUDA `step` is kept on the param's device then, as torch's fused step has it.
        decoupled_weight_decay: decay the param by :math:`1 - \gamma \lambda` instead, as AdamW does.

    Raises:
        ValueError: a hyper-parameter is out of range.

    Example:
        >>> param = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        >>> optimizer = fusedopt.Adam([param], lr=0.5)
        >>> param.grad = torch.tensor([4.0, -0.25])
        >>> optimizer.step()
        >>> param.tolist()
        [0.5, 2.5]

    Sources: Kingma and Ba 2015, "Adam: A Method for Stochastic Optimization"; Reddi, Kale and Kumar 2018, "On the
    Convergence of Adam and Beyond" (amsgrad).
    """

    _rule = "adam"
    _rule_defaults: ClassVar = {"decoupled_weight_decay": False}


class AdamW(Adam, torch.optim.AdamW):
    r"""Adam with decoupled weight decay, in one pass over memory.

    .. math::
        p \leftarrow (1 - \gamma \lambda) p, \quad
        m \leftarrow \beta_1 m + (1 - \beta_1) g, \quad
        v \leftarrow \beta_2 v + (1 - \beta_2) g^2, \quad
        p \leftarrow p - \gamma \frac{m / (1 - \beta_1^t)}{\sqrt{v / (1 - \beta_2^t)} + \epsilon}

    Args:
        params: tensors, (name, tensor) pairs or dicts of groups; float32, float64, bfloat16, float16 or complex.
        lr: the learning rate :math:`\gamma \ge 0`, a number or a tensor of one element.
        betas: :math:`\beta_1, \beta_2 \in [0, 1)`, two numbers or two tensors of one element.
        eps: :math:`\epsilon \ge 0`, added to the root.
        weight_decay: :math:`\lambda \ge 0`.
        amsgrad: divide by the largest :math:`v` so far.
        maximize: ascend.
        foreach: accepted for torch's sake; changes nothing.
        capturable: let CUDA graphs capture the step; `step` is kept on the param's device then.
        differentiable: let autograd record the step, through torch's own code.
        fused: changes no result; on CUDA `step` is kept on the param's device then, as torch's fused step has it.

    Raises:
        ValueError: a hyper-parameter is out of range.

    Example:
        >>> param = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        >>> optimizer = fusedopt.AdamW([param], lr=0.5, weight_decay=0.5)
        >>> param.grad = torch.tensor([4.0, -0.25])
        >>> optimizer.step()
        >>> param.tolist()
        [0.25, 2.0]

    Source: Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization".
    """

    _rule_defaults: ClassVar = {"decoupled_weight_decay": True}
