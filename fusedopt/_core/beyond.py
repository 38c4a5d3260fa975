"""Arguments that a class of ours has beyond torch's of the same name, and with them another rule than torch's.

A class lists them in `_beyond`, with the values by which its rule is torch's, or its reference's where torch has none.
Only other values are in groups, so that what does torch's step has torch's groups and writes torch's files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch.optim.optimizer import Optimizer

from .arguments import check_number, is_number, refuse_nan


def within_torch(beyond: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """What torch's constructor is to be given, once the rest is known to be in range."""
    check_beyond(beyond, given)
    return {name: value for name, value in given.items() if name not in beyond}


def check_beyond(beyond: Mapping[str, Any], group: Mapping[str, Any]) -> None:
    """Raise TypeError or ValueError for what is no number, or negative."""
    for name, default in beyond.items():
        if is_number(default) and name in group:
            check_number(name, group[name], f"{name} value")
            refuse_nan({name: group[name]})


def go_beyond(optimizer: Optimizer, given: Mapping[str, Any]) -> None:
    """Add to defaults and groups what torch's constructor was not given."""
    ours: Any = optimizer
    beyond = {name: given[name] for name, value in ours._beyond.items() if given.get(name, value) != value}
    ours.defaults.update(beyond)
    for group in ours.param_groups:
        for name, value in beyond.items():
            group.setdefault(name, value)
        if ours._beyond.keys() & group.keys():
            ours._check_group(group)


def refuse_beyond(optimizer: Optimizer, groups: Iterable[int]) -> None:
    """Raise RuntimeError for what torch's own step would leave out of these groups."""
    beyond: Mapping[str, Any] = optimizer._beyond  # type: ignore[attr-defined]
    for index in groups:
        group = optimizer.param_groups[index]
        for name, value in beyond.items():
            # What says where counters are is in no formula.
            if name != "capturable" and group.get(name, value) != value:
                raise RuntimeError(
                    f"param_groups[{index}] has {name}={group[name]!r}, and torch's own step, which is left for sparse "
                    "and differentiable gradients, tensor subclasses and devices without an engine, does not know "
                    f"it; set {name!r} to {value!r} there, or step its params as ordinary tensors"
                )
