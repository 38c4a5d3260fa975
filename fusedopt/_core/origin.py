"""Whose a checkpoint is, told by its keys: one of another optimizer is refused before anything is changed."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Mapping, Set
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from .. import _C
from .._peers.signs import CONVERTED, other_rule, whose
from .wrapped import wrapped_class


@dataclass(frozen=True)
class Keys:
    """What a class may have in a group or in a param's state, and what of it must be there for a step."""

    known: frozenset[str]
    needed: frozenset[str]


@dataclass(frozen=True)
class Kind:
    """A class by what its checkpoints have: in groups, and in a state; in one of several where params differ."""

    name: str
    group: Keys
    states: list[Keys]
    # Whether a state with any key in it is taken for complete.
    whole: bool = True
    # Of the keys of its groups those that tell it from others: what goes beyond torch's is in few of its files, and in
    # those of other packages.
    telling: Keys = Keys(frozenset(), frozenset())
    # The hyper-parameter without which a class keeps no state, where there is one.
    switch: str | None = None

    @property
    def state(self) -> Keys:
        return Keys(
            frozenset[str]().union(*(keys.known for keys in self.states)),
            self.states[0].needed.intersection(*(keys.needed for keys in self.states)),
        )


# Of the classes whose step reads more than a rule's.
_HYPERS: dict[str, tuple[str, ...]] = {
    "LBFGS": ("lr", "max_iter", "max_eval", "tolerance_grad", "tolerance_change", "history_size", "line_search_fn"),
    "Muon": ("lr", "weight_decay", "momentum", "nesterov", "ns_coefficients", "eps", "ns_steps", "adjust_lr_fn"),
}
_LBFGS = ("func_evals", "n_iter", "d", "t", "old_dirs", "old_stps", "ro", "H_diag", "prev_flat_grad", "prev_loss", "al")
_STATES: dict[str, list[tuple[str, ...]]] = {
    "Adafactor": [("step", "row_var", "col_var"), ("step", "variance")],
    "LBFGS": [_LBFGS],
}
# States that come with some hyper-parameters, or with a second step, only.
_ON_DEMAND = frozenset({"momentum_buffer", "max_exp_avg_sq", "max_exp_avg_var", "grad_avg", *_LBFGS[2:]})


def refuse_foreign(optimizer: Optimizer, groups: Iterable[Mapping[str, Any]], state: Mapping[Tensor, Any]) -> None:
    """Raise ValueError for groups or states that another optimizer, of this package or of another, has written.

    Keys that no class knows are a user's and pass beside the class's own, and so does what lacks keys that torch fills
    in or does without.
    """
    kind, kinds = kind_of(type(optimizer)), _kinds()
    groups_of = {name: [its.telling] for name, its in kinds.items()}
    states_of = {name: its.states for name, its in kinds.items()}
    # torch's classes take each other's groups as far as they can step by them.
    alike = {name for name in kinds if hasattr(torch.optim, name)}
    if kind.name in kinds.keys() - alike:
        alike = set()
    for index, group in enumerate(groups):
        others = _others(group.keys(), kind.group, groups_of, alike)
        first = next((its for p in group["params"] if isinstance(its := state.get(p), dict) and its), {})
        keys, remedy = sorted(map(str, group.keys() - {"params"})), _remedy(kind, first, group)
        if others:
            raise ValueError(
                f"param_groups[{index}] of the file is of another optimizer, {whose(first) or ' or '.join(others)}, by "
                f"its keys: {keys}; {kind.name} steps by {sorted(kind.group.known)}; {remedy}"
            )
        lacks = kind.group.needed - group.keys()
        if lacks:
            raise ValueError(
                f"param_groups[{index}] of the file lacks {sorted(lacks)}, by which {kind.name} steps, and has the "
                f"keys {keys}{_seems(first, group)}; {remedy}"
            )
        setting = other_rule(kind.name, group, kind.group.known | optimizer.defaults.keys())
        if setting is not None:
            raise ValueError(
                f"param_groups[{index}] of the file has {setting.key}={group[setting.key]!r}, which {kind.name} does "
                f"not know: {setting.maths}; load a file of {kind.name}, or delete the key to go on without that"
            )
        passed: set[frozenset[Any]] = set()  # most params have the same keys
        for position, param in enumerate(group["params"]):
            its = state.get(param)
            if not its or not isinstance(its, dict):
                continue
            label, found = f"param {position} of group {index}", frozenset(its)
            _refuse_wrapped(label, its, param)
            if found in passed:
                continue
            others, remedy = _others(found, kind.state, states_of), _remedy(kind, found, group)
            if others or _is_foreign(kind, found, group):
                raise ValueError(
                    f"{label}: its state in the file is of another optimizer, "
                    f"{whose(found) or ' or '.join(others) or whose((), group) or 'unknown here'}, by its keys: "
                    f"{sorted(map(str, found))}; {kind.name} keeps {sorted(kind.state.known)}; {remedy}"
                )
            if kind.whole and not any(kept.needed <= found for kept in kind.states):
                raise ValueError(
                    f"{label}: its state in the file lacks {sorted(kind.states[0].needed - found)}, which {kind.name} "
                    f"keeps, and has the keys {sorted(map(str, found))}{_seems(found, group)}; {remedy}"
                )
            passed.add(found)


