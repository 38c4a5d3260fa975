"""A step over lists of params, gradients and states, which no optimizer owns."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .optimizer import FusedStep
from .untraced import untraced


class Lists(NamedTuple):
    """What one of torch's functions has in lists, by the names that the class of the same maths has for states."""

    cls: type[FusedStep]
    module: str  # of torch.optim, where it has the function of this name
    name: str
    states: Mapping[str, str]
    # Lists that count only if this argument is true; torch's callers leave them empty otherwise.
    only_with: Mapping[str, str] = {}
    # Whether an entry may be None: a state that is yet to be made, or that params of this shape do not have.
    may_lack: bool = False
    # Whether counters are numbers that the caller has counted already.
    counted: bool = False
    # What groups of the class have and the function has no argument for, since it is about new states.
    more: Mapping[str, Any] = {}
    check: Callable[[dict[str, Any]], None] | None = None


# Arguments of torch's functions that are one entry of the class's groups.
_TUPLES = {
    "betas": ("beta1", "beta2"),
    "eps": ("eps1", "eps2"),
    "etas": ("etaminus", "etaplus"),
    "step_sizes": ("step_size_min", "step_size_max"),
}
_PARTS = {f"['{whole}'][{at}]": part for whole, parts in _TUPLES.items() for at, part in enumerate(parts)}
_SCALING = ("grad_scale", "found_inf")

# Optimizers that no constructor has seen, each of which one call at a time has: between calls they keep a plan alone.
_idle: dict[type[FusedStep], list[FusedStep]] = {}


def step_lists(lists: Lists, given: dict[str, Any]) -> None:
    """One step with the arguments of one of torch's functions, by their names.

    Raises:
        ValueError: a list has not one entry for each param, or a number is NaN or out of range.
        TypeError: an entry is no tensor, or a number is none.
        RuntimeError: a gradient or a state does not fit its param. Nothing has been written then.
    """
    if torch.compiler.is_compiling():
        return untraced(step_lists, lists, given)
    grads = _grads_in(given)
    states = [name for name in lists.states if given.get(lists.only_with.get(name, ""), True)]
    for name in ("params", grads, *states):
        _check_list(given, name, may_lack=lists.may_lack and name in states)
    # A param that is listed twice has two states here, and in an optimizer one.
    if given.get("differentiable") or (states and len(set(map(id, given["params"]))) < len(given["params"])):
        return _call_torch(lists, given, range(len(given["params"])))
    idle = _idle.setdefault(lists.cls, [])
    optimizer = idle.pop() if idle else lists.cls.__new__(lists.cls)
    try:
        optimizer.param_groups = [_group_of(lists, given)]
        optimizer.state = _states_of(lists, given, states)  # type: ignore[assignment]
        optimizer.__dict__.update((name, given[name]) for name in _SCALING if given.get(name) is not None)
        _step(lists, given, optimizer, given[grads])
        if lists.may_lack:
            _hand_back(lists, given, states, optimizer.state)
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        told = _in_words_of(lists, error)
        if told is error:
            raise
        raise told from None
    finally:
        optimizer.param_groups, optimizer.state = [], {}  # type: ignore[assignment]
        for name in _SCALING:
            optimizer.__dict__.pop(name, None)
        idle.append(optimizer)


def _step(lists: Lists, given: dict[str, Any], optimizer: FusedStep, grads: Sequence[Tensor]) -> None:
    if lists.check is not None:
        lists.check(optimizer.param_groups[0])
    params = optimizer.param_groups[0]["params"]
    if optimizer._known_to_torch_alone():
        return _call_torch(lists, given, range(len(params)))
    plan = optimizer._planned()
    leftover = plan.step(optimizer, grads=grads)
    if not leftover:
        return
    if lists.name == "adafactor":  # torch's takes a shard's norm for the norm of a vector
        optimizer._refuse_shards(leftover)
    left = {id(p) for _, some in leftover for p in some}
    _call_torch(lists, given, [i for i, p in enumerate(params) if id(p) in left])
    plan.step(optimizer, engine_only=True, grads=grads)


def _grads_in(given: Mapping[str, Any]) -> str:
    """What gradients are called: sgd() has a name of its own."""
    return "d_p_list" if "d_p_list" in given else "grads"


