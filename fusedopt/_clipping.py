"""Norms of gradients in one deterministic read: clipping, what shards of a model add up, and what a step needs."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import GeneratorType
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from . import _C
from ._core.callers import warn
from ._core.shards import ANOTHER_REFUSES, is_sharded, reduced, replicated, together

# The handles of step_in_backward in force. Whoever has none pays for one look at this.
releases: weakref.WeakSet[Any] = weakref.WeakSet()


def _refuse_released(params: Iterable[Tensor]) -> None:
    """Raise ValueError for params whose gradients are gone because backward has stepped them."""
    for index, param in enumerate(params if releases else ()):
        for hook in (param._post_accumulate_grad_hooks or {}).values() if param.grad is None else ():
            release = getattr(hook, "release", None)
            if release is not None and release in releases and release.frees_gradients():
                raise ValueError(
                    f"parameters[{index}] is stepped in backward, which frees its gradient: the norm of all gradients "
                    "is known only after the first are gone; remove() the handle of step_in_backward to clip, or do "
                    "without"
                )


def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    r"""Scale gradients in place so that their norm, of all of them together, is at most `max_norm`.

    .. math::
        N = \Big(\sum_i |g_i|^p\Big)^{1/p}, \qquad g \leftarrow g \cdot \min\Big(1, \frac{max\_norm}{N + 10^{-6}}\Big)

    The sum is made in double in a fixed order, so its bits depend neither on threads nor on the device. On the CPU,
    gradients that are short enough already are not written. An optimizer's `max_grad_norm` does without writing at all.
    Of DTensors every process adds up what it has, and one all-reduce for each divided dimension of their mesh makes the
    norm of the whole, the same everywhere.

    Args:
        parameters: tensors, or one tensor; those without a gradient count as zeros. Where a gradient is sparse, of
            another subclass than DTensor, placed otherwise than its param or on another device than CPU and CUDA,
            torch's own function takes all.
        max_norm: what the norm may be at most.
        norm_type: :math:`p`; `inf` for the largest absolute value. Orders that are not positive are left to torch.
            Default: 2.0.
        error_if_nonfinite: refuse gradients of infinite or NaN norm, instead of scaling by what follows from it.
            Default: False.
        foreach: accepted for torch's sake; changes nothing. Default: None.

    Returns:
        The norm before clipping, a 0-dim tensor on the first gradient's device: float32, or float64 if a gradient is.
        If all parameters are DTensors of one mesh, a replicated DTensor, as torch's function returns one.

    Raises:
        RuntimeError: the norm is not finite and `error_if_nonfinite` is set, or an expanded gradient cannot be scaled
            in place. Nothing has been written then.
        ValueError: `step_in_backward` has freed the gradient of a param.
        TypeError: `parameters` holds something else than tensors.

    Example:
        >>> param = torch.nn.Parameter(torch.zeros(2))
        >>> param.grad = torch.tensor([3.0, 4.0])
        >>> fusedopt.clip_grad_norm_([param], max_norm=1.0)
        tensor(5.)
        >>> param.grad
        tensor([0.6000, 0.8000])

    Source: Pascanu, Mikolov and Bengio 2013, "On the difficulty of training recurrent neural networks"; arguments and
    rounding of the coefficient are torch's.
    """
    norm_type = float(norm_type)
    empty = isinstance(parameters, GeneratorType)
    listed = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    if torch.compiler.is_compiling() or not norm_type > 0:
        return torch.nn.utils.clip_grad_norm_(listed, max_norm, norm_type, error_if_nonfinite, foreach)
    if empty and not listed:
        warn("`parameters` is an empty generator, no gradient clipping will occur.")
    grads = _C.Grads(listed)
    _refuse_released(listed)
    if grads.leftover:
        return torch.nn.utils.clip_grad_norm_(listed, max_norm, norm_type, error_if_nonfinite, foreach)
    norm, coefficient, _ = _C.clip(_total(grads, norm_type), norm_type, None, float(max_norm), grads.wide)
    told = replicated(norm, listed) if grads.sharded else norm
    if grads.empty:
        return told
    if error_if_nonfinite and not math.isfinite(norm):
        raise RuntimeError(
            f"The total norm of order {norm_type} for gradients from `parameters` is non-finite, so it cannot be "
            "clipped. To disable this error and scale the gradients by the non-finite norm anyway, set "
            "`error_if_nonfinite=False`"
        )
    if isinstance(coefficient, Tensor) or coefficient != 1:
        grads.scale(coefficient)
    return told


def local_grad_norm(parameters: Tensor | Iterable[Tensor], norm_type: float = 2.0) -> Tensor:
    r"""Return this process's part of a gradient norm, for an all_reduce over the processes that share a model.

    .. math::
        \sum_i |g_i|^p \quad (\max_i |g_i| \text{ for } p = \infty)

    Args:
        parameters: tensors, or one tensor, each held by this process alone; of a DTensor its local shard counts, so a
            replicated one counts once in every process.
        norm_type: :math:`p > 0`. Default: 2.0.

    Returns:
        A 0-dim float64 tensor on the first gradient's device, or the first parameter's where there is none. Add it up
        over processes, or take the maximum for `inf`; `norm_from_local` makes the norm of the result.

    Raises:
        ValueError: `norm_type` is not positive, or `step_in_backward` has freed the gradient of a param.
        TypeError: `parameters` holds something else than tensors.

    Example:
        >>> param = torch.nn.Parameter(torch.zeros(2))
        >>> param.grad = torch.tensor([3.0, 4.0])
        >>> total = fusedopt.local_grad_norm([param])
        >>> # torch.distributed.all_reduce(total), with op=ReduceOp.MAX for the infinity norm
        >>> norm = fusedopt.norm_from_local(total)
        >>> torch.nn.utils.clip_grads_with_norm_([param], 1.0, norm)
        >>> norm, param.grad
        (tensor(5., dtype=torch.float64), tensor([0.6000, 0.8000]))
    """
    listed = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    grads = _C.Grads(listed)
    _refuse_released(listed)
    if listed and grads.empty and not grads.leftover:
        return torch.zeros((), dtype=torch.float64, device=listed[0].device)
    return _total(grads, float(norm_type), local=True)


def norm_from_local(total: Tensor, norm_type: float = 2.0) -> Tensor:
    r"""Return the norm :math:`T^{1/p}` whose power sum :math:`T` processes have reduced, see `local_grad_norm`.

    Args:
        total: what `local_grad_norm` returned, added up over processes, or the maximum for `inf`.
        norm_type: :math:`p > 0`. Default: 2.0.

    Returns:
        The norm, of the dtype and on the device of `total`.

    Raises:
        ValueError: `norm_type` is not positive.

    Example:
        >>> fusedopt.norm_from_local(torch.tensor(8.0, dtype=torch.float64), norm_type=3)
        tensor(2., dtype=torch.float64)
    """
    norm_type = float(norm_type)
    if not norm_type > 0:
        raise ValueError(f"norm_type is {norm_type}; give a positive number or inf")
    if norm_type == 2:
        return total.sqrt()
    return total.clone() if norm_type in (1, math.inf) else total.pow(1 / norm_type)


@dataclass(frozen=True)
class Measurement:
    """Gradients and the sum of their squares, a float64 tensor."""

    grads: _C.Grads
    total: Tensor


def measure(params: Sequence[Any], earlier: Measurement | None = None) -> Measurement:
    """The gradients of tensors or param groups; `earlier` serves if they are the same and unchanged."""
    grads = _C.Grads(params)
    if earlier is not None and grads.same_as(earlier.grads):
        return earlier
    return Measurement(grads, _total(grads, 2.0, of_a_step=True))


def clip(measured: Measurement, scale: float | Tensor | None, max_norm: float) -> tuple[Tensor, float | Tensor]:
    """The norm of gradients that are to be divided by `scale`, and what to divide them by for it to be `max_norm`."""
    grads, total = measured.grads, measured.total
    if not grads.leftover:
        norm, _, divisor = _C.clip(total, 2.0, scale, max_norm, grads.wide)
        return norm, divisor
    # What a dispatch mode or a subclass wants to see are operations of torch.
    wide = grads.wide or any(grad.dtype in (torch.float64, torch.complex128) for grad in grads.leftover)
    by: float | Tensor = scale.to(total.device) if isinstance(scale, Tensor) else scale or 1.0
    norm = (total.sqrt() / by).to(torch.float64 if wide else torch.float32)
    return norm, by / torch.clamp(max_norm / (norm + 1e-6), max=1.0).double()


def _total(grads: _C.Grads, norm_type: float, local: bool = False, of_a_step: bool = False) -> Tensor:
    total: Tensor = grads.measure(norm_type)
    if not (grads.leftover or grads.sharded):
        return total
    with torch.no_grad():
        shares = grads.measure_shards(norm_type)
        if local:
            parts = [part for _, _, part in shares]
        else:
            parts = _told_of_refusals(shares) if of_a_step else list(reduced(shares, norm_type))
        parts += [_total_of_one(grad, norm_type, local) for grad in grads.leftover]
        for part in parts:
            total = together(total, part.to(total.device), norm_type)
    return total


def _told_of_refusals(shares: Sequence[tuple[Any, tuple[bool, ...], Tensor]]) -> list[Tensor]:
    """The sums of squares of all processes, of which one may refuse its step beside it: see `adds_up_norms`.

    Nobody refuses there what a GPU has added up, since the host would have to wait to hear of it.
    """
    with_word = [
        (mesh, its, torch.stack([part, torch.zeros_like(part)]) if part.is_cpu else part) for mesh, its, part in shares
    ]
    sums = list(reduced(with_word, 2.0))
    if any(made.dim() and made[1] != 0 for made in sums):
        raise RuntimeError(ANOTHER_REFUSES)
    return [made[0] if made.dim() else made for made in sums]


def _total_of_one(grad: Tensor, norm_type: float, local: bool) -> Tensor:
    """Of a gradient that the engines do not take as it is."""
    if grad.layout == torch.sparse_coo:
        return _total(_C.Grads([grad.coalesce().values()], values=True), norm_type, local)
    if local and is_sharded(grad):
        return _total(_C.Grads([cast(Any, grad).to_local()], values=True), norm_type, local)
    norm: Any = torch.linalg.vector_norm(grad, norm_type)
    norm = (norm.full_tensor() if hasattr(norm, "full_tensor") else norm).double()
    # A subclass need not have memory that a kernel can read. What a dispatch mode makes cannot be read at all.
    if type(norm) is not Tensor and _get_current_dispatch_mode() is None:
        norm = torch.tensor(float(norm), dtype=torch.float64, device="cpu")
    return cast(Tensor, norm if norm_type == math.inf else norm**norm_type)