def _remedy(kind: Kind, found: Collection[Any], group: Collection[Any]) -> str:
    converted = ", or convert this one by fusedopt.load_foreign" if whose(found, group) in CONVERTED else ""
    return f"load a file of {kind.name}, or none to start anew{converted}"


def _refuse_wrapped(label: str, its: Mapping[Any, Any], param: Tensor) -> None:
    for key, value in its.items():
        if (cls := wrapped_class(value, param)) is not None:
            raise ValueError(
                f"{label}: {key!r} of its state in the file is a {cls}, which no step here can read; load a file with "
                "an ordinary tensor in its place, as a DTensor's full_tensor() makes and others' dequantize(), or "
                "torchao's by fusedopt.load_foreign"
            )


def _is_foreign(kind: Kind, found: Set[Any], group: Mapping[str, Any]) -> bool:
    """Whether a state is of no class of the package: what the class keeps would start anew without a word."""
    if not kind.whole or found & kind.state.known or not kind.state.known:
        return False
    # Of a class that keeps nothing without momentum all keys may be a user's, but for those that are known.
    keeps = bool(kind.state.needed) or kind.switch is None or bool(group.get(kind.switch))
    return keeps or whose(found) is not None


def _seems(found: Collection[Any], group: Collection[Any]) -> str:
    theirs = whose(found, group)
    return f", as {theirs} has" if theirs else ""


def _others(found: Set[Any], own: Keys, kinds: Mapping[str, list[Keys]], alike: Set[str] = frozenset()) -> list[str]:
    """The classes that explain all keys that `own` explains, and more, or else all of theirs where `own` lacks some.

    Those `alike` may explain more, and what another explains of that is theirs.
    """
    mine, lacks = found & own.known, not own.needed <= found
    of_alike = [found & keys.known for name in alike for keys in kinds.get(name, ())]
    sizes = {}
    for name, several in kinds.items():
        for keys in several:
            theirs = found & keys.known
            more = mine < theirs and name not in alike and not any(theirs <= other for other in of_alike)
            if theirs and keys.needed <= found and (more or (lacks and mine <= theirs)):
                sizes[name] = len(theirs)
    return [name for name, size in sizes.items() if size == max(sizes.values())]


def kind_of(cls: type) -> Kind:
    """That of the exported class that this is or extends; a compiled rule says itself what it knows."""
    for exported in cls.__mro__:
        if exported in _exported():
            kind = _kinds()[exported.__name__]
            # A step of a subclass's own may keep what it likes.
            return kind if cls.step is exported.step else replace(kind, whole=False)  # type: ignore[attr-defined]
    # What a compiled rule keeps on demand, it alone knows.
    return Kind(cls.__name__, _hypers(cls), [Keys(_states(cls), frozenset())])


def state_keys() -> frozenset[str]:
    """All that states of the package's classes may have."""
    return frozenset[str]().union(*(kind.state.known for kind in _kinds().values()))


@functools.cache
def _exported() -> frozenset[type]:
    import fusedopt

    found = (getattr(fusedopt, name) for name in fusedopt.__all__)
    known = (c for c in found if isinstance(c, type) and issubclass(c, Optimizer))
    return frozenset(c for c in known if hasattr(c, "_rule") or c.__name__ in _STATES)


@functools.cache
def _kinds() -> dict[str, Kind]:
    kinds = {}
    for cls in sorted(_exported(), key=lambda c: c.__name__):
        hypers = _hypers(cls)
        needed = hypers.needed - _filled_in(cls)
        states = [frozenset(names) for names in _STATES.get(cls.__name__, [])] or [_states(cls)]
        kept = [Keys(known, known - _ON_DEMAND) for known in states]
        # torch's L-BFGS fills in what its state lacks.
        whole, switch = cls.__name__ != "LBFGS", "momentum" if "momentum" in hypers.known else None
        telling = Keys(hypers.known - getattr(cls, "_beyond", {}).keys(), needed)
        kinds[cls.__name__] = Kind(cls.__name__, Keys(hypers.known, needed), kept, whole, telling, switch)
    return kinds


def _hypers(cls: Any) -> Keys:
    # A compiled rule may be named as any other class.
    names: Iterable[str] = (
        getattr(cls, "_hyper_names", ()) or _HYPERS.get(cls.__name__) or _C.rules()[cls._rule]["hypers"]
    )
    # "betas.0" and "betas.1" are a pair in the group.
    known = frozenset(name.partition(".")[0] for name in names)
    return Keys(known, known - getattr(cls, "_rule_defaults", {}).keys() - getattr(cls, "_beyond", {}).keys())


def _states(cls: Any) -> frozenset[str]:
    return frozenset(_C.states(cls._rule)) | frozenset(_C.counters(cls._rule))


def _filled_in(cls: type[Optimizer]) -> set[str]:
    """The keys that torch adds to groups of older files."""
    group: dict[str, Any] = {"params": []}
    object.__new__(cls).__setstate__({"defaults": {}, "state": {}, "param_groups": [group]})
    return set(group)
