"""States that are tensors of a class of their own, which neither rules nor torch's steps read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

# Of tensors that have no operations of their own.
plain_dispatch = Tensor.__torch_dispatch__


def wrapped_class(value: Any, *beside: Tensor | None) -> str | None:
    """The name of a tensor's class if that has operations of its own, unless one of the tensors beside it is of it.

    The states of a sharded param are sharded, too, and a momentum may be a copy of a gradient.
    """
    cls = type(value)
    if not isinstance(value, Tensor) or cls in (Tensor, torch.nn.Parameter):
        return None
    if cls.__torch_dispatch__ is plain_dispatch or any(type(tensor) is cls for tensor in beside):
        return None
    return f"{cls.__module__}.{cls.__qualname__}"


def refuse_wrapped(params: Iterable[Tensor], state: Mapping[Tensor, Any]) -> None:
    """Raise RuntimeError for params with such states, before torch's step, which writes until it comes upon them."""
    for param in params:
        for key, value in state.get(param, {}).items():
            if (cls := wrapped_class(value, param, param.grad)) is not None:
                raise RuntimeError(
                    f"{key!r} of a param of shape {list(param.shape)} is a {cls}, which no step here can read; put an "
                    "ordinary tensor in its place, as a DTensor's full_tensor() makes and others' dequantize()"
                )
