"""What is said of a class of another package so that its groups and states become those of one of ours."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .._core.arguments import Options
from .signs import TELLING, other_rule

Group = Mapping[str, Any]
State = Mapping[str, Any]

# What groups have beside hyper-parameters, whoever made them.
_BOOKKEEPING = ("params", "param_names", "initial_lr")
# What is called the same wherever there is such a thing.
_COMMON = frozenset({"lr", "betas", "momentum", "eps", "weight_decay"})
# What is one for a whole optimizer of ours, and may be a key of theirs with another meaning.
_OPTIONS = Options._fields


def largest_shape(state: State) -> tuple[int, ...]:
    """That of the tensor with the most elements, which is like the param wherever there is one."""
    return max((tuple(v.shape) for v in state.values() if isinstance(v, Tensor)), key=math.prod, default=())


@dataclass(frozen=True)
class Back:
    """How one of theirs is written out of one of ours, by the names that Peer has for the way here."""

    # All keys of their groups, with what they are where ours has no number for them.
    group: Mapping[str, Any]
    # What is more than another name: of a group of ours, hyper-parameters of theirs; of a state of ours, whose keys
    # are theirs already, and its group, the state as they keep it.
    hypers: Callable[[Group], Mapping[str, Any]] = lambda group: {}
    state: Callable[[State, Group], Mapping[str, Any]] = lambda state, group: state
    # Whether they load float32 states of params in 16 bits as they are, which torch's load_state_dict rounds.
    loads_float32: bool = False
    # What they read off their constructor and not off the groups that have it as well, with its defaults.
    constructor: Mapping[str, Any] = field(default_factory=dict)
    # What they count steps in.
    counter: Callable[[float], Any] = int


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
    # Of a state, keys of theirs that `more_states` reads; and whether no other is theirs, by whatever name ours has.
    keeps: Set[str] = frozenset()
    own_names: bool = False
    # What ours is to have beside that.
    fixed: Mapping[str, Any] = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict)
    # What decides on the rule and is taken care of above and below; other such settings are refused.
    reads: Set[str] = frozenset()
    # What their steps add to groups, which is no user's.
    adds: Set[str] = frozenset()
    # Whether they count steps in the group.
    group_step: bool = False
    # What is more than another name: of a group, hyper-parameters of ours; of a state, states of ours.
    more_hypers: Callable[[Group], Mapping[str, Any]] = lambda group: {}
    more_states: Callable[[State, Group, Tensor], Mapping[str, Any]] = lambda state, group, param: {}
    # The line of maths by which a group's rule is not ours, None if it is.
    refused: Callable[[Group], str | None] = lambda group: None
    # The same of a live optimizer, by what it steps by that is in no group and no file.
    refused_live: Callable[[Any], str | None] = lambda optimizer: None
    # Numbers that ours keep once, and constructor's options of ours that are to go with it.
    once: Callable[[Group], Mapping[str, Any]] = lambda group: {}
    options: Callable[[Group], Mapping[str, Any]] = lambda group: {}
    # Of a tensor's state, the shape of its param.
    shape: Callable[[State], tuple[int, ...]] = largest_shape
    # None where they cannot read what ours would write.
    back: Back | None = None

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
        read = self.keys(known)
        named = {self.states.get(key, key): value for key, value in theirs.items() if key in read}
        made = {key: value for key, value in named.items() if key in known}
        if self.group_step and theirs and "step" in known:
            made["step"] = group["step"]
        made.update(self.more_states(theirs, group, param))
        if "step" in made:
            made["step"] = torch.tensor(float(made["step"]), device="cpu")
        return made

    def keys(self, known: Set[str]) -> Set[str]:
        """What a state of theirs may have of that from which one of ours is made, whose keys are the `known`."""
        same = frozenset[str]() if self.own_names else known - set(self.states.values())
        return same | self.states.keys() | self.keeps | {"step"}

    def lacks(self, theirs: Group, needed: Set[str]) -> set[str]:
        """Hyper-parameters that every class has by which ours steps, and of which a group of theirs says nothing."""
        named = {self.hypers.get(key, key) for key in theirs} | self.fixed.keys()
        return set((needed & _COMMON) - named - self.more_hypers(theirs).keys())

    def others(self, theirs: Group, known: Set[str]) -> set[str]:
        """Keys of a group that tell of another class."""
        return set((TELLING & theirs.keys()) - known - self.hypers.keys() - self.attributes.keys())

    def their_group(self, back: Back, ours: Group, steps: Set[float]) -> dict[str, Any]:
        """A group of theirs; of the steps that its params have counted they keep one, if any."""
        named = {theirs: ours[name] for theirs, name in self.hypers.items() if name in ours}
        made = {key: named.get(key, ours.get(key, value)) for key, value in back.group.items()}
        made.update(back.hypers(ours))
        if self.group_step and steps:
            made["step"] = back.counter(max(steps))
        return {**made, **{key: ours[key] for key in _BOOKKEEPING if key in ours}}

    def their_state(self, back: Back, ours: State, group: Group) -> dict[str, Any]:
        """A param's state as theirs keep it."""
        names = {ours: theirs for theirs, ours in self.states.items()}
        made = {names.get(key, key): value for key, value in ours.items()}
        if "step" in made:
            made["step"] = back.counter(float(made["step"]))
        made = dict(back.state(made, group))
        if self.group_step:
            made.pop("step", None)
        return made


def other_order(theirs: Sequence[Group], ours: Sequence[Group]) -> str | None:
    """The first name of a param whose place another has, where both say the same names; None if there is none.

    Other names may well be the same params', as a wrapper's are.
    """
    saved, mine = ([name for group in groups for name in group.get("param_names", ())] for groups in (theirs, ours))
    if sorted(saved) != sorted(mine):
        return None
    return next((name for name, here in zip(saved, mine, strict=True) if name != here), None)


def of_one_kind(peer: Peer, groups: Sequence[Group], rule: str) -> tuple[int, str] | None:
    """The first group that is not stepped by `rule`, and by which it is. Without a decay Adam and AdamW are one."""
    for index, group in enumerate(groups):
        if (other := peer.rule_of(group)) != rule and (group["weight_decay"] or {rule, other} != {"Adam", "AdamW"}):
            return index, other
    return None


def why_not(peer: Peer, group: Group, known: Set[str]) -> str | None:
    """The line of maths by which a group's rule is not that of our class, whose hyper-parameters are `known`."""
    if (line := peer.refused(group)) is not None:
        return line
    known = known | peer.hypers.keys() | peer.reads
    setting = other_rule(peer.rule_of(group), {**group, **peer.fixed}, known)
    return None if setting is None else f"with {setting.key}={group[setting.key]!r} {setting.maths}"
