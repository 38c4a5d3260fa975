"""Muon."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from .. import _C
from .._core.arguments import Options
from .._core.kept import Products
from .._core.optimizer import FusedStep, Leftover
from .._core.precision import MasterWeights, Rounding, StateDtype

Coefficients = tuple[float, float, float]
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


class Muon(FusedStep, torch.optim.Muon):
    r"""Muon, momentum made orthogonal: two fused passes around products of all matrices of one shape together.

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
        ns_coefficients: :math:`a, b_2, c` of the Newton-Schulz iteration, or a sequence of such triples, one for each
            iteration, of which the last serves the iterations beyond them. Default: (3.4445, -4.775, 2.0315).
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
        ema_decay: keep a moving average of the params with this factor, for `ema_parameters()`. Default: None.
        state_dtype: how states are stored: "float32", "bfloat16", "float16", "int8" or "int4" (blocks of 256 codes with
            a float32 scale; tensors of fewer than 4,096 elements stay in float32), or a dict by states' names. Default:
            None.
        master_weights: for params in 16 bits: keep a copy in "float32" to update, or as "remainder" only the low half
            of it, beside bfloat16 params that are its upper half. Default: None.
        rounding: of what has fewer bits than the arithmetic: to "nearest"; "stochastic", up or down by chance so that
            the mean is exact; "kahan", to nearest, with what that takes from a param kept beside it. Default:
            "nearest".
        rounding_seed: where the draws of "stochastic" start. Default: 0.

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
        ns_coefficients: Coefficients | Sequence[Coefficients] = (3.4445, -4.775, 2.0315),
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = None,
        *,
        foreach: bool | None = None,
        fused: bool | None = None,
        max_grad_norm: float | None = None,
        ema_decay: float | None = None,
        state_dtype: StateDtype = None,
        master_weights: MasterWeights | None = None,
        rounding: Rounding = "nearest",
        rounding_seed: int = 0,
    ) -> None:
        given = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "nesterov": nesterov}
        more = {"ns_coefficients": ns_coefficients, "eps": eps, "ns_steps": ns_steps, "adjust_lr_fn": adjust_lr_fn}
        options = Options(max_grad_norm, ema_decay, state_dtype, master_weights, rounding, rounding_seed)
        super().__init__(params, {**given, **more}, foreach=foreach, fused=fused, options=options)

    def _products(self) -> Products:
        return Products("muon_update", _multiply, _BATCH_BYTES)

    def _fused_step(self, closure: Callable[[], Any] | None = None, zero_grad: bool = False) -> Any:
        for group in self.param_groups:
            check_iteration(group)
        return super()._fused_step(closure, zero_grad)

    def _check_group(self, group: dict[str, Any]) -> None:
        # torch's constructor knows one triple.
        for triple in _triples(group["ns_coefficients"]):
            super()._check_group({**group, "ns_coefficients": triple})

    def _step_leftover(self, leftover: Leftover, divisor: float | Tensor | None = None) -> None:
        for index, _ in leftover:
            if len(_triples(self.param_groups[index]["ns_coefficients"])) > 1:
                raise RuntimeError(
                    f"param_groups[{index}]['ns_coefficients'] has a triple for each iteration, and torch's own step, "
                    "which is left for some of its params, knows one for all; give one, or params that are ordinary "
                    "tensors on the CPU or a CUDA device"
                )
        super()._step_leftover(leftover, divisor)


def check_iteration(group: Mapping[str, Any]) -> None:
    """Refuse, as torch's step does, what its constructor lets pass."""
    if group["ns_steps"] >= 100:
        raise ValueError("Number of steps must be less than 100 for computational efficiency")
    _triples(group["ns_coefficients"])


def _multiply(group: dict[str, Any], matrices: Tensor) -> tuple[Tensor, float]:
    """A batch of matrices made orthogonal, and what their shape makes of the learning rate."""
    orthogonal = _orthogonal(matrices, _triples(group["ns_coefficients"]), group["ns_steps"], group["eps"])
    return orthogonal, _RATIOS[group["adjust_lr_fn"]](*matrices.shape[1:])


def _triples(coefficients: Any) -> Sequence[Coefficients]:
    """Those of each iteration."""
    triples = [coefficients] if not len(coefficients) or _is_number(coefficients[0]) else coefficients
    if not all(len(triple) == 3 for triple in triples):
        raise ValueError("Coefficients must be a tuple of exactly 3 values")
    return triples


def _is_number(entry: Any) -> bool:
    try:
        float(entry)
    except TypeError:
        return False
    return True


def _orthogonal(matrices: Tensor, triples: Sequence[Coefficients], steps: int, eps: float) -> Tensor:
    """Newton-Schulz on each of a batch of bfloat16 matrices, which it uses up."""
    x = matrices.div_(torch.linalg.vector_norm(matrices, dim=(1, 2), keepdim=True).clamp_(min=eps))
    # Where a CPU has no instructions for them, products in bfloat16 take several times as long as those of the same
    # numbers in float32, which hold every product of two exactly and are rounded in the same places.
    widened = x.device.type == "cpu" and not _C.multiplies_bfloat16()
    if widened:
        x = x.float()

    def rounded(product: Tensor) -> Tensor:
        return product.copy_(product.bfloat16()) if widened else product

    tall = x.size(1) > x.size(2)
    for step in range(steps):
        a, b, c = triples[min(step, len(triples) - 1)]
        # Of the two Gram matrices the smaller; a tall matrix is multiplied from the right, which saves its transpose.
        gram = rounded(torch.bmm(x.mT, x) if tall else torch.bmm(x, x.mT))
        polynomial = rounded(torch.baddbmm(gram, gram, gram, beta=b, alpha=c))
        x = rounded(torch.baddbmm(x, x, polynomial.mT, beta=a) if tall else torch.baddbmm(x, polynomial, x, beta=a))
    return x
