"""What is said of a class of another package so that its groups and states become those of one of ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .signs import other_rule

Group = Mapping[str, Any]
State = Mapping[str, Any]

# What groups have beside hyper-parameters, whoever made them.
_BOOKKEEPING = ("params", "param_names", "initial_lr")
# What is one for a whole optimizer of ours, and may be a key of theirs with another meaning.
_OPTIONS = ("max_grad_norm", "ema_decay", "state_dtype", "master_weights", "rounding", "rounding_seed", "offload")


@dataclass(frozen=True)
class Peer:
    """A class of another package and the class of ours that has its rule, as far as `refused` does not find otherwise.

    Its constructor's arguments that are not in its groups are `attributes` with their defaults: read from a live
    optimizer, told by the user for a file, and put into the groups before anything else reads these.
    """

    rule: str | Callable[[Group], str]
    # Keys of ours by theirs, of hyper-parameters and of states. Those of one name need not be said.
    hypers: Mapping[str, str] = field(default_factory=dict)
    states: Mapping[str, str] = field(default_factory=dict)
    # What ours is to have beside that.
    fixed: Mapping[str, Any] = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict)
    # What decides on the rule and is taken care of above and below; other such settings are refused.
    reads: Set[str] = frozenset()
    # Whether they count steps in the group.
    group_step: bool = False
    # What is more than another name: of a group, hyper-parameters of ours; of a state, states of ours.
    more_hypers: Callable[[Group], Mapping[str, Any]] = lambda group: {}
    more_states: Callable[[State, Group, Tensor], Mapping[str, Any]] = lambda state, group, param: {}
    # The line of maths by which a group's rule is not ours, None if it is.
    refused: Callable[[Group], str | None] = lambda group: None
    # Numbers that ours keep once, and constructor's options of ours that are to go with it.
    once: Callable[[Group], Mapping[str, Any]] = lambda group: {}
    options: Callable[[Group], Mapping[str, Any]] = lambda group: {}

    def rule_of(self, group: Group) -> str:
        return self.rule if isinstance(self.rule, str) else self.rule(group)

    def group(self, theirs: Group, defaults: Mapping[str, Any]) -> dict[str, Any]:
        """A group of ours, with what ours has by default where theirs says nothing."""
        made = {key: value for key, value in defaults.items() if key not in _OPTIONS}
        named = {self.hypers.get(key, key): value for key, value in theirs.items()}
        made.update((key, value) for key, value in named.items() if key in made)
        made.update(self.fixed)
        made.update(self.more_hypers(theirs))
        return {**made, **{key: theirs[key] for key in _BOOKKEEPING if key in theirs}}

    def state(self, theirs: State, group: Group, param: Tensor, known: Set[str]) -> dict[str, Any]:
        """A param's state of ours, whose keys are among the `known`."""
        named = {self.states.get(key, key): value for key, value in theirs.items()}
        made = {key: value for key, value in named.items() if key in known}
        if self.group_step and theirs and "step" in known:
            made["step"] = group["step"]
        made.update(self.more_states(theirs, group, param))
        if "step" in made:
            made["step"] = torch.tensor(float(made["step"]))
        return made


def why_not(peer: Peer, group: Group, known: Set[str]) -> str | None:
    """The line of maths by which a group's rule is not that of our class, whose hyper-parameters are `known`."""
    if (line := peer.refused(group)) is not None:
        return line
    known = known | peer.hypers.keys() | peer.reads
    setting = other_rule(peer.rule_of(group), {**group, **peer.fixed}, known)
    return None if setting is None else f"with {setting.key}={group[setting.key]!r} {setting.maths}"