def _check_list(given: Mapping[str, Any], name: str, may_lack: bool) -> None:
    values = given[name]
    if not isinstance(values, (list, tuple)):
        raise TypeError(f"{name} is a {type(values).__name__}; give a list with one tensor for each param")
    if len(values) != len(given["params"]):
        raise ValueError(f"{name} has {len(values)} entries and params {len(given['params'])}; give one for each param")
    if may_lack and not isinstance(values, list) and any(value is None for value in values):
        raise TypeError(
            f"{name} is a {type(values).__name__}, which takes no new state in the place of None; give a list"
        )
    if not may_lack:
        for index, value in enumerate(values):
            if value is None:
                raise TypeError(f"{name}[{index}] is None; give the tensor of params[{index}]")


def _group_of(lists: Lists, given: Mapping[str, Any]) -> dict[str, Any]:
    group = {name: value for name, value in given.items() if name not in lists.states and name not in _SCALING}
    for whole, parts in _TUPLES.items():
        if parts[0] in group:
            group[whole] = tuple(group.pop(part) for part in parts)
    group["params"] = list(given["params"])
    return {**group, **lists.more}


def _states_of(lists: Lists, given: Mapping[str, Any], names: Sequence[str]) -> dict[Tensor, dict[str, Any]]:
    if not names:
        return {}
    keys = [lists.states[name] for name in names]
    columns: list[Iterable[Any]] = [given[name] for name in names]
    if lists.counted:
        columns[-1] = [int(step) - 1 for step in given[names[-1]]]
    made = {p: dict(zip(keys, row, strict=True)) for p, *row in zip(given["params"], *columns, strict=True)}
    if lists.may_lack:
        made = {p: {key: value for key, value in row.items() if value is not None} for p, row in made.items()}
    return made


def _hand_back(lists: Lists, given: Mapping[str, Any], names: Sequence[str], state: Mapping[Tensor, Any]) -> None:
    """New states into the lists, from which torch's callers take them."""
    for name in names:
        for index, p in enumerate(given["params"]):
            if given[name][index] is None and lists.states[name] in state.get(p, {}):
                given[name][index] = state[p][lists.states[name]]


def _call_torch(lists: Lists, given: Mapping[str, Any], places: Sequence[int]) -> None:
    """torch's own function, on some of the params; what a step is to be skipped for, only its fused functions know."""
    if given.get("found_inf") is not None and float(given["found_inf"]) != 0:
        return
    function, known = _torchs_own(lists.module, lists.name)
    for name, value in given.items():
        if name not in known and value:
            raise TypeError(
                f"{name}={value!r} is for a newer torch: {lists.name}() of the installed {torch.__version__}, which is "
                "left for some of the params, lacks it"
            )
    grads = _grads_in(given)
    in_lists = ["params", grads, *(name for name in lists.states if given[name])]
    some = {name: [given[name][i] for i in places] for name in in_lists}
    # torch has its fused functions alone unscale, and these take ordinary tensors alone.
    if given.get("grad_scale") is not None:
        some[grads] = [(grad / given["grad_scale"]).to(grad.dtype) for grad in some[grads]]
    ours = dict.fromkeys(("fused", *_SCALING))
    function(**{name: value for name, value in {**given, **some, **ours}.items() if name in known})
    for name in in_lists if lists.may_lack else ():
        for i, value in zip(places, some[name], strict=True):
            if given[name][i] is not value:
                given[name][i] = value


@cache
def _torchs_own(module: str, name: str) -> tuple[Callable[..., None], frozenset[str]]:
    function = getattr(importlib.import_module(f"torch.optim.{module}"), name)
    return function, frozenset(inspect.signature(function).parameters)


def _in_words_of(lists: Lists, error: Exception) -> Exception:
    """An error of a plan, which speaks of groups and states, about lists."""
    if not error.args or not isinstance(error.args[0], str):
        return error
    text = error.args[0]
    for of_group, own in _PARTS.items():
        text = text.replace(f"param_groups[0]{of_group}", own)
    text = re.sub(r"param_groups\[0\]\['(\w+)'\]", r"\1", text)
    text = re.sub(r"param (\d+) of group 0", r"params[\1]", text)
    text = text.replace("; set .grad anew", "; give another in grads")
    by_key = {key: name for name, key in lists.states.items()}
    text = re.sub(
        r"params\[(\d+)\]: its state lacks '(\w+)'.*",
        lambda found: f"{by_key[found[2]]}[{found[1]}] is None; give the tensor of params[{found[1]}]",
        text,
    )
    if text == error.args[0]:
        return error
    return TypeError(text) if isinstance(error, KeyError) else type(error)(text)
