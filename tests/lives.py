"""Optimizers of every class in every state of their life, ours and torch's side by side."""

from __future__ import annotations

import copy
import functools
import math
import pickle
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import prototypes
import pytest
import references
import torch
from support import EMULATED, params_of, save_and_load
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

import fusedopt

HEAVY_BALL = """
struct HeavyBall : RuleDefaults {
  struct Hypers { double lr, momentum; };
  static constexpr const char* hyper_names[] = {"lr", "momentum"};
  static constexpr double hyper_defaults[] = {0.1, 0.9};
  static constexpr const char* state_names[] = {"momentum_buffer"};
  static constexpr int counters = 0;
  template <class T> struct Scalars { T lr, momentum; };
  FUSEDOPT_HD static Scalars<double> prepare(const Hypers& h, double*, bool) { return {h.lr, h.momentum}; }
  template <int, class T> FUSEDOPT_HD static void update(T& p, T g, T (&s)[1], const Scalars<T>& c) {
    s[0] = fma(c.momentum, s[0], g);
    p = fma(-c.lr, s[0], p);
  }
};
"""


@dataclass(frozen=True)
class Subject:
    """A class of ours and the one it is held against, with params and steps that both can make."""

    name: str
    ours: Callable[..., Any]
    theirs: Callable[..., Any]
    shapes: tuple[tuple[int, ...], ...] = ((4, 3), (5,), ())
    kwargs: dict[str, Any] = field(default_factory=dict)
    # Whether torch's class is the one whose place ours takes: groups and texts are the same then, too.
    twin: bool = True

    def params(self, seed: int = 0) -> list[Parameter]:
        generator = torch.Generator().manual_seed(seed)
        # A history of moves that hardly differ amplifies what rounding makes of them.
        dtype = torch.float64 if self.name == "LBFGS" else torch.float32
        return [Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in self.shapes]

    def grad(self, param: Tensor, generator: torch.Generator) -> Tensor:
        grad = torch.randn(param.shape, generator=generator)
        return grad.to_sparse(1) if self.name == "SparseAdam" else grad

    def step(self, optimizer: Any, seed: int, **kwargs: Any) -> Any:
        """One step on gradients that depend on the seed alone, with a closure where the class must have one."""
        generator = torch.Generator().manual_seed(1000 + seed)

        def closure() -> Tensor:
            for p in params_of(optimizer):
                p.grad = self.grad(p, generator) if p.requires_grad else None
            return torch.tensor(1.0)

        def bowl() -> Tensor:
            loss = torch.zeros(())
            for p in params_of(optimizer):
                p.grad = p.detach() - self.shapes.index(p.shape) if p.requires_grad else None
                loss = loss if p.grad is None else loss + 0.5 * p.grad.square().sum()
            return loss

        if self.name == "LBFGS":
            return optimizer.step(bowl, **kwargs)
        closure()
        return optimizer.step(**kwargs)


