"""GradScaler drives our optimizers to what it drives torch's to, and a skipped step leaves no trace."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import CASES, ONE_PER_OPTIMIZER, ONE_PER_TWIN, Case
from support import (
    EMULATED,
    assert_close,
    assert_identical,
    clone_params,
    give_grads,
    make_params,
    params_of,
    save_and_load,
    snapshot,
    train,
    versions,
)
from tiers import thinned
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

import fusedopt

INF, NAN = float("inf"), float("nan")
OPTIMIZERS = [*(case.optimizer for case in ONE_PER_OPTIMIZER), "Adafactor", "SparseAdam"]
if hasattr(torch.optim, "Muon"):
    OPTIMIZERS.append("Muon")


def scaler(**kwargs: Any) -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=2, **kwargs)


def scaled_backward(optimizer: Optimizer, scale: torch.amp.GradScaler, seed: int, factor: float = 1.0) -> None:
    """A loss whose gradients are random, times `factor` (inf or NaN makes the step overflow)."""
    generator = torch.Generator().manual_seed(seed)
    optimizer.zero_grad()
    params = params_of(optimizer)
    loss = sum((p * torch.randn(p.shape, generator=generator)).sum() for p in params)
    scale.scale(loss * factor).backward()


# Whether the step unscales and skips, as torch's fused steps do, or torch's GradScaler.
in_either_way = pytest.mark.parametrize("fused", [True, None], ids=["in-step", "around-step"])


@thinned("all classes inherit it from one base")
@in_either_way
@pytest.mark.parametrize("overflows", [{0, 1, 4}, {3}, set()], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_run_with_overflows(case: Case, overflows: set[int], fused: bool | None) -> None:
    ours, torchs = case.ours(make_params(), fused=fused), case.torchs(make_params())
    mine, theirs = scaler(), scaler()
    for i in range(8):
        factor = (INF if i % 2 else NAN) if i in overflows else 1.0
        for optimizer, scale in ((ours, mine), (torchs, theirs)):
            scaled_backward(optimizer, scale, i, factor)
            scale.step(optimizer)
            scale.update()
        assert mine.get_scale() == theirs.get_scale()
        assert_skipped(ours, bool(fused) and i in overflows)
        assert_close(ours, torchs)
    assert not hasattr(ours, "grad_scale")
    assert not hasattr(ours, "found_inf")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_both_ways_end_in_the_same_bits(case: Case) -> None:
    """At scales that are powers of two, whose products round nothing."""
    ends = []
    for fused in (True, None):
        optimizer, scale = case.ours(make_params(), fused=fused), scaler()
        for i in range(6):
            scaled_backward(optimizer, scale, i, INF if i in (0, 3) else 1.0)
            calls: list[int] = []
            handle = optimizer.register_step_post_hook(lambda *_: calls.append(1))  # noqa: B023
            scale.step(optimizer)
            scale.update()
            handle.remove()
            # Accelerate knows a skipped step by its not having been called.
            assert len(calls) == (1 if fused else int(i not in (0, 3)))
        ends.append(snapshot(optimizer))
    assert_identical(*ends)


COPIES: dict[str, Callable[[Any], Any]] = {
    "itself": lambda optimizer: optimizer,
    "deepcopy": copy.deepcopy,
    "pickle": lambda optimizer: pickle.loads(pickle.dumps(optimizer)),
}


@thinned("all classes inherit it from one base")
@pytest.mark.parametrize("make_copy", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("said", [None, False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_unscales_if_the_user_said_fused(name: str, said: bool | None, make_copy: Callable[[Any], Any]) -> None:
    """Lightning refuses to clip the gradients of an optimizer that says so, as it refuses torch's fused ones."""
    cls = getattr(fusedopt, name)
    optimizer = make_copy(cls([Parameter(torch.zeros(2, 2))], fused=said))
    assert optimizer._step_supports_amp_scaling is (said is True)
    for saved in (None, True):
        file = save_and_load(cls([Parameter(torch.zeros(2, 2))], fused=saved).state_dict())
        optimizer.load_state_dict(file)
        assert optimizer._step_supports_amp_scaling is (said is True)


@pytest.mark.parametrize("said", [None, False, True])
def test_replace_keeps_what_the_user_said(said: bool | None) -> None:
    ours: Any = fusedopt.replace(torch.optim.AdamW(make_params(), fused=said))
    assert ours._step_supports_amp_scaling is (said is True)


def test_an_assignment_is_obeyed() -> None:
    """As torch's constructors make it, and frameworks that want the one way or the other."""
    ours: Any = fusedopt.AdamW(make_params(), fused=True)
    ours._step_supports_amp_scaling = False
    assert ours._step_supports_amp_scaling is False


