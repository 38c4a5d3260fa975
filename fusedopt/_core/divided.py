"""Optimizers that a wrapper of torch's gives a part of a model without saying so: what is made of all params."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import torch

from .callers import label_of

_ZERO = "torch.distributed.optim.zero_redundancy_optimizer"


def refuse_part(groups: Iterable[dict[str, Any]], what: str, remedy: str, by_zero: bool = False) -> None:
    """Raise ValueError where params are those of this process alone, and `what` would be made of them.

    ZeroRedundancyOptimizer constructs an optimizer of some params in each process: does so now, or did (`by_zero`).
    FSDP1 has pieces in the place of params, and leaves a mark on them. DTensors know what they are parts of.
    """
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return
    if torch.distributed.get_world_size() == 1:
        return
    if by_zero or constructed_by_zero():
        raise ValueError(f"ZeroRedundancyOptimizer gives each process some of the params, and {what} {remedy}")
    for index, group in enumerate(groups):
        for place, param in enumerate(group["params"]):
            if getattr(param, "_fsdp_flattened", False):
                raise ValueError(
                    f"{label_of(group, index, place)} is what FullyShardedDataParallel has of it in this process, and "
                    f"{what} {remedy}"
                )


def constructed_by_zero() -> bool:
    """Whether a constructor that is running was called by ZeroRedundancyOptimizer, over several processes."""
    zero: Any = getattr(sys.modules.get(_ZERO), "ZeroRedundancyOptimizer", ())
    frame = sys._getframe().f_back if zero else None
    while frame is not None:
        if frame.f_code.co_name == "_init_local_optimizer" and isinstance(frame.f_locals.get("self"), zero):
            return bool(frame.f_locals["self"].world_size > 1)
        frame = frame.f_back
    return False
