"""Round trips, which must not change anything: one entry of TRIPS each, told like operations."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable
from random import Random
from typing import Any

import torch
from references import twin
from support import save_and_load
from torch.nn import Parameter

import fusedopt

from .session import Session

Trip = Callable[[Session, Random], str | None]
TRIPS: dict[str, Trip] = {}


def trip(apply: Trip) -> Trip:
    TRIPS[apply.__name__] = apply
    return apply


def _clones(session: Session) -> list[Parameter]:
    return [Parameter(p.detach().clone()) for p in session.params]


def _loads(session: Session) -> bool:
    """torch casts counters other than `step` to the param's dtype when it loads them."""
    return len(session.case.counters) == 1 or all(p.dtype != torch.float64 for p in session.params)


@trip
def save_and_resume(session: Session, random: Random) -> str | None:
    if not _loads(session):
        return None
    params = _clones(session)
    resumed = session.fresh(params)
    resumed.load_state_dict(save_and_load(session.optimizer.state_dict()))
    session.adopt(params, resumed)
    session.copy_again()
    return "saved, read with weights_only, loaded into a fresh optimizer over copies of the params"


@trip
def load_its_own(session: Session, random: Random) -> str | None:
    if not _loads(session):
        return None
    session.optimizer.load_state_dict(save_and_load(session.optimizer.state_dict()))
    return "its own state_dict, loaded"


@trip
def through_pickle(session: Session, random: Random) -> str | None:
    if any(p.dtype.is_complex for p in session.params) and "float16" in str(session.options.get("state_dtype")):
        # Which pickle cannot do with complex numbers of two float16s.
        return None
    copies = list(session.copies.values())
    params, optimizer, copies = pickle.loads(pickle.dumps((session.params, session.optimizer, copies)))
    session.adopt(params, optimizer)
    session.copies = dict(zip(session.copies, copies, strict=True))
    return "pickled and unpickled with its params"


@trip
def through_deepcopy(session: Session, random: Random) -> str | None:
    params, optimizer, session.copies = copy.deepcopy((session.params, session.optimizer, session.copies))
    session.adopt(params, optimizer)
    return "copied by deepcopy with its params"


def _torch_can(session: Session) -> bool:
    """Whether torch's class keeps all that there is: it casts states to the param's dtype."""
    plain = {"foreach", "fused", "max_grad_norm"}
    counters = len(session.case.counters) > 1 and any(p.dtype != torch.float32 for p in session.params)
    return session.case.has_twin and set(session.options) <= plain and not session.copies and not counters


def _torchs(session: Session, params: Any) -> Any:
    options = {k: v for k, v in session.options.items() if k in ("foreach", "fused")}
    known = inspect.signature(twin(session.case.optimizer)).parameters
    groups = [{"params": [params[i] for i in members]} for members in session.groups]
    return twin(session.case.optimizer)(
        groups, **session.case.kwargs, **{k: v for k, v in options.items() if k in known}
    )


@trip
def replaced(session: Session, random: Random) -> str | None:
    if not _torch_can(session):
        return None
    theirs = _torchs(session, session.params)
    theirs.load_state_dict(session.optimizer.state_dict())
    ours: Any = fusedopt.replace(theirs)
    ours.max_grad_norm = session.options.get("max_grad_norm")
    session.adopt(session.params, ours)
    return "loaded by torch's class, and that replaced"


@trip
def through_torch(session: Session, random: Random) -> str | None:
    # Of states in other storages torch gets what they stand for, which float32 params keep exactly.
    if not session.case.has_twin or not _loads(session):
        return None
    if not _torch_can(session) and any(p.dtype != torch.float32 for p in session.params):
        return None
    params = _clones(session)
    theirs = _torchs(session, params)
    theirs.load_state_dict(save_and_load(session.optimizer.state_dict()))
    saved = save_and_load(theirs.state_dict())
    # What torch does not keep.
    whole = session.optimizer.state_dict()
    saved.update({key: value for key, value in whole.items() if key not in saved})
    ours = session.fresh(params)
    ours.load_state_dict(saved)
    session.adopt(params, ours)
    session.copy_again()
    return "loaded by torch's class, saved by it, loaded by ours"


@trip
def channels_last_and_back(session: Session, random: Random) -> str | None:
    images = [p for p in session.params if p.ndim == 4]
    before = [p.data for p in images]
    for p in images:
        p.data = p.data.to(memory_format=torch.channels_last)
    for p, data in zip(images, before, strict=True):
        p.data = torch.empty_like(data).copy_(p.data)
    return "to(memory_format=channels_last) and back" if images else None


@trip
def wider_and_back(session: Session, random: Random) -> str | None:
    if any(p.dtype.is_complex for p in session.params):
        return None
    dtypes = [p.dtype for p in session.params]
    session.model.to(torch.float64)
    for p, dtype in zip(session.params, dtypes, strict=True):
        p.data = p.data.to(dtype)
        p.grad = None
    return "model.to(float64) and back"


@trip
def loaded_weights_of_its_own(session: Session, random: Random) -> str | None:
    session.model.load_state_dict(copy.deepcopy(session.model.state_dict()))
    return "the model's own weights, loaded"


@trip
def hooks(session: Session, random: Random) -> str | None:
    handles = [
        session.optimizer.register_step_pre_hook(lambda *_: None),
        session.optimizer.register_step_post_hook(lambda *_: None),
        session.optimizer.register_state_dict_pre_hook(lambda *_: None),
        session.optimizer.register_load_state_dict_post_hook(lambda *_: None),
    ]
    session.optimizer.state_dict()
    for handle in handles:
        handle.remove()
    return "hooks registered and removed"


@trip
def looked_at(session: Session, random: Random) -> str | None:
    repr(session.optimizer)
    session.optimizer.state_dict()
    session.optimizer.zero_grad()
    return "repr, state_dict and zero_grad"


@trip
def averages_in_place(session: Session, random: Random) -> str | None:
    if "ema_decay" not in session.options:
        return None
    with session.optimizer.ema_parameters():
        pass
    return "into ema_parameters and out"


@trip
def other_memory(session: Session, random: Random) -> str | None:
    for p in session.params:
        p.data = p.data.clone()
    return "every param's .data = .data.clone()"
