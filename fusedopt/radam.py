"""RAdam."""

import torch

from .optimizer import FusedStep


class RAdam(FusedStep, torch.optim.RAdam):
    r"""Rectified Adam, in one pass over memory.

    .. math::
        g \leftarrow \nabla f(p) + \lambda p, \quad
        m \leftarrow \beta_1 m + (1 - \beta_1) g, \quad
        v \leftarrow \beta_2 v + (1 - \beta_2) g^2, \quad
        \hat m = \frac{m}{1 - \beta_1^t}, \\
        \rho_\infty = \frac{2}{1 - \beta_2} - 1, \quad
        \rho = \rho_\infty - \frac{2 t \beta_2^t}{1 - \beta_2^t}, \quad
        r = \sqrt{\frac{(\rho - 4)(\rho - 2) \rho_\infty}{(\rho_\infty - 4)(\rho_\infty - 2) \rho}}, \\
        p \leftarrow p - \gamma \hat m \, r \frac{\sqrt{1 - \beta_2^t}}{\sqrt{v} + \epsilon}
        \text{ if } \rho > 5 \text{, else } p - \gamma \hat m

    As in torch, :math:`\epsilon` is added before the bias of :math:`v` is corrected; the paper has none.

    Args:
        params: tensors, (name, tensor) pairs or dicts of groups; float32, float64, bfloat16, float16 or complex.
        lr: the learning rate :math:`\gamma \ge 0`, a number or a tensor of one element.
        betas: :math:`\beta_1, \beta_2 \in [0, 1)`.
        eps: :math:`\epsilon \ge 0`, added to the root.
        weight_decay: :math:`\lambda \ge 0`, an L2 penalty.
        decoupled_weight_decay: decay the param by :math:`1 - \gamma \lambda` instead of the penalty.
        foreach: accepted for torch's sake; changes nothing.
        maximize: ascend.
        capturable: let CUDA graphs capture the step; `step` is kept on the param's device then.
        differentiable: let autograd record the step, through torch's own code.

    Raises:
        ValueError: a hyper-parameter is out of range.

    Example:
        >>> param = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        >>> optimizer = fusedopt.RAdam([param], lr=0.5)
        >>> param.grad = torch.tensor([1.0, -0.5])
        >>> optimizer.step()
        >>> param.tolist()
        [0.5, 2.25]

    Source: Liu et al. 2020, "On the Variance of the Adaptive Learning Rate and Beyond".
    """

    _rule = "radam"
