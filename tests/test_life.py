"""Every public method in every state of an optimizer's life: as torch's class has it, or refused in a sentence."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import tiers
import torch
from lives import LIVES, SUBJECTS, Subject, difference, live, stepped, visible
from support import params_of, save_and_load
from tiers import thinned

import fusedopt

# Classes with a step, a state or a constructor of their own, and one that has none.
OF_THEIR_OWN = {"Adafactor", "LBFGS", "SparseAdam", "Muon", "AdamWScheduleFree", "AdamW", "AdamW-average", "generic"}

every_life = pytest.mark.parametrize(("subject", "state"), LIVES, ids=lambda given: getattr(given, "name", given))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    # Some elements each; conftest sets the number back.
    torch.set_num_threads(1)


# What torch's classes have as well. Each returns what is to be equal.


def _copied(make_copy: Callable[[Any], Any]) -> Callable[[Subject, Any], Any]:
    def method(s: Subject, optimizer: Any) -> Any:
        copied = make_copy(optimizer)
        s.step(copied, 7)
        return [visible(s, copied), visible(s, optimizer)]

    return method


def _hooked(register: str) -> Callable[[Subject, Any], Any]:
    def method(s: Subject, optimizer: Any) -> Any:
        called: list[str] = []
        handle = getattr(optimizer, register)(lambda *_: called.append(register))
        s.step(optimizer, 7)
        optimizer.load_state_dict(optimizer.state_dict())
        handle.remove()
        s.step(optimizer, 8)
        return called

    return method


def _add_param_group(s: Subject, optimizer: Any) -> Any:
    optimizer.add_param_group({"params": s.params(seed=5), **({} if s.name in ("LBFGS", "Prodigy") else {"lr": 0.05})})
    s.step(optimizer, 7)
    return len(optimizer.param_groups)


def _state_dict(s: Subject, optimizer: Any) -> Any:
    found = save_and_load(optimizer.state_dict())
    # What is no longer in a group goes by the address of its param.
    states = [{k: v for k, v in state.items() if k != "ema"} for state in found["state"].values()]
    return [states if s.twin else [], [group["params"] for group in found["param_groups"]]]


def _load(s: Subject, optimizer: Any) -> None:
    saved = save_and_load(optimizer.state_dict())
    s.step(optimizer, 7)
    optimizer.load_state_dict(saved)


def _load_torchs(s: Subject, optimizer: Any) -> None:
    if s.twin and len(params_of(optimizer)) == len(s.shapes):
        optimizer.load_state_dict(save_and_load(stepped(s, s.theirs).state_dict()))


def _zero_grad(s: Subject, optimizer: Any) -> Any:
    optimizer.zero_grad()
    none = [p.grad for p in params_of(optimizer)]
    s.step(optimizer, 7)
    optimizer.zero_grad(set_to_none=False)
    return none, [None if p.grad is None else p.grad.to_dense().abs().sum() for p in params_of(optimizer)]


TORCHS: dict[str, Callable[[Subject, Any], Any]] = {
    "step": lambda s, o: s.step(o, 7),
    "step with a closure": lambda s, o: None if s.name == "LBFGS" else o.step(lambda: torch.is_grad_enabled()),
    "zero_grad": _zero_grad,
    "add_param_group": _add_param_group,
    "state_dict": _state_dict,
    "load_state_dict": _load,
    "load_state_dict of torch's": _load_torchs,
    "repr": lambda s, o: repr(o) if s.twin else "",
    "deepcopy": _copied(copy.deepcopy),
    "pickle": _copied(lambda o: pickle.loads(pickle.dumps(o))),
    "torch.save": _copied(lambda o: save_and_load(o, weights_only=False)),
    **{
        register: _hooked(register)
        for register in (
            "register_step_pre_hook",
            "register_step_post_hook",
            "register_state_dict_pre_hook",
            "register_state_dict_post_hook",
            "register_load_state_dict_pre_hook",
            "register_load_state_dict_post_hook",
        )
    },
}


def some_of(methods: dict[str, Any], subject: Subject, state: str) -> list[tuple[str, Any]]:
    """Without --all a third of them for classes that meet all states, others in the next: each meets every state."""
    whole = tiers.everything or subject.name not in OF_THEIR_OWN
    place = LIVES.index((subject, state))
    return [item for i, item in enumerate(methods.items()) if whole or (i + place) % 3 == 0]


@thinned("most classes have what they do from one base", keep=lambda subject: subject.name in OF_THEIR_OWN)
@every_life
def test_what_torch_has_works_as_torchs(subject: Subject, state: str) -> None:
    for name, method in some_of(TORCHS, subject, state):
        ours, theirs = (live(subject, make, state, method) for make in (subject.ours, subject.theirs))
        if not subject.twin:
            # Of a stand-in's own texts nothing is promised.
            ours[0], theirs[0] = (None if type(r[0]) is tuple else r[0] for r in (ours, theirs))
        found = difference(ours, theirs)
        assert found is None, f"{name}: {found}"


# What torch's classes do not have: what it returns, or the sentence that refuses it, in whatever state.


def _max_grad_norm(s: Subject, optimizer: Any) -> None:
    assert optimizer.max_grad_norm is None
    assert optimizer.grad_norm is None
    optimizer.max_grad_norm = 0.5
    s.step(optimizer, 7)
    assert optimizer.grad_norm.ndim == 0
    for made in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert made.max_grad_norm == 0.5
    optimizer.max_grad_norm = None
    s.step(optimizer, 8)
    assert optimizer.grad_norm is None


def _step_skipped(s: Subject, optimizer: Any) -> None:
    optimizer.found_inf, optimizer.grad_scale = torch.tensor(1.0), torch.tensor(2.0)
    before = visible(s, optimizer)
    s.step(optimizer, 7)
    del optimizer.found_inf, optimizer.grad_scale
    # A GPU decides for what it steps.
    assert optimizer.step_skipped.item() or not any(p.grad is not None for p in params_of(optimizer))
    assert difference(visible(s, optimizer), before) is None
    s.step(optimizer, 8)
    assert not optimizer.step_skipped.item()


def _step_that_clears(s: Subject, optimizer: Any) -> None:
    s.step(optimizer, 7, zero_grad=True)
    assert not any(p.grad.to_dense().any() for p in params_of(optimizer) if p.grad is not None)


def _ema_parameters(s: Subject, optimizer: Any) -> None:
    before = visible(s, optimizer)
    with optimizer.ema_parameters():
        for p in params_of(optimizer):
            assert torch.equal(p, optimizer.state.get(p, {}).get("ema", p))
    assert difference(visible(s, optimizer), before) is None


def _ema_decay(s: Subject, optimizer: Any) -> None:
    optimizer.ema_decay = 0.25
    assert optimizer.ema_decay == 0.25


def _copy_params_to(s: Subject, optimizer: Any) -> None:
    copies = {p: torch.zeros_like(p, dtype=torch.bfloat16) for p in params_of(optimizer)}
    optimizer.copy_params_to(copies)
    s.step(optimizer, 7)
    stepped = [p for p in copies if p.grad is not None]
    assert all(torch.equal(copies[p], p.bfloat16()) for p in stepped)


def _replace(s: Subject, optimizer: Any) -> None:
    assert fusedopt.replace(optimizer) is optimizer


FUSED = frozenset(s.name for s in SUBJECTS) - {"LBFGS", "generic"}
AVERAGING = frozenset({"AdamW-average"})
OURS: dict[str, tuple[Callable[[Subject, Any], None], frozenset[str], str]] = {
    "max_grad_norm": (_max_grad_norm, FUSED, ""),
    "step_skipped": (_step_skipped, FUSED | {"generic"}, ""),
    "step(zero_grad=True)": (_step_that_clears, FUSED, ""),
    "refresh_hyperparameters": (lambda s, o: o.refresh_hyperparameters(), FUSED, ""),
    "ema_decay": (_ema_decay, AVERAGING, "ema_decay is None or a number from the constructor on"),
    "ema_parameters": (_ema_parameters, AVERAGING, "there is no average of the params; construct the optimizer with"),
    "copy_params_to": (_copy_params_to, FUSED, ""),
    "replace": (_replace, FUSED | {"LBFGS", "generic"}, ""),
}


@thinned("most classes have what they do from one base", keep=lambda subject: subject.name in OF_THEIR_OWN)
@every_life
def test_what_torch_has_not_works_or_is_refused(subject: Subject, state: str) -> None:
    for name, (method, having, refusal) in some_of(OURS, subject, state):
        if refusal or subject.name in having:
            found, *after, _ = live(subject, subject.ours, state, method)
            if subject.name in having:
                assert found is None, f"{name}: {found}"
            elif subject.name in FUSED:
                assert found[1].startswith(refusal), f"{name}: {found}"
            if (subject.name, state) != ("LBFGS", "emptied"):  # which torch's refuses as well
                assert not any(type(result) is tuple for result in after), f"a step after {name}: {after}"
