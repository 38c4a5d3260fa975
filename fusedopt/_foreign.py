"""Moving in from other packages' optimizers, a live one or a file of one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch.optim.optimizer import Optimizer

from . import _C
from ._core.callers import warn
from ._core.optimizer import FusedStep
from ._core.origin import kind_of, state_keys
from ._core.precision import HALVES
from ._peers.peer import Peer, of_one_kind, other_order, why_not
from ._peers.registry import OTHERS, PACKAGES, PEERS, name_of
from ._peers.signs import KEYS, package_of

Params = Sequence[torch.Tensor]


@dataclass(frozen=True)
class Converted:
    """A state dict of ours, and what else goes with it."""

    rule: str
    file: dict[str, Any]
    options: Sequence[Mapping[str, Any]]  # by group


def load_foreign(
    optimizer: Optimizer, state_dict: Mapping[str, Any], source: str | type, **constructed_with: Any
) -> None:
    """Load what another package's optimizer has saved into one of ours, which goes on from there by the same rule.

    Of the groups it takes hyper-parameters, names and `initial_lr`; other keys of a user's are left out.

    Args:
        optimizer: one of ours over the same model, of the class whose rule the other has, with any options. What it
            stores in fewer bits is rounded anew.
        state_dict: what the other's `state_dict()` returned.
        source: the other's class, or its name such as "bitsandbytes.AdamW8bit", since files do not say it.
        constructed_with: what its constructor was given of those things that are not in its files, by the names of its
            attributes; as by default if left out: adam_w_mode=True of DeepSpeed, apex and Transformer Engine,
            decoupled_wd=False and _init_lr=1e-4 of lion_pytorch, maximize=False of pytorch_optimizer, and so on.

    Raises:
        TypeError: fusedopt has no class with that rule, `optimizer` is of another, nothing of the name in
            `constructed_with` is known of `source`, or its value is of another kind.
        ValueError: a setting makes another rule, which the error names; or what `load_state_dict` refuses. Nothing has
            been changed then.

    Example:
        >>> param = torch.nn.Parameter(torch.zeros(2))
        >>> optimizer = fusedopt.AdamW([param])
        >>> group = {"lr": 0.1, "betas": (0.5, 0.5), "eps": 0.0, "weight_decay": 0.0, "params": [0]}
        >>> state = {"step": 2, "state1": torch.ones(2), "state2": torch.ones(2)}
        >>> fusedopt.load_foreign(optimizer, {"state": {0: state}, "param_groups": [group]}, "bitsandbytes.AdamW")
        >>> optimizer.state[param]["exp_avg"].tolist(), optimizer.param_groups[0]["betas"]
        ([1.0, 1.0], (0.5, 0.5))
    """
    name = name_of(source)
    told = attributes_told(name, constructed_with)
    optimizer = one_of_ours(optimizer)
    if not isinstance(state_dict, Mapping) or not {"state", "param_groups"} <= state_dict.keys():
        raise ValueError("the file has no 'state' and 'param_groups'; give what the other's state_dict() returned")
    if (first := other_order(state_dict["param_groups"], optimizer.param_groups)) is not None:
        raise ValueError(
            f"the file has its params in another order, by their names: where it has {first!r} the optimizer has "
            "another; give one over the params in the order of the file's param_names"
        )
    params = [group["params"] for group in optimizer.param_groups]
    converted = convert_file(name, state_dict, params, told)
    if not isinstance(optimizer, classes_for(converted.rule, converted.file["param_groups"])):
        raise TypeError(
            f"{name} steps as fusedopt.{converted.rule} does; load its file into one of these, not into a "
            f"{name_of(type(optimizer))}"
        )
    optimizer.load_state_dict(converted.file)


def one_of_ours(optimizer: Any) -> FusedStep:
    """It, or a TypeError: torch's have the same names."""
    if not isinstance(optimizer, FusedStep):
        whose = name_of(type(optimizer))
        raise TypeError(f"this is a {whose}; give one of ours, as fusedopt.replace() makes it")
    return optimizer


