"""Swapping a live torch.optim optimizer for ours."""

from __future__ import annotations

import torch

from .adam import Adam, AdamW
from .optimizer import FusedStep
from .rmsprop import RMSprop
from .sgd import SGD

_OURS: dict[type[torch.optim.Optimizer], type[FusedStep]] = {
    torch.optim.SGD: SGD,
    torch.optim.Adam: Adam,
    torch.optim.AdamW: AdamW,
    torch.optim.RMSprop: RMSprop,
}


def replace(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Return our optimizer over the groups and state of a live torch.optim one.

    Both share `param_groups`, `state` and `defaults`, so a scheduler made for the old one goes on steering the new one.
    Hooks stay with the old one.

    Args:
        optimizer: an instance of a torch.optim class that fusedopt has; one of ours is returned as it is.

    Raises:
        TypeError: of any other class, also a subclass, whose changes would be lost.

    Example:
        >>> theirs = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(3))], lr=0.1)
        >>> ours = fusedopt.replace(theirs)
        >>> type(ours) is fusedopt.AdamW and ours.param_groups is theirs.param_groups
        True
    """
    if isinstance(optimizer, FusedStep):
        return optimizer
    ours = _OURS.get(type(optimizer))
    if ours is None:
        name = f"{type(optimizer).__module__}.{type(optimizer).__qualname__}"
        raise TypeError(f"fusedopt has no replacement for {name}; it replaces {sorted(c.__name__ for c in _OURS)}")
    new = ours.__new__(ours)
    new.__setstate__({"defaults": optimizer.defaults, "state": optimizer.state, "param_groups": optimizer.param_groups})
    return new
