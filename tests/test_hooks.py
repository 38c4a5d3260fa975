"""Hooks run once and in torch's order on every path through a step, which the profiler sees under torch's name."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import references
import torch
from cases import ONE_PER_OPTIMIZER, ONE_PER_TWIN, Case
from support import assert_close, assert_identical, clone_params, give_grads, make_params, snapshot, train
from tiers import thinned
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

import fusedopt

NAMES = [case.optimizer for case in ONE_PER_OPTIMIZER]
TWINS = [case.optimizer for case in ONE_PER_TWIN]
ORDER = ["global pre", "pre 1", "pre 2", "post 1", "post 2", "global post"]
# (path, optimizer): each reaches the update by another route, and torch's own `step` takes part in most of them.
PATHS = [
    *(("fast", name) for name in NAMES),
    *(("subclass", name) for name in NAMES),
    *(("subclass-of-subclass", name) for name in NAMES),
    *(("differentiable", name) for name in TWINS),
    ("sparse", "SGD"),
    ("subclass-sparse", "SGD"),
    ("sparse", "Adagrad"),
    ("subclass-sparse", "Adagrad"),
]


def _overriding(base: Any) -> Any:
    class Overriding(base):
        def step(self, closure: Any = None) -> Any:
            return super().step(closure)

    Overriding.__name__ = base.__name__
    return Overriding


def build(path: str, name: str) -> Optimizer:
    """An optimizer whose next step takes `path`."""
    cls = getattr(fusedopt, name)
    for _ in range(path.count("subclass")):
        cls = _overriding(cls)
    params: list[Tensor] = list(make_params([(4, 3), (67,)]))
    differentiable = {"differentiable": True} if path == "differentiable" else {}
    if differentiable:
        params = [p.clone() for p in params]  # torch refuses in-place steps on leaves that require grad
    give_grads(params, 0)
    if "sparse" in path:
        params[0].grad = torch.eye(4, 3).to_sparse(1)
    optimizer: Optimizer = cls(params, lr=0.1, **differentiable)
    return optimizer


@pytest.fixture(params=[True, False], ids=["torch-patched", "torch-unpatched"])
def patching(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """torch wraps a class's `step` in the hooks when the class is first built; both histories must give one call."""
    unpatched = {}
    for name in TWINS:
        cls = getattr(torch.optim, name)
        cls([Parameter(torch.zeros(1))])
        assert cls.step.hooked
        if "step" in vars(cls):
            unpatched[cls] = cls.step.__wrapped__
    for cls, step in [] if request.param else unpatched.items():
        if step.__qualname__ == f"{cls.__name__}.step":
            monkeypatch.setattr(cls, "step", step)
        else:  # inherited: it has one of its own only where it was patched first
            monkeypatch.delattr(cls, "step")
    return bool(request.param)


@pytest.fixture
def calls() -> Iterator[list[str]]:
    """Global hooks that write down when they run."""
    log: list[str] = []
    handles = [
        register_optimizer_step_pre_hook(lambda *_: log.append("global pre")),
        register_optimizer_step_post_hook(lambda *_: log.append("global post")),
    ]
    yield log
    for handle in handles:
        handle.remove()


