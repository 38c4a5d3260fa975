"""What callers are told: warnings at their line, however many frames lie between, and which param an error is about."""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any

import torch

from .. import _C

_INSIDE = tuple(os.path.dirname(path) + os.sep for path in (os.path.dirname(__file__), torch.__file__))


def label_of(group: dict[str, Any], group_index: int, index: int) -> str:
    """How errors call a param: "param 3 of group 0 ('layer.weight')"."""
    names = group.get("param_names")
    return f"param {index} of group {group_index}" + (f" ({names[index]!r})" if names else "")


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn of what the nearest code outside of this package and of torch has done."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_INSIDE):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


def warn_of_unserved() -> None:
    """Warn once where a device has turned out to be one that the CUDA kernels cannot run on."""
    if obstacle := _C.take_obstacle():
        warn(f"CUDA tensors are stepped by torch's own code, and not by fusedopt's kernels: {obstacle}")
