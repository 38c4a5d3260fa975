"""Captured into a graph, a step is one at every replay, and the numbers that it reads can be sent anew."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from backends import (  # noqa: F401
    CHUNK,
    Backend,
    Cuda,
    backend_fixture,
    counter_flags,
    cuda_fixture,
    spread,
    usual_launches,
)
from cases import CASES, ONE_PER_APART, ONE_PER_OPTIMIZER, Case
from layouts import OF_ONE_SHAPE
from tiers import of_a_kind, thinned
from torch import Tensor
from torch.nn import Parameter
from twins import SIZES, Twins, assert_untouched, copies, simple, trained_twins

import fusedopt

every_case = pytest.mark.parametrize("case", CASES, ids=str)
one_per_optimizer = pytest.mark.parametrize("case", ONE_PER_OPTIMIZER, ids=str)


def fill_grads(twins: Twins) -> None:
    """New gradients where the graph expects them."""
    for p, q in zip(twins.cpu_params, twins.params, strict=True):
        if p.grad is not None:
            p.grad = spread(*p.shape, dtype=p.dtype)
            q.grad.copy_(p.grad)


def replay_steps(twins: Twins, replay: Callable[[], None], steps: int = 3) -> None:
    """Each replay is the step that the CPU takes."""
    for _ in range(steps):
        fill_grads(twins)
        replay()
        twins.step_cpu()
        assert_states_and_params(twins)


def assert_states_and_params(twins: Twins) -> None:
    """As `check`, but the gradients of the two need not lie alike."""
    kept = [(p.grad, q.grad) for p, q in zip(twins.cpu_params, twins.params, strict=True)]
    for p, q in zip(twins.cpu_params, twins.params, strict=True):
        p.grad = q.grad = None
    twins.check()
    for p, q, (p_grad, q_grad) in zip(twins.cpu_params, twins.params, kept, strict=True):
        p.grad, q.grad = p_grad, q_grad


def capturable_twins(backend: Backend, case: Case, values: list[Tensor]) -> Twins:
    twins = Twins(backend, simple(case, **counter_flags(case)), values)
    twins.train(2)
    return twins


@thinned("a graph knows launches, not rules", keep=lambda case: case in ONE_PER_OPTIMIZER, together=0)
@every_case
def test_a_replay_is_a_step(backend: Backend, case: Case) -> None:
    """Of all storages, sizes and layouts together, for some params without a gradient."""
    dtypes = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
    values = [spread(n, dtype=dtype) for dtype in dtypes for n in (0, 1, 63, CHUNK, 2 * CHUNK + 7)]
    values += [layout.place(spread(*layout.shape)).tensor for layout in OF_ONE_SHAPE]
    twins = capturable_twins(backend, case, values)
    twins.give([None if i % 7 == 3 else spread(*v.shape, dtype=v.dtype) for i, v in enumerate(values)])
    before = copies(twins.ours)
    replay = backend.capture(twins.ours.step)
    assert_untouched(twins.ours, before)
    replay_steps(twins, replay, 5)


@pytest.mark.parametrize("count", [1, 1000])
def test_a_captured_step_is_two_launches(backend: Backend, count: int) -> None:
    case = CASES[0]
    twins = capturable_twins(backend, case, [spread(7) for _ in range(count)])
    replays: list[Callable[[], None]] = []
    if backend.name == "emulated":
        # Recorded launches count as well, replayed ones do not. The others fill the table: a small patch, or two large
        # ones, for three words for each row (addresses of param and gradient, size), one for the starts of each two,
        # the group's sign and its learning rate.
        launches = backend.launches(lambda: replays.append(backend.capture(twins.ours.step)))
        assert launches == usual_launches(twins.ours) + (1 if count == 1 else 2)
    else:
        replays.append(backend.capture(twins.ours.step))
        assert backend.launches(replays[0]) == usual_launches(twins.ours)
        twins.step_cpu()
    replay_steps(twins, replays[0])


def _other_numbers(group: dict[str, Any]) -> None:
    for key in ("lr", "eps", "momentum", "dampening", "alpha"):
        if group.get(key):
            group[key] *= 0.7
    if "betas" in group:
        group["betas"] = tuple(beta * 0.9 for beta in group["betas"])
    if "weight_decay" in group:
        group["weight_decay"] += 0.05
    group["maximize"] = not group["maximize"]


@thinned("a graph knows launches, not rules", keep=of_a_kind, together=0)
@every_case
def test_refreshed_numbers_reach_the_next_replay_and_others_do_not(backend: Backend, case: Case) -> None:
    twins = trained_twins(backend, case)
    replay = backend.capture(twins.ours.step)
    for _ in range(2):
        replay_steps(twins, replay, 2)
        _other_numbers(twins.ours.param_groups[0])
        replay_steps(twins, replay, 2)
        _other_numbers(twins.cpu.param_groups[0])
        twins.ours.refresh_hyperparameters()
        replay_steps(twins, replay, 2)


def test_refreshing_without_a_graph_or_a_step_does_nothing(backend: Backend) -> None:
    for case in ONE_PER_OPTIMIZER:
        twins = Twins(backend, simple(case), [spread(5)])
        twins.ours.refresh_hyperparameters()
        twins.train()
        assert backend.launches(twins.ours.refresh_hyperparameters) == 0
        twins.train()


@thinned("a graph knows launches, not rules", keep=of_a_kind, together=0)
@every_case
def test_groups_that_were_equal_at_capture_may_come_to_differ(backend: Backend, case: Case) -> None:
    def build(params: list[Any]) -> Any:
        return case.ours([{"params": params[i : i + 2]} for i in range(0, 10, 2)], **counter_flags(case))

    twins = Twins(backend, build, [spread(40 + n) for n in range(10)])
    twins.train()
    replay = backend.capture(twins.ours.step)
    replay_steps(twins, replay)
    for step in range(3):
        twins.set_lr(0.001 * (step + 1))
        some = slice(None) if case.joint else slice(step, step + 1)
        twins.edit(lambda optimizer, _: [_other_numbers(group) for group in optimizer.param_groups[some]])  # noqa: B023
        twins.ours.refresh_hyperparameters()
        replay_steps(twins, replay)


@thinned("a graph knows launches, not rules", keep=of_a_kind, together=0)
@every_case
def test_steps_between_replays(backend: Backend, case: Case) -> None:
    """They take gradients from elsewhere and numbers of their own."""
    twins = trained_twins(backend, case)
    replay = backend.capture(twins.ours.step)
    static = [q.grad for q in twins.params]
    captured_lr = twins.cpu.param_groups[0]["lr"]
    for step in range(3):
        replay_steps(twins, replay, 2)
        twins.set_lr(0.01 * (step + 1))
        twins.train(2)
        twins.step([None if i % 3 == step else spread(*size) for i, size in enumerate(SIZES)])
        twins.check()
        for q, grad in zip(twins.params, static, strict=True):
            q.grad = grad
        for p in twins.cpu_params:
            p.grad = torch.empty(p.shape)
        twins.cpu.param_groups[0]["lr"] = captured_lr


@thinned("a graph knows launches, not rules", keep=of_a_kind, together=0)
@every_case
def test_a_learning_rate_in_device_memory_needs_no_refresh(backend: Backend, case: Case) -> None:
    twins = trained_twins(backend, case)
    twins.cpu.param_groups[0]["lr"], twins.ours.param_groups[0]["lr"] = torch.tensor(0.01), backend.number(0.01)
    twins.train(1)
    replay = backend.capture(twins.ours.step)
    for factor in (1.0, 3.0, 0.1):
        twins.edit(lambda optimizer, params: optimizer.param_groups[0]["lr"].mul_(factor))  # noqa: B023
        replay_steps(twins, replay, 2)


@one_per_optimizer
def test_two_graphs_of_one_optimizer(backend: Backend, case: Case) -> None:
    """Each has gradients of its own; a third is two steps."""
    twins = trained_twins(backend, case)
    graphs: list[tuple[Callable[[], None], list[Any], int]] = []
    for steps in (1, 1, 2):
        twins.give()

        def capture(steps: int = steps) -> None:
            for _ in range(steps):
                twins.ours.step()

        graphs.append((backend.capture(capture), [q.grad for q in twins.params], steps))
    for which in (0, 1, 0, 2, 2, 1, 0):
        replay, grads, steps = graphs[which]
        for q, grad in zip(twins.params, grads, strict=True):
            q.grad = grad
        fill_grads(twins)
        replay()
        for _ in range(steps):
            twins.step_cpu()
        assert_states_and_params(twins)
        twins.set_lr(0.002 * (which + 1))
        twins.ours.refresh_hyperparameters()


@thinned("a graph knows launches, not rules", keep=of_a_kind, together=0)
@pytest.mark.parametrize("eager_before", [False, True])
@every_case
def test_an_overflow_makes_a_replay_nothing(backend: Backend, case: Case, eager_before: bool) -> None:
    twins = trained_twins(backend, case)
    twins.set_scaling(0.0, 1.0)
    if eager_before:
        twins.train(2)
    replay = backend.capture(twins.ours.step)
    for found, scale in ((0.0, 2.0), (1.0, 3.0), (float("inf"), 3.0), (0.0, 7.0), (float("nan"), 1.0), (0.0, 0.3)):
        for optimizer, _ in twins.both():
            optimizer.found_inf.fill_(found)
            optimizer.grad_scale.fill_(scale)
        before = copies(twins.ours)
        replay_steps(twins, replay, 2)
        assert twins.ours.step_skipped.item() is (found != 0)
        if found != 0:
            assert_untouched(twins.ours, before)


@thinned("tables, streams and graphs know no rule", keep=of_a_kind, together=0)
@one_per_optimizer
def test_what_a_graph_reads_outlives_other_steps(backend: Backend, case: Case) -> None:
    """Eager tables are given up and made anew meanwhile: for more params, for streams that come and go."""
    if case.joint:
        pytest.skip("takes no params while a graph may be replayed, by name")
    twins = trained_twins(backend, case)
    replay = backend.capture(twins.ours.step)
    static = [q.grad for q in twins.params]
    more = [[torch.nn.Parameter(torch.ones(99)) for _ in range(150)] for _ in range(2)]
    more[1] = [torch.nn.Parameter(p.detach().to(backend.device, copy=True)) for p in more[0]]
    twins.cpu.add_param_group({"params": more[0]})
    twins.ours.add_param_group({"params": more[1]})
    for stream in range(1, 19):
        for p, q in zip(*more, strict=True):
            p.grad = spread(99)
            q.grad = p.grad.to(backend.device)
        with backend.stream(stream):
            twins.train(1)
    for p, q in zip(*more, strict=True):
        p.grad = q.grad = None
    gc.collect()
    # Whatever has been freed is written over.
    rubbish = [torch.full((size,), 255, dtype=torch.uint8, device=backend.device) for size in range(1, 40_000, 100)]
    for q, grad in zip(twins.params, static, strict=True):
        q.grad = grad
    replay_steps(twins, replay)
    assert len(rubbish) == 400


@pytest.mark.parametrize("case", ONE_PER_APART, ids=str)
def test_a_param_listed_twice_steps_twice_in_a_replay(backend: Backend, case: Case) -> None:
    def build(params: list[Any]) -> Any:
        with pytest.warns(UserWarning, match="duplicate parameters"):
            return case.ours([params[0], params[1], params[0], params[2], params[1]], **counter_flags(case))

    twins = Twins(backend, build, [spread(67), spread(1500), spread(3)])
    twins.train()
    replay = backend.capture(twins.ours.step)
    replay_steps(twins, replay)
    twins.set_lr(0.3)
    twins.ours.refresh_hyperparameters()
    replay_steps(twins, replay)


def test_sgd_without_momentum_may_begin_in_a_graph(backend: Backend) -> None:
    twins = Twins(backend, simple(CASES[0]), [spread(n) for n in (3, 70)])
    twins.give()
    replay_steps(twins, backend.capture(twins.ours.step))


@one_per_optimizer
def test_replays_on_several_streams(backend: Backend, case: Case) -> None:
    if backend.name == "emulated":
        pytest.skip("the emulator replays without a stream")
    twins = trained_twins(backend, case)
    replay = backend.capture(twins.ours.step)
    for stream in (1, 2, 1):
        with backend.stream(stream):
            twins.set_lr(0.01 * stream)
            twins.ours.refresh_hyperparameters()
            replay_steps(twins, replay)


def test_params_on_the_cpu_in_a_capture(cuda: Cuda) -> None:
    params = [Parameter(torch.ones(3, device=device)) for device in ("cuda", "cpu")]
    optimizer = fusedopt.SGD(params, lr=0.1)
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    before = copies(optimizer)
    with pytest.raises(RuntimeError, match="a step that also updates params on the CPU cannot be captured"):
        cuda.capture(optimizer.step)
    assert_untouched(optimizer, before)
    optimizer.step()