@thinned("all classes inherit it from one base", keep=lambda name: name in ("SGD", "Lion"))
@pytest.mark.parametrize(("path", "name"), PATHS)
def test_each_hook_once_and_in_order(path: str, name: str, patching: bool, calls: list[str]) -> None:
    optimizer = build(path, name)
    seen = []

    def hook(label: str) -> Any:
        def run(which: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls.append(label)
            seen.append((which is optimizer, args[0] is optimizer, len(args), dict(kwargs)))

        return run

    removable = optimizer.register_step_pre_hook(hook("pre 1"))
    optimizer.register_step_pre_hook(hook("pre 2"))
    optimizer.register_step_post_hook(hook("post 1"))
    optimizer.register_step_post_hook(hook("post 2"))
    before = snapshot(optimizer), copy.deepcopy(optimizer.state_dict()["state"])
    optimizer.step()
    assert calls == ORDER
    assert seen == [(True, True, 1, {})] * 4
    # The first step of some makes states alone.
    with pytest.raises(AssertionError):
        assert_identical((snapshot(optimizer), optimizer.state_dict()["state"]), before)

    removable.remove()
    calls.clear()
    optimizer.step()
    assert calls == [entry for entry in ORDER if entry != "pre 1"]


@thinned("all classes inherit it from one base", keep=lambda name: name in ("SGD", "Lion"))
@pytest.mark.parametrize(("path", "name"), PATHS)
def test_pre_hook_replaces_arguments(path: str, name: str, patching: bool) -> None:
    optimizer, other = build(path, name), build(path, name)
    optimizer.register_step_pre_hook(lambda self, args, kwargs: ((self,), {"closure": lambda: "from the hook"}))
    post: list[Any] = []
    optimizer.register_step_post_hook(lambda self, args, kwargs: post.append((len(args), list(kwargs))))
    assert optimizer.step(lambda: "from the caller") == "from the hook"
    assert post == [(1, ["closure"])]
    other.step()
    assert_identical(snapshot(optimizer)[0], snapshot(other)[0])


def test_pre_hook_may_not_return_anything_else(patching: bool) -> None:
    optimizer = build("fast", "AdamW")
    optimizer.register_step_pre_hook(lambda *_: "nonsense")
    before = snapshot(optimizer)
    with pytest.raises(RuntimeError, match="must return None or a tuple of"):
        optimizer.step()
    assert_identical(snapshot(optimizer), before)


def test_hooks_act_before_and_after_the_update(patching: bool) -> None:
    # A pre hook that clips and a post hook that projects are the common uses.
    ours, torchs = fusedopt.AdamW(make_params(), lr=0.1), torch.optim.AdamW(make_params(), lr=0.1, foreach=False)
    for optimizer in (ours, torchs):
        params = optimizer.param_groups[0]["params"]

        def clip(self: Optimizer, *_: Any, params: Any = params) -> None:
            torch.nn.utils.clip_grad_value_(params, 0.1)
            self.param_groups[0]["lr"] *= 0.9

        def project(*_: Any, params: Any = params) -> None:
            with torch.no_grad():
                for p in params:
                    p.clamp_(-1, 1)

        optimizer.register_step_pre_hook(clip)
        optimizer.register_step_post_hook(project)
        train(optimizer)
    assert_close(ours, torchs)


def test_closure_runs_between_the_hooks(calls: list[str], patching: bool) -> None:
    optimizer = build("fast", "AdamW")
    optimizer.step(lambda: calls.append("closure"))
    assert calls == ["global pre", "closure", "global post"]


@thinned("all classes inherit it from one base", keep=lambda name: name in ("SGD", "Lion"))
@pytest.mark.parametrize(("path", "name"), PATHS)
def test_profiler_sees_each_step_once(path: str, name: str, patching: bool) -> None:
    optimizer = build(path, name)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for _ in range(3):
            optimizer.step()
        optimizer.zero_grad()
    # The raw events: `profile.events()` drops an event nested in one of its own name, the very fault looked for.
    assert profile.profiler is not None
    raw = [event.name() for event in profile.profiler.kineto_results.events()]
    names = [event for event in raw if event.startswith("Optimizer.")]
    assert names.count(f"Optimizer.step#{name}.step") == 3
    assert names.count(f"Optimizer.zero_grad#{name}.zero_grad") == 1
    assert len(names) == 4


@pytest.mark.parametrize("name", NAMES)
def test_python_tracing_profiler_finds_the_optimizer(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The profiler recognises a step by a call of `_optimizer_step_code`, which must come after the update.
    optimizer = build("fast", name)
    before = snapshot(optimizer)
    seen = []
    monkeypatch.setattr(optimizer, "_optimizer_step_code", lambda: seen.append(snapshot(optimizer)))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], with_stack=True):
        optimizer.step()
    assert len(seen) == 1
    assert_identical(seen[0], snapshot(optimizer))
    with pytest.raises(AssertionError):
        assert_identical(seen[0], before)


@pytest.mark.parametrize("case", ONE_PER_OPTIMIZER, ids=str)
def test_one_optimizer_per_param_in_backward(case: Case) -> None:
    def run(build_one: Any) -> list[Parameter]:
        torch.manual_seed(1)
        model = torch.nn.Sequential(torch.nn.Linear(6, 9), torch.nn.Tanh(), torch.nn.Linear(9, 2))
        optimizers = {p: build_one([p]) for p in model.parameters()}

        def update(p: Tensor) -> None:
            optimizers[p].step()
            optimizers[p].zero_grad()

        for p in model.parameters():
            p.register_post_accumulate_grad_hook(update)
        for _ in range(4):
            model(torch.randn(5, 6)).square().sum().backward()
        assert all(p.grad is None for p in model.parameters())
        return list(model.parameters())

    for p, q in zip(run(case.ours), run(case.torchs), strict=True):
        torch.testing.assert_close(p, q)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
@pytest.mark.parametrize("case", ONE_PER_OPTIMIZER, ids=str)
def test_apply_optimizer_in_backward(case: Case) -> None:
    from torch.distributed.optim import _apply_optimizer_in_backward

    initial = make_params([(4, 3), (3,)])

    def run(cls: Any) -> list[Parameter]:
        params = clone_params(initial)
        _apply_optimizer_in_backward(cls, params, dict(case.kwargs))
        generator = torch.Generator().manual_seed(7)
        for _ in range(3):
            x = torch.randn(5, 4, generator=generator)
            (x @ params[0] + params[1]).square().sum().backward()
        assert all(p.grad is None for p in params)
        return params

    ours, torchs = run(case.cls), run(partial(references.twin(case.optimizer), foreach=False))
    for p, q, start in zip(ours, torchs, initial, strict=True):
        torch.testing.assert_close(p, q)
        assert not torch.equal(p, start) or case.optimizer == "RAdamScheduleFree"  # three steps are its silent phase


@pytest.mark.parametrize("name", ["Muon", "SparseAdam", "Adafactor"])
def test_hooks_do_not_change_the_step(name: str) -> None:
    """Optimizers that do not leave their step to a plan of one rule take their own step within hooks, too."""
    if not hasattr(fusedopt, name):
        pytest.skip("needs torch 2.9")
    ends = []
    for hooked in (False, True):
        params = make_params([(4, 3)])
        optimizer = getattr(fusedopt, name)(params, lr=0.1)
        if hooked:
            optimizer.register_step_pre_hook(lambda *_: None)
        for i in range(3):
            give_grads(params, i)
            if name == "SparseAdam":
                params[0].grad = params[0].grad.to_sparse(1)
            optimizer.step()
        ends.append(snapshot(optimizer))
    assert_identical(ends[1], ends[0])
