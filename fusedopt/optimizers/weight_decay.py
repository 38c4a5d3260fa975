"""WeightDecay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .._core.arguments import check_number


@dataclass(frozen=True)
class WeightDecay:
    r"""How a :class:`GenericOptimizer` pulls params towards zero, with a :math:`\lambda` that each group may change.

    .. math::
        g \leftarrow g + \lambda p \ \text{(not decoupled)}, \quad
        p \leftarrow (1 - \gamma \lambda) p \ \text{(decoupled)}, \quad
        p \leftarrow (1 - \lambda) p \ \text{(decoupled, absolute)}

    Args:
        weight_decay: :math:`\lambda \ge 0`, what `group["weight_decay"]` starts from; that entry is read at each step.
            Default: 0.0.
        decoupled: shrink the param itself; False adds an L2 penalty to the gradient. Default: True.
        absolute: leave out the learning rate :math:`\gamma`, so that schedules of it do not change the decay; a step
            with a learning rate of 0, such as the one torch.distributed.checkpoint makes state with, decays too.
            Default: False.

    Raises:
        ValueError: `weight_decay` is negative or NaN, or `absolute` is asked of a decay that is not decoupled.

    Example:
        >>> decay, group = fusedopt.WeightDecay(0.5, absolute=True), {"lr": 0.1, "weight_decay": 0.5}
        >>> param, grad = torch.tensor([2.0]), torch.tensor([1.0])
        >>> decay.apply(param, grad, group).tolist(), param.tolist()
        ([1.0], [1.0])

    Source: Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization".
    """

    weight_decay: float | Tensor = 0.0
    decoupled: bool = True
    absolute: bool = False

    def __post_init__(self) -> None:
        check_number("weight_decay", self.weight_decay, "weight_decay value")
        if self.absolute and not self.decoupled:
            raise ValueError(
                "absolute=True contradicts decoupled=False: an absolute decay shrinks the param by 1 - weight_decay, "
                "whereas an L2 penalty in the gradient is scaled by whatever the update does with gradients"
            )

    def apply(self, param: Tensor, grad: Tensor, group: Mapping[str, Any]) -> Tensor:
        """Decay `param` in place, or return a gradient that does.

        Args:
            param: what decays.
            grad: its gradient, which is not written.
            group: has "weight_decay" and, for a decoupled decay that is not absolute, "lr".

        Returns:
            The gradient to step with: `grad` itself unless the decay is an L2 penalty.
        """
        weight_decay = float(group["weight_decay"])
        if weight_decay == 0:
            return grad
        if not self.decoupled:
            return grad.add(param, alpha=weight_decay)
        param.mul_(1 - weight_decay * (1.0 if self.absolute else float(group["lr"])))
        return grad
