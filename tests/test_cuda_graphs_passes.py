"""Steps of more than one pass, captured into a graph: a replay is the step that the CPU takes."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from adafactor_runs import DTYPES, SHAPES, random
from backends import (  # noqa: F401
    Backend,
    assert_same_memory,
    backend_fixture,
)
from layouts import OF_ONE_SHAPE
from test_cuda_graphs import replay_steps
from torch import Tensor
from twins import Twins, assert_untouched, copies

import fusedopt

needs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has Muon from 2.9 on")


def adafactor(**options: Any) -> Any:
    return lambda params: fusedopt.Adafactor(params, capturable=True, **options)


def halves(build: Callable[[Any], Any]) -> Any:
    """Params in two groups."""
    return lambda params: build([{"params": params[::2]}, {"params": params[1::2]}])


def adafactor_twins(backend: Backend, dtypes: Sequence[torch.dtype] = DTYPES[:1], **options: Any) -> Twins:
    """Of one storage, unless storages are what it is about."""
    values = [random(shape, dtype) for dtype in dtypes for shape in (*SHAPES, (0,), (0, 3))]
    values += [layout.place(random(layout.shape)).tensor for layout in OF_ONE_SHAPE]
    twins = Twins(backend, halves(adafactor(weight_decay=0.1, **options)), values)
    twins.train(2)
    return twins


def test_adafactor(backend: Backend) -> None:
    """Of all storages and shapes together, for some params without a gradient."""
    twins = adafactor_twins(backend, DTYPES)
    twins.give([None if i % 7 == 3 else random(p.shape, p.dtype) for i, p in enumerate(twins.cpu_params)])
    before = copies(twins.ours)
    replay = backend.capture(twins.ours.step)
    assert_untouched(twins.ours, before)
    replay_steps(twins, replay)


@pytest.mark.parametrize("options", [{"ema_decay": 0.9}, {"master_weights": "float32"}, {"rounding": "kahan"}], ids=str)
def test_adafactor_with_options(backend: Backend, options: dict[str, Any]) -> None:
    values = [random(shape, dtype) for dtype in DTYPES[2:] for shape in ((70, 1030), (9,), (3, 5, 7))]
    twins = Twins(backend, adafactor(**options), values)
    twins.train(2)
    replay_steps(twins, backend.capture(twins.ours.step))


def test_adafactor_reads_refreshed_numbers(backend: Backend) -> None:
    twins = adafactor_twins(backend)
    replay = backend.capture(twins.ours.step)
    for step in range(3):
        replay_steps(twins, replay, 1)
        twins.set_lr(0.02 / (step + 1))
        twins.edit(lambda o, _: o.param_groups[1].update(d=1.5 + step, eps=(1e-4, 1e-2), maximize=step == 1))  # noqa: B023
        twins.ours.refresh_hyperparameters()
        replay_steps(twins, replay, 2)


def test_steps_between_replays_of_adafactor(backend: Backend) -> None:
    twins = adafactor_twins(backend)
    replay = backend.capture(twins.ours.step)
    static = [q.grad for q in twins.params]
    for _ in range(2):
        replay_steps(twins, replay, 2)
        twins.train(2)
        for p, q, grad in zip(twins.cpu_params, twins.params, static, strict=True):
            q.grad = grad
            p.grad = random(p.shape, p.dtype)


def test_an_overflow_makes_a_replay_of_adafactor_nothing(backend: Backend) -> None:
    twins = adafactor_twins(backend)
    twins.set_scaling(0.0, 1.0)
    replay = backend.capture(twins.ours.step)
    for found, scale in ((0.0, 2.0), (1.0, 3.0), (float("nan"), 1.0), (0.0, 0.5)):
        for optimizer, _ in twins.both():
            optimizer.found_inf.fill_(found)
            optimizer.grad_scale.fill_(scale)
        before = copies(twins.ours)
        replay_steps(twins, replay, 2)
        if found != 0:
            assert_untouched(twins.ours, before)


def test_adafactor_without_the_flag(backend: Backend) -> None:
    twins = Twins(backend, lambda params: fusedopt.Adafactor(params), [random((5, 7))])
    assert "capturable" not in twins.ours.param_groups[0]
    twins.train(1)
    twins.give()
    words = "instance of Adafactor but param_groups' capturable is False: construct it with capturable=True"
    with pytest.raises(RuntimeError, match=words):
        backend.capture(twins.ours.step)
    twins.ours.param_groups[0]["capturable"] = True
    twins.ours.step()
    twins.step_cpu()
    replay_steps(twins, backend.capture(twins.ours.step))


def muon(**options: Any) -> Any:
    return lambda params: fusedopt.Muon(params, **{"lr": 0.02, **options})


# Batches of equal shapes, tall and wide, and one by itself.
MATRICES = [(24, 16), (16, 24), (20, 20), (24, 16), (1, 5), (24, 16), (70, 64)]


def muon_twins(backend: Backend, **options: Any) -> Twins:
    values = [random(shape, dtype) for dtype in DTYPES for shape in MATRICES]
    twins = Twins(backend, halves(muon(**options)), values)
    twins.train(2)
    return twins


@needs_muon
@pytest.mark.parametrize(
    "options",
    [{}, {"nesterov": False, "adjust_lr_fn": "match_rms_adamw"}, {"ema_decay": 0.9}, {"state_dtype": "int8"}],
    ids=str,
)
def test_muon(backend: Backend, options: dict[str, Any]) -> None:
    twins = muon_twins(backend, **options)
    twins.give([None if i % 7 == 3 else random(p.shape, p.dtype) for i, p in enumerate(twins.cpu_params)])
    before = copies(twins.ours)
    replay = backend.capture(twins.ours.step)
    assert_untouched(twins.ours, before)
    replay_steps(twins, replay)


@needs_muon
@pytest.mark.parametrize("options", [{}, {"ema_decay": 0.9, "max_grad_norm": 1.0}], ids=str)
def test_muon_of_matrices_without_elements(backend: Backend, options: dict[str, Any]) -> None:
    """There are no products of them, nor has the second pass anything to be launched for."""
    twins = Twins(backend, muon(**options), [random(shape) for shape in [(0, 5), (5, 0), (4, 3)]])
    twins.train(1)
    twins.step([*(torch.zeros_like(p) for p in twins.cpu_params[:2]), None])
    twins.check()
    assert [state["momentum_buffer"].numel() for state in twins.ours.state.values()] == [0, 0, 12]


@needs_muon
def test_muon_reads_refreshed_numbers_in_both_passes(backend: Backend) -> None:
    twins = muon_twins(backend)
    replay = backend.capture(twins.ours.step)
    for step in range(3):
        replay_steps(twins, replay, 1)
        twins.set_lr(0.02 / (step + 1))
        twins.edit(lambda o, _: o.param_groups[1].update(momentum=0.9 - 0.1 * step, weight_decay=0.2))  # noqa: B023
        twins.ours.refresh_hyperparameters()
        replay_steps(twins, replay, 2)


@needs_muon
def test_an_overflow_makes_a_replay_of_muon_nothing(backend: Backend) -> None:
    twins = muon_twins(backend)
    twins.set_scaling(0.0, 1.0)
    replay = backend.capture(twins.ours.step)
    for found, scale in ((0.0, 2.0), (1.0, 3.0), (0.0, 0.5)):
        for optimizer, _ in twins.both():
            optimizer.found_inf.fill_(found)
            optimizer.grad_scale.fill_(scale)
        before = copies(twins.ours)
        replay_steps(twins, replay, 2)
        if found != 0:
            assert_untouched(twins.ours, before)


@needs_muon
def test_what_a_graph_of_muon_reads_outlives_the_optimizer(backend: Backend) -> None:
    twins = muon_twins(backend)
    replay = backend.capture(twins.ours.step)
    # It keeps its states alone, which are the user's.
    kept = {id(q): twins.ours.state[q] for q in twins.params}
    twins.ours._plan = None
    gc.collect()
    rubbish = [torch.full((size,), 255, dtype=torch.uint8, device=backend.device) for size in range(1, 40_000, 100)]
    replay_steps(twins, replay)
    assert len(rubbish) == 400
    assert len(kept) == len(twins.params)


ROWS, WIDTH, HELD = 50, 64, 12


def sparse_adam(**options: Any) -> Any:
    return lambda params: fusedopt.SparseAdam(params, lr=0.1, capturable=True, **options)


def coalesced(dtype: torch.dtype, seed: int) -> Tensor:
    """As many rows at every step."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(ROWS, generator=generator)[:HELD].sort().values
    values = torch.randn(HELD, WIDTH, generator=generator).to(dtype)
    return torch.sparse_coo_tensor(rows[None], values, (ROWS, WIDTH), is_coalesced=True, check_invariants=True)