def class_of_file(state_dict: Mapping[str, Any], source: str, **constructed_with: Any) -> type:
    """The class of ours that goes on from another package's file."""
    told = attributes_told(name_of(source), constructed_with)
    group: Mapping[str, Any] = next(iter(state_dict["param_groups"]), {})
    with _of_its_class(name_of(source), "param_groups[0] of the file"):
        return _class(PEERS[name_of(source)].rule_of({**told, **group}))


def shape_in(source: str, state: Mapping[str, Any]) -> tuple[int, ...]:
    """The shape of a param, by what another package keeps of it."""
    return PEERS[name_of(source)].shape(state)


def take_over(optimizer: Optimizer) -> FusedStep | None:
    """One of ours in the place of another package's live optimizer; None if that is of no known package.

    Raises:
        TypeError: fusedopt has no class with its rule.
        ValueError: a setting makes another rule.
    """
    name = name_of(type(optimizer))
    if name not in PEERS and name not in OTHERS:
        return None
    peer = _known(name)
    if (line := peer.refused_live(optimizer)) is not None:
        raise ValueError(f"this {name} does not step as ours would: {line}")
    attributes = {key: getattr(optimizer, key, default) for key, default in peer.attributes.items()}
    params = [group["params"] for group in optimizer.param_groups]
    converted = convert_file(name, optimizer.state_dict(), params, attributes, optimizer.defaults)
    ours = _class(converted.rule)
    cycled = "betas" if "betas" in optimizer.defaults else "momentum"
    for old, made in zip(optimizer.param_groups, converted.file["param_groups"], strict=True):
        if "base_momentum" in old and cycled not in made:
            raise ValueError(
                f"a scheduler cycles {cycled!r} of this {name}, which the groups of fusedopt.{converted.rule} do not "
                "have; make it with cycle_momentum=False, or after replace()"
            )
    # Those that are about params in 16 bits are given for all groups where all that have such agree, else to each.
    halves = [any(p.dtype in HALVES for p in its) for its in params]
    asked = [options for options, half in zip(converted.options, halves, strict=True) if half]
    alike = all(options == asked[0] for options in asked)
    own = [{} if alike or not half else options for options, half in zip(converted.options, halves, strict=True)]
    groups = [
        {**group, **options, "params": its}
        for group, options, its in zip(converted.file["param_groups"], own, params, strict=True)
    ]
    new: FusedStep = ours(groups, **(asked[0] if asked and alike else {}))
    new.load_state_dict(converted.file)
    # What holds the groups of the old one, as schedulers do, holds those of the new one.
    for old, made in zip(optimizer.param_groups, new.param_groups, strict=True):
        # OneCycleLR keeps its bounds there, of which optimi has one by the same name.
        cycle = {"max_lr"} if "min_lr" in old else set()
        theirs = (optimizer.defaults.keys() | {"params", "step"} | peer.adds) - cycle
        users = {key: old[key] for key in old.keys() - theirs}
        old.clear()
        old.update({**users, **made})
    new.param_groups = optimizer.param_groups
    new.defaults.update(peer.group({**attributes, **optimizer.defaults, "params": []}, new.defaults))
    del new.defaults["params"]
    optimizer.state = new.state
    return new


def attributes_told(name: str, constructed_with: Mapping[str, Any]) -> dict[str, Any]:
    """What the other's constructor was given of what its groups do not have."""
    attributes = _known(name).attributes
    unknown = constructed_with.keys() - attributes.keys()
    if unknown:
        raise TypeError(
            f"{name} has no {sorted(unknown)[0]!r} beside its groups; give any of {sorted(attributes) or 'none'}"
        )
    for key, value in constructed_with.items():
        refuse_other_kind(key, value, attributes[key])
    return {**attributes, **constructed_with}


