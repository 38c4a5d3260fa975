"""Adafactor."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch

from . import _C
from .optimizer import FusedStep
from .unread import FLAGS


class Adafactor(FusedStep, torch.optim.Adafactor):
    r"""Adafactor, whose second moment of a matrix is the product of a column and a row, in three passes over memory.

    .. math::
        R \leftarrow R + t^\tau (\overline{g^2}^{\,cols} - R), \quad
        C \leftarrow C + t^\tau (\overline{g^2}^{\,rows} - C), \quad
        u = \frac{g}{\max(\sqrt{R C / \max(\overline{R}, \epsilon_1)}, \epsilon_1)}, \quad
        p \leftarrow (1 - \gamma \lambda) p -
        \frac{\max(\epsilon_2, \mathrm{RMS}(p)) \min(\gamma, t^{-1/2})}{\max(1, \mathrm{RMS}(u) / d)} u

    The last two dimensions of a param make its matrices, and others count them. Vectors and scalars keep the average of
    :math:`g^2` itself. No temporary is as large as a param: a step takes up to a part in 60 of the largest.

    Args:
        params: tensors, (name, tensor) pairs or dicts of groups; float32, float64, bfloat16 or float16.
        lr: :math:`\gamma \ge 0`, the largest relative step and the factor of the decay; a number or a tensor of one
            element.
        beta2_decay: :math:`\tau \le 0`, by which the averages come to forget less.
        eps: :math:`\epsilon_1 \ge 0`, a bound of the root from below, None for the machine epsilon of each param's
            dtype; and :math:`\epsilon_2 \ge 0`, the smallest size that a param is taken to have.
        d: how large the RMS of an update may be, at least 1.
        weight_decay: :math:`\lambda \ge 0`, decoupled.
        foreach: accepted for torch's sake; changes nothing.
        maximize: ascend.

    Raises:
        ValueError: a hyper-parameter is out of range.

    Example:
        >>> param = torch.nn.Parameter(torch.tensor([[3.0, 4.0]]))
        >>> optimizer = fusedopt.Adafactor([param], lr=0.5)
        >>> param.grad = torch.tensor([[2.0, -0.25]])
        >>> optimizer.step()
        >>> [round(p, 4) for p in param.tolist()[0]]
        [1.2322, 5.7678]

    Source: Shazeer and Stern 2018, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost"; the uses of
    :math:`\gamma` and :math:`\epsilon_1` are torch's.
    """

    _has_options = False
    _reads = dict.fromkeys(("lr", "beta2_decay", "eps", "d", "weight_decay", *FLAGS))

    def _make_plan(self, engine: ModuleType = _C) -> Any:
        return engine.FactoredPlan()

    def _check_group(self, group: dict[str, Any]) -> None:
        """Raise torch's errors, which it has for its constructor alone."""
        eps1, eps2 = group["eps"]
        for key, name in (("lr", "Learning rate"), ("weight_decay", "weight_decay")):
            if not group[key] >= 0:
                raise ValueError(f"{name} should be >= 0 but is: {group[key]}")
        if not group["beta2_decay"] <= 0:
            raise ValueError(f"beta2_decay should be <= 0 but is: {group['beta2_decay']}")
        if eps1 is not None and not eps1 >= 0:
            raise ValueError(f"epsilon1 should be >= 0 but is: {eps1}")
        if not eps2 >= 0:
            raise ValueError(f"epsilon2 should be >= 0 but is: {eps2}")
        if not group["d"] >= 1:
            raise ValueError(f"Clipping threshold d should be >= 1 but is: {group['d']}")
