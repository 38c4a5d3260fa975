"""NAdam."""

import torch

from .optimizer import FusedStep


class NAdam(FusedStep, torch.optim.NAdam):
    r"""Adam with Nesterov momentum, in one pass over memory.

    .. math::
        g \leftarrow \nabla f(p) + \lambda p, \quad
        \mu_t = \beta_1 \left(1 - \tfrac{1}{2} 0.96^{t \psi}\right), \quad
        m \leftarrow \beta_1 m + (1 - \beta_1) g, \quad
        v \leftarrow \beta_2 v + (1 - \beta_2) g^2, \\
        p \leftarrow p - \gamma
        \frac{(1 - \mu_t) g / (1 - \prod_{i \le t} \mu_i) + \mu_{t+1} m / (1 - \prod_{i \le t+1} \mu_i)}
        {\sqrt{v / (1 - \beta_2^t)} + \epsilon}

    The product of the momenta is kept in the state as `mu_product`. As in torch, :math:`m` is averaged with the
    constant :math:`\beta_1`, where the paper uses :math:`\mu_t`.

    Args:
        params: tensors, (name, tensor) pairs or dicts of groups; float32, float64, bfloat16, float16 or complex.
        lr: the learning rate :math:`\gamma \ge 0`, a number or a tensor of one element.
        betas: :math:`\beta_1, \beta_2 \in [0, 1)`.
        eps: :math:`\epsilon \ge 0`, added to the root.
        weight_decay: :math:`\lambda \ge 0`, an L2 penalty.
        momentum_decay: :math:`\psi \ge 0`, how fast the momentum warms up.
        decoupled_weight_decay: decay the param by :math:`1 - \gamma \lambda` instead of the penalty.
        foreach: accepted for torch's sake; changes nothing.
        maximize: ascend.
        capturable: let CUDA graphs capture the step; `step` is kept on the param's device then.
        differentiable: let autograd record the step, through torch's own code.

    Raises:
        ValueError: a hyper-parameter is out of range.

    Example:
        >>> param = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        >>> optimizer = fusedopt.NAdam([param], lr=0.5, eps=0.0, betas=(0.5, 0.5), momentum_decay=0.0)
        >>> param.grad = torch.tensor([4.0, -0.25])
        >>> optimizer.step()
        >>> [round(p, 4) for p in param.tolist()]
        [0.4333, 2.5667]

    Source: Dozat 2016, "Incorporating Nesterov Momentum into Adam".
    """

    _rule = "nadam"