class _LBFGS(torch.optim.LBFGS):
    """torch's, whose copies lack what its constructor makes."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._params = self.param_groups[0]["params"]
        self._numel_cache = None


_LBFGS.__name__ = "LBFGS"  # as repr has it


def _subjects() -> Iterator[Subject]:
    for name in fusedopt.__all__:
        cls = getattr(fusedopt, name)
        if not (isinstance(cls, type) and issubclass(cls, Optimizer)) or name == "GenericOptimizer":
            continue
        shapes = {"Muon": ((4, 3), (3, 5)), "SparseAdam": ((4, 3), (5,))}.get(name, Subject.shapes)
        theirs = _LBFGS if name == "LBFGS" else getattr(torch.optim, name, None)
        kwargs = {"lr": 0.1} if name in ("SGD", "LARS") else {"lr": 0.1, "max_iter": 2} if name == "LBFGS" else {}
        yield Subject(name, cls, theirs or references.twin(name), shapes, kwargs, theirs is not None)
    yield Subject("SGD-momentum", fusedopt.SGD, torch.optim.SGD, kwargs={"lr": 0.1, "momentum": 0.9})
    yield Subject("AdamW-average", _averaging, torch.optim.AdamW)
    yield Subject("generic", prototypes.Adam, torch.optim.Adam, twin=False)
    yield Subject("compiled", _heavy_ball, torch.optim.SGD, kwargs={"lr": 0.1, "momentum": 0.9}, twin=False)


def _averaging(params: Any, **kwargs: Any) -> Optimizer:
    return fusedopt.AdamW(params, ema_decay=0.5, **kwargs)


def _heavy_ball(params: Any, **kwargs: Any) -> Optimizer:
    if EMULATED:
        pytest.skip("a shared object has kernels for a GPU, not for the emulator")
    made: Optimizer = _compiled()(params, **kwargs)
    return made


@functools.cache
def _compiled() -> Any:
    with tempfile.TemporaryDirectory() as cache, pytest.MonkeyPatch.context() as patch:
        patch.setenv("FUSEDOPT_CACHE", cache)
        made = fusedopt.compile_rule(HEAVY_BALL, name="HeavyBall")
    globals()["HeavyBall"] = made  # where pickle looks for it
    return made


# The states of a life. Each makes an optimizer of either class by the same steps.

Make = Callable[..., Any]


def fresh(s: Subject, make: Make) -> Any:
    return make(s.params(), **s.kwargs)


def stepped(s: Subject, make: Make) -> Any:
    optimizer = fresh(s, make)
    for seed in range(2):
        s.step(optimizer, seed)
    return optimizer


def _replaced(before: Callable[[Subject, Make], Any]) -> Callable[[Subject, Make], Any]:
    def replaced(s: Subject, make: Make) -> Any:
        return (
            fusedopt.replace(before(s, getattr(torch.optim, s.theirs.__name__))) if make is s.ours else before(s, make)
        )

    return replaced


def deepcopied(s: Subject, make: Make) -> Any:
    return copy.deepcopy(stepped(s, make))


def pickled(s: Subject, make: Make) -> Any:
    return pickle.loads(pickle.dumps(stepped(s, make)))


def saved(s: Subject, make: Make) -> Any:
    return save_and_load(stepped(s, make), weights_only=False)


def loaded_into_fresh(s: Subject, make: Make) -> Any:
    optimizer = fresh(s, make)
    optimizer.load_state_dict(save_and_load(stepped(s, make).state_dict()))
    return optimizer


def loaded_into_stepped(s: Subject, make: Make) -> Any:
    optimizer = stepped(s, make)
    optimizer.load_state_dict(save_and_load(stepped(s, make).state_dict()))
    return optimizer


def after_an_error(s: Subject, make: Make) -> Any:
    optimizer = stepped(s, make)

    def closure() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        optimizer.step(closure)
    return optimizer


def frozen(s: Subject, make: Make) -> Any:
    optimizer = stepped(s, make)
    for p in params_of(optimizer):
        p.requires_grad_(False)
        p.grad = None
    return optimizer


def emptied(s: Subject, make: Make) -> Any:
    optimizer = stepped(s, make)
    del optimizer.param_groups[0]["params"][:]
    return optimizer


STATES: dict[str, Callable[[Subject, Make], Any]] = {
    "fresh": fresh,
    "stepped": stepped,
    "replaced-fresh": _replaced(fresh),
    "replaced-stepped": _replaced(stepped),
    "deepcopied": deepcopied,
    "pickled": pickled,
    "saved": saved,
    "loaded-into-fresh": loaded_into_fresh,
    "loaded-into-stepped": loaded_into_stepped,
    "after-an-error": after_an_error,
    "frozen": frozen,
    "emptied": emptied,
    "in-a-pre-hook": stepped,
    "in-a-post-hook": stepped,
}


def visible(s: Subject, optimizer: Any) -> Any:
    """Params, and the states that torch has, whatever else an option keeps."""
    kept = [{k: v for k, v in state.items() if k != "ema"} for state in optimizer.state.values() if state]
    return copy.deepcopy([[p.detach() for p in params_of(optimizer)], kept if s.twin else []])


def live(s: Subject, make: Make, state: str, method: Callable[[Subject, Any], Any]) -> Any:
    """What the method returns or raises in this state, and where a step after it leads."""
    optimizer = STATES[state](s, make)
    results: list[Any] = []

    def act(*_: Any) -> None:
        handle.remove()
        results.append(outcome(lambda: method(s, optimizer)))

    if state.startswith("in-a"):
        handle = getattr(optimizer, f"register_step_{state.split('-')[2]}_hook")(act)
        results.append(outcome(lambda: s.step(optimizer, 6)))
    else:
        results.append(outcome(lambda: method(s, optimizer)))
    results.append(outcome(lambda: s.step(optimizer, 9)))
    return [*results, visible(s, optimizer)]


def outcome(act: Callable[[], Any]) -> Any:
    try:
        return act()
    except Exception as error:
        # A KeyError may hold an address.
        return type(error), re.sub(r"\d{9,}", "...", str(error).split(":")[0])


def difference(ours: Any, theirs: Any) -> str | None:
    """Where two results differ; lines of text of ours may come between torch's."""
    if isinstance(theirs, Tensor) and isinstance(ours, float):
        theirs = theirs.item()  # LBFGS's t, of its first iteration alone
    if isinstance(theirs, Tensor) and isinstance(ours, Tensor):
        try:
            torch.testing.assert_close(ours, theirs, equal_nan=True)
        except AssertionError as error:
            return str(error)
        return None
    if isinstance(theirs, str) and isinstance(ours, str):
        rest = iter(ours.splitlines())
        return None if all(line in rest for line in theirs.splitlines()) else f"{ours} instead of {theirs}"
    if isinstance(theirs, (int, float)) and isinstance(ours, (int, float)):
        return None if math.isclose(ours, theirs, rel_tol=1e-5) else f"{ours} instead of {theirs}"
    if type(ours) is not type(theirs) or (isinstance(theirs, (list, tuple, dict)) and len(ours) != len(theirs)):
        return f"{ours} instead of {theirs}"
    if isinstance(theirs, dict):
        return next(filter(None, (difference(ours.get(key), theirs[key]) for key in theirs)), None)
    if isinstance(theirs, (list, tuple)):
        return next(filter(None, map(difference, ours, theirs)), None)
    return None if ours == theirs else f"{ours} instead of {theirs}"


SUBJECTS = list(_subjects())
# fusedopt.replace takes a class of torch's, and gives no options.
LIVES = [
    (s, state)
    for s in SUBJECTS
    for state in STATES
    if not state.startswith("replaced") or (s.twin and s.name != "AdamW-average")
]
