"""Muon."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from .. import _C
from .._core.arguments import Options
from .._core.sweeps import SweepStep

# Matrices of one shape go through the products together, as many as fit into this.
_BATCH_BYTES = 64 * 2**20


def _original(rows: int, columns: int) -> float:
    return math.sqrt(max(1, rows / columns))


# What the learning rate of a matrix is multiplied by, by the name in adjust_lr_fn.
_RATIOS: dict[str | None, Callable[[int, int], float]] = {
    None: _original,
    "original": _original,
    "match_rms_adamw": lambda rows, columns: 0.2 * math.sqrt(max(rows, columns)),
    "spectral_unclamped": lambda rows, columns: math.sqrt(rows / columns),
}


class Muon(SweepStep, torch.optim.Muon):
    r"""Muon, momentum made orthogonal: two fused sweeps around products of all matrices of one shape together.

    .. math::
        b \leftarrow \mu b + (1 - \mu) g, \quad
        X_0 = \frac{(1 - \mu) g + \mu b}{\lVert \cdot \rVert_F + \epsilon}, \quad
        X_{i+1} = a X_i + (b_2 X_i X_i^T + c (X_i X_i^T)^2) X_i, \quad
        p \leftarrow (1 - \gamma \lambda) p - \gamma' X_k

    without `nesterov` :math:`X_0` is made of :math:`b`. The products are of bfloat16 numbers and rounded to them, as
    in torch.

    Args:
        params: matrices, (name, matrix) pairs or dicts of groups; embeddings, biases and the like want AdamW.
        lr: the learning rate :math:`\gamma \ge 0`, a number or a tensor of one element. Default: 1e-3.
        weight_decay: :math:`\lambda \ge 0`, decoupled. Default: 0.1.
        momentum: :math:`\mu \ge 0`. Default: 0.95.
        nesterov: step along the momentum as the next step will find it. Default: True.
        ns_coefficients: :math:`a, b_2, c` of the Newton-Schulz iteration. Default: (3.4445, -4.775, 2.0315).
        eps: :math:`\epsilon`, below which a norm does not count. Default: 1e-7.
        ns_steps: how many iterations, fewer than 100. Default: 5.
        adjust_lr_fn: "original" (None), :math:`\gamma' = \gamma \sqrt{\max(1, \text{rows} / \text{columns})}`;
            "match_rms_adamw", :math:`\gamma' = 0.2 \gamma \sqrt{\max(\text{rows}, \text{columns})}`; and, where the
            installed torch has it (2.14 and newer), "spectral_unclamped",
            :math:`\gamma' = \gamma \sqrt{\text{rows} / \text{columns}}`. Default: None.
        foreach: accepted for torch's sake; changes nothing. Default: None.
        fused: changes no result; True has a GradScaler leave unscaling and skipping to the step, as for torch's fused
            steps. Default: None.
        max_grad_norm: scale gradients inside the update so that the norm of all together is at most this. Default:
            None.

    Raises:
        ValueError: a hyper-parameter is out of range, or a param is no matrix.

    Example:
        >>> param = torch.nn.Parameter(torch.eye(2))
        >>> optimizer = fusedopt.Muon([param], lr=0.5, weight_decay=0.0)
        >>> param.grad = torch.tensor([[3.0, 0.0], [0.0, 3.0]])
        >>> optimizer.step()
        >>> param[0, 1].item(), 0.4 < param[0, 0].item() < 0.8
        (0.0, True)

    Sources: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; Liu et al. 2025, "Muon is
    Scalable for LLM Training" (match_rms_adamw); Bernstein 2025, "Deriving Muon" (spectral_unclamped).
    """

    _rule = "muon_momentum"
    _rule_after = "muon_update"
    _reads: ClassVar = {
        **dict.fromkeys(("lr", "weight_decay", "momentum", "nesterov", "ns_coefficients", "eps", "ns_steps")),
        "adjust_lr_fn": tuple(_RATIOS),
    }

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315),
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = None,
        *,
        foreach: bool | None = None,
        fused: bool | None = None,
        max_grad_norm: float | None = None,
    ) -> None:
        given = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "nesterov": nesterov}
        more = {"ns_coefficients": ns_coefficients, "eps": eps, "ns_steps": ns_steps, "adjust_lr_fn": adjust_lr_fn}
        super().__init__(params, {**given, **more}, foreach=foreach, fused=fused, options=Options(max_grad_norm))

    def _sweep(self, multiplier: float) -> None:
        batches: dict[Any, list[torch.Tensor]] = defaultdict(list)
        for group, name, param in self._with_grads():
            assert param.grad is not None
            if param.grad.is_sparse:
                raise RuntimeError("Muon does not support sparse gradients")
            if param.grad.ndim != 2 or param.grad.shape != param.shape:
                shape = list(param.grad.shape)
                raise ValueError(f"Param gradient must be a 2D matrix: {name} has one of shape {shape}; set it anew")
            if group["ns_steps"] >= 100:
                raise ValueError("Number of steps must be less than 100 for computational efficiency")
            if len(group["ns_coefficients"]) != 3:
                raise ValueError("Coefficients must be a tuple of exactly 3 values")
            batches[id(group), param.shape, param.device].append(param)
        groups = {id(group): group for group in self.param_groups}
        for (group_id, size_of, _), params in batches.items():
            size = max(1, _BATCH_BYTES // max(1, 2 * size_of.numel()))
            for first in range(0, len(params), size):
                self._step_batch(groups[group_id], params[first : first + size], multiplier)

    def _step_batch(self, group: dict[str, Any], params: list[torch.Tensor], multiplier: float) -> None:
        grads = [param.grad for param in params if param.grad is not None]
        for param, grad in zip(params, grads, strict=True):
            if "momentum_buffer" not in self.state[param]:
                self.state[param]["momentum_buffer"] = torch.zeros_like(grad, memory_format=torch.preserve_format)
        buffers = [[self.state[param]["momentum_buffer"]] for param in params]
        directions = torch.empty(len(params), *params[0].shape, dtype=torch.bfloat16, device=params[0].device)
        hypers = [group["momentum"], float(bool(group["nesterov"]))]
        _C.Sweep(self._rule)(hypers, [], list(directions), grads, buffers, multiplier)
        orthogonal = _orthogonal(directions, group["ns_coefficients"], group["ns_steps"], group["eps"])
        lr = float(group["lr"])
        hypers = [lr, lr * _RATIOS[group["adjust_lr_fn"]](*params[0].shape), group["weight_decay"]]
        _C.Sweep(self._rule_after)(hypers, [], params, list(orthogonal), [[] for _ in params])


def _orthogonal(
    matrices: torch.Tensor, coefficients: tuple[float, float, float], steps: int, eps: float
) -> torch.Tensor:
    """Newton-Schulz on each of a batch of bfloat16 matrices, which it uses up."""
    a, b, c = coefficients
    x = matrices.div_(torch.linalg.vector_norm(matrices, dim=(1, 2), keepdim=True).clamp_(min=eps))
    # Where a CPU has no instructions for them, products in bfloat16 take several times as long as those of the same
    # numbers in float32, which hold every product of two exactly and are rounded in the same places.
    widened = x.device.type == "cpu" and not _C.multiplies_bfloat16()
    if widened:
        x = x.float()

    def rounded(product: torch.Tensor) -> torch.Tensor:
        return product.copy_(product.bfloat16()) if widened else product

    tall = x.size(1) > x.size(2)
    for _ in range(steps):
        # Of the two Gram matrices the smaller; a tall matrix is multiplied from the right, which saves its transpose.
        gram = rounded(torch.bmm(x.mT, x) if tall else torch.bmm(x, x.mT))
        polynomial = rounded(torch.baddbmm(gram, gram, gram, beta=b, alpha=c))
        x = rounded(torch.baddbmm(x, x, polynomial.mT, beta=a) if tall else torch.baddbmm(x, polynomial, x, beta=a))
    return x
