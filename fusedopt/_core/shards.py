"""DTensors, of which a process has a part: their states between the forms that steps, files and conversions have."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor

# What a process has for itself alone.
_CODES = (torch.int8, torch.uint8)


def is_sharded(tensor: Any) -> bool:
    """Whether it is a DTensor; the class is not imported for the question, which takes half a second."""
    return isinstance(tensor, Tensor) and hasattr(tensor, "to_local")


@contextmanager
def grads_placed_as_params(params: Iterable[Tensor]) -> Iterator[bool]:
    """Gradients redistributed to the placements of their params, for as long as they are read; whether there are any.

    Autograd may leave a gradient as a sum that is yet to be made: that of a norm's weight under sequence parallelism.
    torch's operations make it where they meet it.
    """
    moved: list[tuple[Tensor, Tensor]] = []
    try:
        with torch.no_grad():
            for p in params:
                grad, param = cast(Any, p.grad), cast(Any, p)
                if not (is_sharded(p) and is_sharded(grad)) or grad.device_mesh != param.device_mesh:
                    continue
                if grad.placements != param.placements and not any(place.is_partial() for place in param.placements):
                    moved.append((p, grad))
                    p.grad = grad.redistribute(placements=param.placements)
        yield bool(moved)
    finally:
        for p, grad in moved:
            p.grad = grad


def open_state(state: Mapping[str, Any], param: Tensor) -> tuple[dict[str, Any], Tensor]:
    """A param's state and the param as this process has them: itself, or of DTensors copies of both with local ones."""
    if not is_sharded(param):
        return cast(dict[str, Any], state), param
    whole = cast(Any, param)
    here = {}
    # Outside of autograd it is the local tensor itself.
    with torch.no_grad():
        for name, value in state.items():
            if is_sharded(value):
                same = value.placements == whole.placements
                here[name] = (value if same else value.redistribute(whole.device_mesh, whole.placements)).to_local()
                continue
            here[name] = value
            if isinstance(value, Tensor) and value.dim() and value.shape == param.shape and value.dtype not in _CODES:
                raise ValueError(
                    f"the state {name!r} of a param that is a DTensor is a whole tensor; distribute it as the param "
                    "is, as torch.distributed.checkpoint does"
                )
        return here, whole.to_local()


def close_state(here: dict[str, Any], state: Mapping[str, Any], param: Tensor) -> dict[str, Any]:
    """The counterpart of `open_state`, after changes: DTensors of the param's spec, but for codes and their scales."""
    if not is_sharded(param):
        return here
    whole = cast(Any, param)

    def close(name: str, value: Any) -> Any:
        before: Any = state.get(name)
        if not isinstance(value, Tensor) or value is before or value.dtype in _CODES or value.shape != shape:
            return value
        if is_sharded(before) and before.placements == whole.placements and before.to_local() is value:
            return before
        return type(whole).from_local(
            value, whole.device_mesh, whole.placements, run_check=False, shape=whole.shape, stride=whole.stride()
        )

    with torch.no_grad():
        shape = whole.to_local().shape
        return {name: close(name, value) for name, value in here.items()}