def assert_skipped(optimizer: Any, expected: bool) -> None:
    value = optimizer.step_skipped
    assert isinstance(value, Tensor)
    assert value.dtype is torch.bool
    assert value.shape == ()
    assert value.item() is expected


@pytest.mark.parametrize("case", ONE_PER_OPTIMIZER, ids=str)
def test_step_skipped_tells_of_the_last_step(case: Case) -> None:
    ours: Any = case.ours(make_params())
    assert_skipped(ours, False)
    train(ours, 1)
    assert_skipped(ours, False)
    ours.found_inf = torch.tensor(1.0)
    ours.step()
    assert_skipped(ours, True)
    ours.found_inf = torch.tensor(0.0)
    ours.step()
    assert_skipped(ours, False)
    ours.found_inf = torch.tensor(1.0)
    ours.step()
    del ours.found_inf
    assert_skipped(ours, True)
    ours.step()
    assert_skipped(ours, False)


@thinned("all classes inherit it from one base")
@pytest.mark.parametrize("found", [1.0, 2.0, 0.5, -1.0, INF, NAN])
@pytest.mark.parametrize("shape", [(), (1,)], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_skipped_step_changes_nothing(case: Case, shape: tuple[int, ...], found: float) -> None:
    ours: Any = case.ours(make_params())
    # First without any state: none may be made. Then with it: neither bits nor versions may move.
    for _ in range(2):
        give_grads(params_of(ours), 0)
        ours.found_inf, ours.grad_scale = torch.full(shape, found), torch.full(shape, 2.0)
        before, counters, states = snapshot(ours), versions(ours), len(ours.state)
        ours.step()
        assert_skipped(ours, True)
        assert_identical(snapshot(ours), before)
        # Where only the device knows that the step is none, the host counts a write.
        assert EMULATED or versions(ours) == counters
        assert len(ours.state) == states
        del ours.found_inf, ours.grad_scale
        train(ours, 2)
    expected = case.ours(make_params())
    train(expected, 2)
    train(expected, 2)
    assert_identical(snapshot(ours), snapshot(expected))


@thinned("all classes inherit it from one base")
@pytest.mark.parametrize("found", [None, 0.0, -0.0])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_grad_scale_divides_and_leaves_the_gradient_alone(case: Case, found: float | None) -> None:
    ours: Any = case.ours(make_params())
    expected = case.ours(make_params())
    for i in range(3):
        give_grads(params_of(ours), i)
        give_grads(params_of(expected), i)
        for p in params_of(ours):
            p.grad.mul_(1024)  # a power of two: the division loses nothing and bits can be compared
        copies = [p.grad.clone() for p in params_of(ours)]
        counters = [p.grad._version for p in params_of(ours)]
        ours.grad_scale = torch.tensor(1024.0)
        ours.found_inf = None if found is None else torch.tensor(found)
        ours.step()
        expected.step()
        assert_identical([p.grad for p in params_of(ours)], copies)
        assert [p.grad._version for p in params_of(ours)] == counters
        assert_identical(snapshot(ours), snapshot(expected))


@in_either_way
@pytest.mark.parametrize("case", ONE_PER_OPTIMIZER, ids=str)
def test_unscale_then_clip(case: Case, fused: bool | None) -> None:
    ours, torchs = case.ours(make_params(), fused=fused), case.torchs(make_params())
    mine, theirs = scaler(), scaler()
    for i in range(6):
        for optimizer, scale in ((ours, mine), (torchs, theirs)):
            scaled_backward(optimizer, scale, i, INF if i == 2 else 1.0)
            scale.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(params_of(optimizer), 0.5)
            scale.step(optimizer)
            scale.update()
        assert_skipped(ours, bool(fused) and i == 2)
        assert_close(ours, torchs)


def test_several_groups_and_two_optimizers_share_a_scaler() -> None:
    def run(lib: Any) -> list[Optimizer]:
        one = lib.AdamW([{"params": make_params()}, {"params": make_params(seed=1), "lr": 0.1}])
        two = lib.SGD(make_params(seed=2), lr=0.1, momentum=0.9)
        scale = scaler()
        for i in range(6):
            scaled_backward(one, scale, i, INF if i == 1 else 1.0)
            scaled_backward(two, scale, i + 50, INF if i == 3 else 1.0)
            scale.step(one)
            scale.step(two)
            scale.update()
        return [one, two]

    for ours, torchs in zip(run(fusedopt), run(torch.optim), strict=True):
        assert_close(ours, torchs)


def test_scaler_passes_arguments_warns_of_nothing_and_returns_the_value() -> None:
    ours = fusedopt.AdamW(make_params(), fused=True)
    scale = scaler()
    scaled_backward(ours, scale, 0)
    calls: list[str] = []
    ours.register_step_pre_hook(lambda *_: calls.append("pre"))
    ours.register_step_post_hook(lambda *_: calls.append("post"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert scale.step(ours, lambda: "loss") == "loss"
    scale.update()
    # Unlike with torch's for-loop, which the scaler does not call, an overflow still runs the hooks: as torch's fused.
    scaled_backward(ours, scale, 1, INF)
    scale.step(ours)
    assert calls == ["pre", "post"] * 2


def test_some_params_without_gradients() -> None:
    ours, torchs = fusedopt.SGD(make_params(), 0.1, 0.9), torch.optim.SGD(make_params(), 0.1, 0.9, foreach=False)
    mine, theirs = scaler(), scaler()
    for i in range(5):
        for optimizer, scale in ((ours, mine), (torchs, theirs)):
            scaled_backward(optimizer, scale, i, INF if i == 1 else 1.0)
            params_of(optimizer)[i % 3].grad = None
            scale.step(optimizer)
            scale.update()
        assert_close(ours, torchs)


# torch's own update asserts that nobody set `grad_scale`; on these paths we divide and skip before it runs.
@in_either_way
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sparse_gradients(momentum: float, fused: bool | None) -> None:
    def build(lib: Any, **kwargs: Any) -> Optimizer:
        params = [Parameter(torch.ones(6, 3)), Parameter(torch.ones(4))]
        optimizer: Optimizer = lib.SGD(params, lr=0.1, momentum=momentum, **kwargs)
        return optimizer

    ours, torchs = build(fusedopt, fused=fused), build(torch.optim, foreach=False)
    mine, theirs = scaler(), scaler()
    for i in range(5):
        for optimizer, scale in ((ours, mine), (torchs, theirs)):
            optimizer.zero_grad()
            table, dense = params_of(optimizer)
            rows = torch.nn.functional.embedding(torch.tensor([i, 2, 2]), table, sparse=True)
            loss = rows.square().sum() + dense.square().sum()
            scale.scale(loss * (INF if i in (0, 3) else 1.0)).backward()
            grads = [p.grad.clone() for p in params_of(optimizer)]
            before = snapshot(optimizer)
            scale.step(optimizer)
            scale.update()
            if optimizer is ours and fused:
                assert_skipped(ours, i in (0, 3))
                if i in (0, 3):
                    assert_identical(snapshot(ours), before)
                after = [p.grad.to_dense() for p in (table, dense)]
                torch.testing.assert_close(after, [g.to_dense() for g in grads], rtol=0, atol=0, equal_nan=True)
        for p, q in zip(params_of(ours), params_of(torchs), strict=True):
            torch.testing.assert_close(p, q)


@pytest.mark.parametrize("case", ONE_PER_TWIN, ids=str)
def test_differentiable(case: Case) -> None:
    def build(make: Any) -> Any:
        return make([p.clone() for p in make_params()], differentiable=True)

    ours, expected = build(case.ours), build(case.ours)
    for i in range(3):
        give_grads(params_of(ours), i)
        give_grads(params_of(expected), i)
        for p in params_of(ours):
            p.grad.mul_(1024)
        ours.grad_scale, ours.found_inf = torch.tensor(1024.0), torch.tensor(float(i == 1))
        ours.step()
        assert_skipped(ours, i == 1)
        if i != 1:
            expected.step()
        assert_close(ours, expected)


@thinned("all classes inherit it from one base")
@in_either_way
@pytest.mark.parametrize("saved", [True, False, None])
@pytest.mark.parametrize("case", ONE_PER_OPTIMIZER, ids=str)
def test_checkpoint_of_any_kind_keeps_the_protocol(case: Case, saved: bool | None, fused: bool | None) -> None:
    flags = {"fused": saved, "foreach": None} if case.torch_takes("fused") else {}
    torchs = case.torchs(make_params(), **flags)
    train(torchs)
    ours = case.ours(clone_params(params_of(torchs)), fused=fused)
    ours.load_state_dict(save_and_load(torchs.state_dict()))
    assert getattr(ours, "_step_supports_amp_scaling", None) is (fused is True)
    loop = case.torchs(clone_params(params_of(torchs)))
    loop.load_state_dict(save_and_load(torchs.state_dict()))
    for group in loop.param_groups:
        group.update({"foreach": False, **({"fused": None} if flags else {})})
    mine, theirs = scaler(), scaler()
    for i in range(4):
        for optimizer, scale in ((ours, mine), (loop, theirs)):
            scaled_backward(optimizer, scale, i, INF if i == 1 else 1.0)
            scale.step(optimizer)
            scale.update()
        assert_close(ours, loop)