def refuse_other_kind(key: str, value: Any, default: Any) -> None:
    """Raise TypeError for text, say, where yes or no is asked for: as a condition "false" would be a yes."""
    if isinstance(default, bool):
        fits, wanted = not isinstance(value, str) and value in (True, False), "True or False"
    else:
        fits, wanted = isinstance(value, (int, float)) and not isinstance(value, bool), "a number"
    if not fits:
        raise TypeError(f"{key} is {value!r}; give {wanted}")


def _known(name: str) -> Peer:
    if name in OTHERS:
        raise TypeError(f"fusedopt has no class with the rule of {name}: {OTHERS[name]}; construct one anew")
    if name not in PEERS:
        package = name.partition(".")[0] + "."
        known = sorted(peer for peer in PEERS if peer.startswith(package)) or sorted(
            {p.partition(".")[0] for p in PEERS}
        )
        raise TypeError(f"fusedopt knows no optimizer {name}; it knows {', '.join(known)}")
    return PEERS[name]


def convert_file(
    name: str,
    state_dict: Mapping[str, Any],
    params: Sequence[Params],
    attributes: Mapping[str, Any],
    defaults: Mapping[str, Any] | None = None,
) -> Converted:
    peer = PEERS[name]
    saved = state_dict["param_groups"]
    sizes = [len(group["params"]) for group in saved], [len(its) for its in params]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"the file has groups of {sizes[0]} params, and the optimizer of {sizes[1]}; give one over the same"
        )
    theirs = [{**attributes, **group, "params": its} for group, its in zip(saved, params, strict=True)]
    with _of_its_class(name, "param_groups[0] of the file"):
        rule = peer.rule_of(theirs[0])
        # Where nothing decays, what comes first may be either.
        other = of_one_kind(peer, theirs, rule)
        if other is not None and not theirs[0]["weight_decay"] and of_one_kind(peer, theirs, other[1]) is None:
            rule, other = other[1], None
    if other is not None:
        raise ValueError(
            f"param_groups[{other[0]}] of {name} steps as fusedopt.{other[1]} does, and param_groups[0] as "
            f"fusedopt.{rule}; take an optimizer for each"
        )
    ours = _class(rule)
    kind, kinds, beyond, base = kind_of(ours), _C.states(ours._rule), ours._beyond, _defaults(ours)
    groups, state, late = [], {}, []
    for index, group in enumerate(theirs):
        with _of_its_class(name, f"param_groups[{index}] of the file"):
            _refuse_groups_of_others(name, index, group, kind.group.known)
            line = why_not(peer, group, kind.group.known | base.keys())
            if line is not None:
                raise ValueError(f"{name} does not step as fusedopt.{rule} does, by its param_groups[{index}]: {line}")
            if lacks := sorted(peer.lacks(group, kind.group.needed)):
                raise KeyError(lacks[0])
            made = peer.group({**group, "params": saved[index]["params"]}, base)
        # As our constructors have it, groups have no key for what is torch's rule.
        groups.append({key: value for key, value in made.items() if key not in beyond or value != beyond[key]})
        for position, param in zip(saved[index]["params"], group["params"], strict=True):
            kept = state_dict["state"].get(position, {})
            with _of_its_class(name, f"the state of param {position}"):
                _refuse_states_of_others(name, position, kept, kind.state.known)
                made = peer.state(kept, group, param, kind.state.known)
            _refuse_unread(name, position, kept, made.keys() & kind.state.known)
            _refuse_shapes(name, position, {key: made[key] for key in made.keys() & kind.state.known}, kinds, param)
            if made:
                state[position] = made
            elif peer.group_step and group.get("step"):
                late.append(position)
    with _of_its_class(name, "param_groups[0] of the file"):
        every = [peer.once({**group, **(defaults or {})}) for group in theirs]
    once = every[0]
    if any(its != once for its in every):
        raise ValueError(
            f"the groups of the file differ in {sorted(once)}, which {name} has once, by its constructor: {every}; "
            "give them all that number"
        )
    if late:
        warn(
            f"params {late} have no state yet: {name} would begin with the count of steps of their group, here each "
            "begins with its own first step, so their first steps differ"
        )
    file = {"state": state, "param_groups": groups, **once}
    return Converted(rule, file, [peer.options(group) for group in theirs])


