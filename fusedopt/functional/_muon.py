"""A step of Muon over lists, where the installed torch has it."""

from collections.abc import Sequence

from torch import Tensor

from .._core.lists import Lists, step_lists
from ..optimizers.muon import Muon, check_iteration

Coefficients = tuple[float, float, float]

_MUON = Lists(Muon, "_muon", "muon", {"muon_momentum_bufs": "momentum_buffer"}, check=check_iteration)


def muon(
    params: list[Tensor],
    grads: list[Tensor],
    muon_momentum_bufs: list[Tensor],
    *,
    foreach: bool | None = None,
    lr: float,
    weight_decay: float,
    momentum: float,
    nesterov: bool,
    ns_coefficients: Coefficients | Sequence[Coefficients],
    ns_steps: int,
    eps: float,
    adjust_lr_fn: str | None,
    has_complex: bool,
) -> None:
    """A step of :class:`fusedopt.Muon` over lists; its formulas are those of the class.

    Args:
        params: matrices, float32, float64, bfloat16 or float16; written.
        grads: a gradient for each param, of its shape.
        muon_momentum_bufs: the momentum, one for each matrix and of its shape; written.
        foreach: accepted for torch's sake; True is refused, as by torch. Default: None.
        lr: the learning rate, a number or a tensor of one element.
        weight_decay: the decay of params, decoupled.
        momentum: the factor of the momentum.
        nesterov: step along the momentum as the next step will find it.
        ns_coefficients: the three factors of the Newton-Schulz iteration, or a triple for each iteration.
        ns_steps: how many iterations, fewer than 100.
        eps: below which a matrix's norm does not count.
        adjust_lr_fn: what a matrix's shape does to `lr`: "original" (None), "match_rms_adamw" or "spectral_unclamped".
        has_complex: accepted for torch's sake; complex matrices are refused.

    Raises:
        ValueError: a list has not one entry for each param, or a number is NaN.
        TypeError: an entry of a list is no tensor, or a number is none.
        RuntimeError: a gradient or a state does not fit its param. Nothing has been written then.

    Example:
        >>> param, momentum = torch.eye(2), torch.zeros(2, 2)
        >>> fusedopt.functional.muon(
        ...     [param], [torch.eye(2)], [momentum], lr=0.5, weight_decay=0.0, momentum=0.75, nesterov=True,
        ...     ns_coefficients=(3.4445, -4.775, 2.0315), ns_steps=5, eps=1e-7, adjust_lr_fn=None, has_complex=False,
        ... )
        >>> momentum[0, 0].item(), param[0, 1].item()
        (0.25, 0.0)
    """
    step_lists(_MUON, locals())
