"""Group keys that a step of ours does not read: arguments of a torch that is newer than this package."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch.optim.optimizer import Optimizer

from .arguments import twin_of

# What a step reads of a group beside "params". To an argument that chooses belong the values that it knows, the default
# first; to any other None.
Reads = Mapping[str, Collection[Any] | None]

# What every plan reads beside its rule's hyper-parameters, or may leave unread since it says how and not what to do.
FLAGS = ("maximize", "differentiable", "capturable", "foreach", "fused")


class Unread:
    """What groups of a torch.optim class may say that a step of ours does not know; false if there is nothing.

    Only arguments of that class's own constructor count: whatever else is in a group is its user's or a scheduler's.
    """

    def __init__(self, twin: type[Optimizer], reads: Reads) -> None:
        self.twin = twin
        arguments = list(inspect.signature(twin.__init__).parameters.values())[2:]
        self.arguments = {p.name: p.default for p in arguments if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
        self._choices = {name: tuple(values) for name, values in reads.items() if values is not None}
        self._defaults = {name: default for name, default in self.arguments.items() if name not in reads}
        self._defaults.update((name, values[0]) for name, values in self._choices.items())
        # What the installed torch's constructor was found to take.
        self._taken: dict[str, list[Any]] = {name: [] for name in self._choices}

    def __bool__(self) -> bool:
        return bool(self._defaults)

    def find(self, groups: Iterable[Mapping[str, Any]]) -> str | None:
        """Describe the first value that torch's own step alone knows.

        Raises:
            TypeError: the installed torch has no argument of a name that this package knows from a newer one.
            ValueError: it does not know the value, either.
        """
        for index, group in enumerate(groups):
            for key, default in self._defaults.items():
                if key not in group or _among(group[key], [default]):
                    continue
                if key in self._choices:
                    self._ask_torch(index, key, group[key])
                    if _among(group[key], self._choices[key]):
                        continue
                return f"param_groups[{index}]['{key}'] is {group[key]!r}"
        return None

    def _ask_torch(self, index: int, key: str, value: Any) -> None:
        if _among(value, self._taken[key]):
            return
        try:
            self.twin([torch.nn.Parameter(torch.zeros(1, 1))], **{key: value})
        except (TypeError, ValueError) as error:
            raise type(error)(
                f"param_groups[{index}]['{key}'] is {value!r}, which {self.twin.__name__} of torch {torch.__version__} "
                f"does not take ({error}); set it to {self._defaults[key]!r}, or use a torch that does"
            ) from error
        self._taken[key].append(value)


def unread_by(cls: type[Optimizer], base: type[Optimizer], reads: Reads) -> Unread | None:
    """What a class that steps by `base` leaves unread of the groups that torch's constructor makes, past `base`."""
    twin = twin_of(cls, base)
    return None if twin is Optimizer else (Unread(twin, reads) or None)


def _among(value: Any, values: Iterable[Any]) -> bool:
    try:
        return any(value is other or bool(value == other) for other in values)
    except (TypeError, ValueError, RuntimeError):  # arrays compare element by element
        return False
