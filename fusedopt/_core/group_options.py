"""Options that a group has for itself, in the place of the optimizer's."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from functools import cache
from typing import Any

import torch

from .arguments import Options, own_parameters
from .precision import Precision

# Those that are about one param. The others are about all of them together.
OF_GROUPS = ("state_dtype", "master_weights", "rounding", "ema_decay", "offload")
# What torch's own step would leave out, as errors say it.
BEYOND_TORCH = f"{', '.join(OF_GROUPS)} or copies"


@cache
def of_class(cls: Any) -> set[str]:
    """Those of them that a class takes."""
    return {p.name for p in own_parameters(cls)} & {*OF_GROUPS}


def refuse_options(groups: Iterable[Mapping[str, Any]], own: Container[str], first: int = 0) -> None:
    """Raise ValueError for groups with a key that would go unread for an option, unless it is among a rule's `own`."""
    for index, group in enumerate(groups, first):
        for name in Options._fields:
            if name in group and name not in own:
                raise ValueError(
                    f"param_groups[{index}] has {name!r}, which is an option of the optimizer, one for all of its "
                    "groups; give it to the constructor, or make an optimizer for each of its values"
                )


def precision_of(kinds: Mapping[str, str], given: Options, group: Mapping[str, Any]) -> Precision:
    """What a group asks for, and of what it does not mention the optimizer."""
    values = {name: group.get(name, getattr(given, name)) for name in OF_GROUPS}
    return Precision.of(kinds, rounding_seed=given.rounding_seed, **values)


def resolve(
    kinds: Mapping[str, str],
    given: Options,
    copies: Mapping[torch.Tensor, torch.Tensor] | None,
    known: dict[int, Precision],
    group: Mapping[str, Any],
    index: int,
    state: Mapping[torch.Tensor, Any],
) -> dict[str, Any]:
    """The options of a group that has some of its own, as csrc/host/options.h reads them.

    `known`: by params' ids those under which their states are stored, which stay.
    """
    precision = precision_of(kinds, given, group)
    if params := group["params"]:
        # One without states may have the id of another that is gone.
        if state.get(params[0]) and known.get(id(params[0]), precision) != precision:
            raise ValueError(
                f"param_groups[{index}] has come to have other options; states are stored by them, so construct the "
                "optimizer anew and load this one's state_dict() into it"
            )
        known[id(params[0])] = precision
    return precision.for_plan(copies)


def keep_options(mine: Mapping[str, Any], loaded: dict[str, Any]) -> None:
    """Have a loaded group ask for what its predecessor does, and take over no more than the file's number."""
    for name in OF_GROUPS:
        saved = loaded.pop(name, None)
        if name in mine:
            number = name == "ema_decay" and mine[name] is not None and saved is not None
            loaded[name] = saved if number else mine[name]
