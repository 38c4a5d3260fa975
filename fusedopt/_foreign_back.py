"""The way back: what another package's optimizer would have saved where one of ours is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.optim.optimizer import Optimizer

from ._core.callers import warn
from ._core.optimizer import FusedStep
from ._core.origin import kind_of
from ._core.precision import HALVES, PARTNERS
from ._foreign import attributes_told, classes_for, convert_file, one_of_ours
from ._peers.registry import PEERS, name_of


def foreign_state_dict(optimizer: Optimizer, target: str | type, **constructed_with: Any) -> dict[str, Any]:
    """What another package's optimizer would have saved where one of ours is, for its `load_state_dict`.

    For bitsandbytes in 32 bits, DeepSpeedCPUAdam and DeepSpeedCPUAdagrad, lion_pytorch, and timm's AdamWLegacy, Lamb
    and Lion. What is written is read back as `load_foreign` reads it, and refused where that is another rule.

    Args:
        optimizer: one of ours, of the class whose rule the other has. What its options keep beside that (master
            weights, an average of the params, a maximal norm) stays behind, which a warning says.
        target: the other's class, or its name such as "bitsandbytes.AdamW".
        constructed_with: what the other's constructor will be given of those things that are not in its files, as for
            `load_foreign`.

    Returns:
        A state dict, whose tensors are this optimizer's where theirs have the same type, as those of `state_dict()`.

    Raises:
        TypeError: the other has another rule, or cannot read what would be written, or nothing of the name in
            `constructed_with` is known of it.
        ValueError: a setting has no place in the other's groups, params that share a group there have taken
            different numbers of steps, or a param is complex and the other keeps real numbers.

    Example:
        >>> param = torch.nn.Parameter(torch.zeros(2))
        >>> optimizer = fusedopt.Lion([param], lr=0.1)
        >>> param.grad = torch.ones(2)
        >>> optimizer.step()
        >>> fusedopt.foreign_state_dict(optimizer, "bitsandbytes.Lion")["param_groups"][0]["betas"]
        (0.9, 0.99)
    """
    optimizer = one_of_ours(optimizer)
    name, cls = name_of(target), type(optimizer)
    told, peer = attributes_told(name, constructed_with), PEERS[name]
    back = peer.back
    if back is None:
        others = sorted(other for other, its in PEERS.items() if its.back is not None and ".Paged" not in other)
        raise TypeError(f"nothing is written for {name}; there is a way back to {', '.join(others)}")
    ours = optimizer.state_dict()
    numbers = {key: value for key, value in ours.items() if key not in ("state", "param_groups")}
    try:
        state, groups = _as_theirs(name, cls, ours, numbers, told)
    except KeyError as error:
        raise TypeError(f"{name} steps by {error.args[0]!r}, and this is a {cls.__name__}, which has none") from None
    file = {"state": state, "param_groups": groups}
    rule = peer.rule_of({**told, **groups[0]})
    if not isinstance(optimizer, classes_for(rule, groups)):
        remedy = f", as it is constructed with {told}" if told else ""
        raise TypeError(f"{name} steps as fusedopt.{rule} does{remedy}, and this is a {cls.__name__}")
    read = convert_file(name, file, [group["params"] for group in optimizer.param_groups], told)
    _refuse_losses(name, cls, ours, read.file)
    kept_beside = {key for its in ours["state"].values() for key in its} & {*PARTNERS, "ema"}
    lost = sorted(kept_beside | {key for key, value in numbers.items() if read.file.get(key) != value})
    if lost:
        warn(f"{', '.join(lost)} of this optimizer has no place in a file of {name} and stays behind")
    for key, default in back.constructor.items():
        if (value := groups[0][key]) != default:
            warn(f"{name} steps by {key} of its constructor, whatever a file says; construct it with {key}={value!r}")
    saved = [at for group in ours["param_groups"] for at in group["params"]]
    params = [param for group in optimizer.param_groups for param in group["params"]]
    halves = [at for at, param in zip(saved, params, strict=True) if param.dtype in HALVES]
    wide = (value for at in halves for value in state.get(at, {}).values() if isinstance(value, torch.Tensor))
    if not back.loads_float32 and any(value.dtype == torch.float32 and value.dim() for value in wide):
        warn(
            f"the load_state_dict() of {name}, which is torch's, rounds float32 states of params in 16 bits to these; "
            "put this file's tensors into its state once it is loaded"
        )
    return file


def _as_theirs(
    name: str, cls: type[FusedStep], ours: Mapping[str, Any], numbers: Mapping[str, Any], told: Mapping[str, Any]
) -> tuple[dict[Any, Any], list[dict[str, Any]]]:
    """States and groups; KeyError where ours has nothing that theirs steps by."""
    peer = PEERS[name]
    assert peer.back is not None
    groups, state = [], {}
    for index, group in enumerate(ours["param_groups"]):
        mine = {**cls._beyond, **numbers, **told, **group}
        its = {at: ours["state"][at] for at in group["params"] if ours["state"].get(at)}
        steps = {float(kept["step"]) for kept in its.values() if "step" in kept}
        if peer.group_step and len(steps) > 1:
            raise ValueError(
                f"{name} counts the steps of a group, and params of group {index} have taken {sorted(map(int, steps))}"
            )
        groups.append(peer.their_group(peer.back, mine, steps))
        for at, kept in its.items():
            rules = {key: value for key, value in kept.items() if key in kind_of(cls).state.known}
            if rules and (made := peer.their_state(peer.back, rules, mine)):
                state[at] = made
                if _has_complex(rules) and not _has_complex(made):
                    raise ValueError(f"{name} keeps real numbers alone, and param {at} is complex")
    return state, groups


def _has_complex(state: Mapping[str, Any]) -> bool:
    return any(isinstance(value, torch.Tensor) and value.is_complex() for value in state.values())


def _refuse_losses(name: str, cls: type[FusedStep], ours: Mapping[str, Any], read: Mapping[str, Any]) -> None:
    """Raise ValueError for a number of ours, or a state, that is another or none once theirs is read."""
    kind = kind_of(cls)
    for index, (mine, found) in enumerate(zip(ours["param_groups"], read["param_groups"], strict=True)):
        for key in sorted(kind.group.known | {"maximize"}):
            absent = cls._beyond.get(key)
            here, there = mine.get(key, absent), found.get(key, absent)
            if here != there:
                raise ValueError(
                    f"{name} has no {key}={here!r}, by which param_groups[{index}] steps; its file would be read as "
                    f"{key}={there!r}"
                )
        for at in mine["params"]:
            lacks = (ours["state"].get(at, {}).keys() & kind.state.known) - read["state"].get(at, {}).keys()
            if lacks:
                raise ValueError(f"{name} has no place for {sorted(lacks)} of a param of param_groups[{index}]")