def step_sparse(twins: Twins, seed: int, replay: Callable[[], None] | None = None) -> None:
    """A step of each; a replay finds new rows and numbers where the last gradients are."""
    for i, (p, q) in enumerate(zip(twins.cpu_params, twins.params, strict=True)):
        p.grad = coalesced(p.dtype, seed + i)
        if replay is None:
            q.grad = coalesced(p.dtype, seed + i).to(twins.backend.device)
        else:
            q.grad._values().copy_(p.grad._values())
            q.grad._indices().copy_(p.grad._indices())
    twins.step_cpu()
    (replay or twins.ours.step)()
    for p, q in zip(twins.cpu_params, twins.params, strict=True):
        assert_same_memory(q.detach(), p.detach())
        for name, value in twins.cpu.state[p].items():
            if name == "step":
                assert twins.ours.state[q][name] == value
            else:
                assert_same_memory(twins.ours.state[q][name], value)


@pytest.mark.parametrize("options", [{}, {"master_weights": "float32"}, {"rounding": "kahan"}], ids=str)
def test_sparse_adam(backend: Backend, options: dict[str, Any]) -> None:
    dtypes = DTYPES[2:] if options else DTYPES
    twins = Twins(backend, sparse_adam(**options), [torch.randn(ROWS, WIDTH).to(dtype) for dtype in dtypes])
    for step in range(2):
        step_sparse(twins, 100 * step)
    before = copies(twins.ours)
    replay = backend.capture(twins.ours.step)
    assert_untouched(twins.ours, before)
    for step in range(2, 5):
        step_sparse(twins, 100 * step, replay)
    twins.set_lr(0.01)
    twins.ours.refresh_hyperparameters()
    step_sparse(twins, 900, replay)
    step_sparse(twins, 1000)


