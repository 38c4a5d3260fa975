"""Moving in from other packages' optimizers: a live one, or a file of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim.optimizer import Optimizer

from ._core.optimizer import FusedStep
from ._core.origin import kind_of
from ._core.precision import HALVES
from ._peers.peer import Peer, why_not
from ._peers.registry import OTHERS, PEERS, name_of

Params = Sequence[torch.Tensor]


@dataclass(frozen=True)
class _Converted:
    """A state dict of ours, and what else goes with it."""

    rule: str
    file: dict[str, Any]
    options: Mapping[str, Any]


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
        TypeError: fusedopt has no class with that rule, `optimizer` is of another, or nothing of the name in
            `constructed_with` is known of `source`.
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
    peer = _known(name)
    unknown = constructed_with.keys() - peer.attributes.keys()
    if unknown:
        raise TypeError(
            f"{name} has no {sorted(unknown)[0]!r} beside its groups; give any of {sorted(peer.attributes) or 'none'}"
        )
    params = [group["params"] for group in optimizer.param_groups]
    converted = _convert(name, state_dict, params, {**peer.attributes, **constructed_with})
    if not isinstance(optimizer, _classes_for(converted)):
        raise TypeError(
            f"{name} steps as fusedopt.{converted.rule} does; load its file into one of these, not into a "
            f"{type(optimizer).__name__}"
        )
    optimizer.load_state_dict(converted.file)


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
    attributes = {key: getattr(optimizer, key, default) for key, default in peer.attributes.items()}
    params = [group["params"] for group in optimizer.param_groups]
    converted = _convert(name, optimizer.state_dict(), params, attributes, optimizer.defaults)
    ours = _class(converted.rule)
    halves = any(p.dtype in HALVES for group in params for p in group)
    groups = [{**group, "params": its} for group, its in zip(converted.file["param_groups"], params, strict=True)]
    new: FusedStep = ours(groups, **(converted.options if halves else {}))
    new.load_state_dict(converted.file)
    # What holds the groups of the old one, as schedulers do, holds those of the new one.
    for old, made in zip(optimizer.param_groups, new.param_groups, strict=True):
        users = {key: old[key] for key in old.keys() - optimizer.defaults.keys() - {"params", "step"}}
        old.clear()
        old.update({**users, **made})
    new.param_groups = optimizer.param_groups
    new.defaults.update(peer.group({**attributes, **optimizer.defaults, "params": []}, new.defaults))
    del new.defaults["params"]
    optimizer.state = new.state
    return new


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


def _convert(
    name: str,
    state_dict: Mapping[str, Any],
    params: Sequence[Params],
    attributes: Mapping[str, Any],
    defaults: Mapping[str, Any] | None = None,
) -> _Converted:
    peer = PEERS[name]
    saved = state_dict["param_groups"]
    sizes = [len(group["params"]) for group in saved], [len(its) for its in params]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"the file has groups of {sizes[0]} params, and the optimizer of {sizes[1]}; give one over the same"
        )
    theirs = [{**attributes, **group, "params": its} for group, its in zip(saved, params, strict=True)]
    rule = peer.rule_of(theirs[0])
    ours = _class(rule)
    kind, beyond, base = kind_of(ours), ours._beyond, _defaults(ours)
    groups, state = [], {}
    for index, group in enumerate(theirs):
        line = why_not(peer, group, kind.group.known | base.keys())
        if line is not None:
            raise ValueError(f"{name} does not step as fusedopt.{rule} does, by its param_groups[{index}]: {line}")
        made = peer.group({**group, "params": saved[index]["params"]}, base)
        # As our constructors have it, groups have no key for what is torch's rule.
        groups.append({key: value for key, value in made.items() if key not in beyond or value != beyond[key]})
        for position, param in zip(saved[index]["params"], group["params"], strict=True):
            made = peer.state(state_dict["state"].get(position, {}), group, param, kind.state.known)
            if made:
                state[position] = made
    file = {"state": state, "param_groups": groups, **peer.once({**theirs[0], **(defaults or {})})}
    options = next(filter(None, (peer.options(group) for group in theirs)), {})
    return _Converted(rule, file, options)


def _class(rule: str) -> Any:
    import fusedopt

    return getattr(fusedopt, rule)


def _classes_for(converted: _Converted) -> tuple[type, ...]:
    rules = {converted.rule}
    # Without a decay the two are one.
    if rules <= {"Adam", "AdamW"} and not any(group["weight_decay"] for group in converted.file["param_groups"]):
        rules = {"Adam", "AdamW"}
    return tuple(_class(rule) for rule in rules)


def _defaults(cls: Any) -> dict[str, Any]:
    return {**cls._beyond, **cls([torch.nn.Parameter(torch.zeros(1, 1))]).defaults}
