"""Warnings at the line of whoever called the package, however many of its frames and torch's lie between."""

from __future__ import annotations

import os
import sys
import warnings

import torch

from .. import _C

_INSIDE = tuple(os.path.dirname(path) + os.sep for path in (os.path.dirname(__file__), torch.__file__))


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