def test_sparse_adam_moves_counters_that_python_has(backend: Backend) -> None:
    twins = Twins(backend, lambda params: fusedopt.SparseAdam(params, lr=0.1), [torch.randn(ROWS, WIDTH)])
    step_sparse(twins, 0)
    assert twins.ours.state[twins.params[0]]["step"] == 1
    assert isinstance(twins.ours.state[twins.params[0]]["step"], int)
    words = "instance of SparseAdam but param_groups' capturable is False: construct it with capturable=True"
    with pytest.raises(RuntimeError, match=words):
        backend.capture(twins.ours.step)
    twins.ours.param_groups[0]["capturable"] = True
    step_sparse(twins, 100)
    assert isinstance(twins.ours.state[twins.params[0]]["step"], Tensor)
    step_sparse(twins, 200, backend.capture(twins.ours.step))


def test_a_capture_of_sparse_adam_needs_coalesced_gradients(backend: Backend) -> None:
    twins = Twins(backend, sparse_adam(), [torch.randn(ROWS, WIDTH)])
    step_sparse(twins, 0)
    twins.params[0].grad = torch.sparse_coo_tensor(
        torch.tensor([[3, 3]]), torch.ones(2, WIDTH), (ROWS, WIDTH), device=backend.device, check_invariants=True
    )
    before = copies(twins.ours)
    words = "param 0 of group 0: its gradient is not coalesced, and to add up the rows .* a CUDA graph cannot"
    with pytest.raises(RuntimeError, match=words):
        backend.capture(twins.ours.step)
    assert_untouched(twins.ours, before)


def test_lbfgs_says_why_it_cannot_be_captured(backend: Backend) -> None:
    with backend.at_work():
        param = torch.nn.Parameter(backend.place(torch.ones(5)))
        optimizer = fusedopt.LBFGS([param])

        def closure() -> Tensor:
            param.grad = 2 * param.detach()
            return param.detach().square().sum()

        with pytest.raises(RuntimeError, match="LBFGS, which decides on the host, by sums that it waits for"):
            backend.capture(lambda: optimizer.step(closure))


def test_prodigy_gets_no_group_that_a_graph_would_leave_behind(backend: Backend) -> None:
    """A replay moves the distance of the groups that it was captured with."""
    twins = Twins(backend, lambda params: fusedopt.Prodigy(params, d0=1e-2, capturable=True), [random((300,))])
    twins.train(2)
    replay: Any = backend.capture(twins.ours.step)
    with backend.at_work():
        more = torch.nn.Parameter(backend.place(torch.ones(5)))
    with pytest.raises(RuntimeError, match=r"move 'd' in the groups of the capture alone.*add_param_group\(\) before"):
        twins.ours.add_param_group({"params": [more]})
    assert len(twins.ours.param_groups) == 1
    replay_steps(twins, replay)
    del replay
    gc.collect()
    twins.ours.add_param_group({"params": [more]})
    first, second = twins.ours.param_groups
    assert int(first["k"]) == int(second["k"]) > 2