@contextmanager
def _of_its_class(name: str, what: str) -> Iterator[None]:
    """Whatever key is missed inside tells of another class than was named."""
    try:
        yield
    except KeyError as error:
        raise ValueError(f"{what} lacks {error.args[0]!r}, which {name} has; give the class whose file it is") from None


def _refuse_groups_of_others(name: str, index: int, theirs: Mapping[str, Any], known: Set[str]) -> None:
    """Raise ValueError for a group of another package or another class, by its keys."""
    package = package_of(theirs)
    if package in PACKAGES and package != name.partition(".")[0]:
        raise ValueError(
            f"param_groups[{index}] of the file is of {package} by its keys, and not of {name}: {_some(theirs)}"
        )
    if others := sorted(PEERS[name].others(theirs, known)):
        raise ValueError(
            f"param_groups[{index}] of the file has {others}, which {name} does not have; give the class whose file it "
            "is"
        )


def _refuse_states_of_others(name: str, position: Any, theirs: Mapping[Any, Any], known: Set[str]) -> None:
    """Raise ValueError for a state with what another class is known to keep; keys that none has are a user's."""
    inside = {key: value for its in theirs.values() if isinstance(its, Mapping) for key, value in its.items()}
    kept = {key for key, value in {**theirs, **inside}.items() if value is not None}
    if others := sorted((kept & _all_keys()) - PEERS[name].keys(known)):
        raise ValueError(
            f"the state of param {position} has {others}, which {name} does not keep, among {_some(theirs)}; give the "
            "class whose file it is"
        )


@cache
def _all_keys() -> frozenset[str]:
    """The keys of states of any class, here or there."""
    return state_keys().union(KEYS, *(peer.states.keys() | peer.keeps for peer in PEERS.values()))


def _some(theirs: Mapping[Any, Any]) -> list[str]:
    return sorted(map(str, theirs.keys() - {"params"}))


def _refuse_unread(name: str, position: Any, theirs: Mapping[str, Any], made: Set[str]) -> None:
    """Raise ValueError where nothing of a state would go on: it is another class's."""
    # What has lost bits is kept beside a rule without states, too.
    unread = {key for key, value in theirs.items() if isinstance(value, (torch.Tensor, Mapping))} - {"kahan_comp"}
    if unread - {"step"} and not made - {"step"}:
        raise ValueError(
            f"the state of param {position} is not one of {name}, by its keys: {sorted(map(str, theirs))}; give the "
            "class whose file it is"
        )


def _refuse_shapes(
    name: str, position: Any, made: Mapping[str, Any], kinds: Mapping[str, str], param: torch.Tensor
) -> None:
    """Raise ValueError for a state that is not like its param: another class has more in a tensor, or other params."""
    for key, value in made.items():
        if not isinstance(value, torch.Tensor) or kinds.get(key) == "factor":
            continue
        if value.shape != param.shape if key in kinds else value.numel() != 1:
            raise ValueError(
                f"the state of param {position} has {list(value.shape)} for {key!r}, and the param is "
                f"{list(param.shape)}; give the class whose file it is, and an optimizer over the same params"
            )


def _class(rule: str) -> Any:
    import fusedopt

    return getattr(fusedopt, rule)


def classes_for(rule: str, groups: Sequence[Mapping[str, Any]]) -> tuple[type, ...]:
    rules = {rule}
    # Without a decay the two are one.
    if rules <= {"Adam", "AdamW"} and not any(group["weight_decay"] for group in groups):
        rules = {"Adam", "AdamW"}
    return tuple(_class(rule) for rule in rules)


def _defaults(cls: Any) -> dict[str, Any]:
    return {**cls._beyond, **cls([torch.nn.Parameter(torch.zeros(1, 1))]).defaults}
