"""Swapping a live optimizer for ours."""

from __future__ import annotations

from typing import Any

import torch

from ._core.optimizer import FusedStep
from ._foreign import take_over
from .optimizers.generic import GenericOptimizer
from .optimizers.lbfgs import LBFGS


def _classes() -> dict[type[torch.optim.Optimizer], type[torch.optim.Optimizer]]:
    """Ours by the torch.optim class whose name they bear."""
    found: list[type[torch.optim.Optimizer]] = [*FusedStep.__subclasses__(), LBFGS]
    for cls in found:
        found.extend(cls.__subclasses__())
    package = __name__.partition(".")[0]
    ours = [c for c in found if c.__module__.partition(".")[0] == package and hasattr(torch.optim, c.__name__)]
    return {getattr(torch.optim, c.__name__): c for c in ours}


def replace(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Return our optimizer over the groups and state of a live torch.optim one, or one of another package.

    Both share `param_groups` and `state`, so a scheduler made for the old one goes on steering the new one. Hooks stay
    with the old one. Groups and state of another package's are converted, to what docs/moving-in.md says, and the old
    one cannot be stepped afterwards.

    Args:
        optimizer: an instance of a torch.optim class that fusedopt has, or of a class of another package whose rule one
            of ours has; one of ours is returned as it is.

    Raises:
        TypeError: of any other class, also a subclass, whose changes would be lost.
        ValueError: a setting of another package's optimizer makes another rule, which the error names. Nothing has been
            changed then.

    Example:
        >>> theirs = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(3))], lr=0.1)
        >>> ours = fusedopt.replace(theirs)
        >>> type(ours) is fusedopt.AdamW and ours.param_groups is theirs.param_groups
        True
    """
    if isinstance(optimizer, (FusedStep, LBFGS, GenericOptimizer)):
        return optimizer
    classes = _classes()
    ours = classes.get(type(optimizer))
    if ours is None:
        if isinstance(optimizer, torch.optim.Optimizer) and (taken := take_over(optimizer)) is not None:
            _count_as_stepped(optimizer)
            return taken
        name = f"{type(optimizer).__module__}.{type(optimizer).__qualname__}"
        raise TypeError(f"fusedopt has no replacement for {name}; it has {sorted(c.__name__ for c in classes)}")
    new = ours.__new__(ours)
    new.__setstate__({"defaults": optimizer.defaults, "state": optimizer.state, "param_groups": optimizer.param_groups})
    if isinstance(new, FusedStep):
        new._step_supports_amp_scaling = getattr(optimizer, "_step_supports_amp_scaling", False)
    _count_as_stepped(optimizer)
    return new


def _count_as_stepped(optimizer: Any) -> None:
    """Its schedulers ask it, and warn that a step was left out where another takes them."""
    optimizer._opt_called = True
