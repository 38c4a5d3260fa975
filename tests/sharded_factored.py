"""Adafactor on shards: sums of rows and columns over processes, then of squares; every process has the factors."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from ranks import case
from sharded import OF_2_6, Pair, counted_calls, mesh_of, numbers, place, require_fsdp_of_cpus, whole
from support import assert_identical, params_of
from torch.distributed.tensor import Replicate, Shard
from torch.nn import Parameter

import fusedopt
from fusedopt._core import kept, shards

# A matrix whose rows are several chunks and whose columns several blocks, one of one column, matrices of three and four
# dimensions, a vector of which the second process has nothing.
SHAPES = [(10, 3), (130, 1100), (6, 1), (5, 4, 2), (3, 2, 4, 5), (7,), (1,)]


def make(params: Any, **kwargs: Any) -> Any:
    return fusedopt.Adafactor(params, lr=0.05, **kwargs)


def assert_close(pair: Pair, rtol: float = 2e-6) -> None:
    """As exact as sums are that are made of others; factors whole everywhere and as torch's shapes have them."""
    for p, q in zip(params_of(pair.sharded), params_of(pair.whole), strict=True):
        assert whole(p.detach()).dtype == q.dtype
        mine, its = pair.sharded.state[p], pair.whole.state[q]
        assert list(mine) == list(its)
        rests = [state.get("compensation", torch.zeros(())) for state in (mine, its)]
        torch.testing.assert_close(
            whole(p.detach()).float() + whole(rests[0]), q.detach().float() + rests[1], rtol=rtol, atol=1e-7
        )
        for key, value in its.items():
            if key == "compensation":
                continue
            torch.testing.assert_close(whole(mine[key]), value, rtol=rtol, atol=0 if key != "ema" else 1e-7)
            if key in ("row_var", "col_var") and hasattr(mine[key], "placements"):
                assert all(placement.is_replicate() for placement in mine[key].placements)
                everyone = [torch.empty_like(value) for _ in range(torch.distributed.get_world_size())]
                torch.distributed.all_gather(everyone, mine[key].to_local())
                for one in everyone:
                    assert_identical(one, everyone[0])


@case()
def adafactor_on_shards(rank: int) -> None:
    """By rows, by columns, replicated, and beside ordinary params: two all-reduces for all of them."""
    for placements, plain, shapes in [
        ([Shard(0)], [], SHAPES),
        ([Shard(0)], [1, 5], SHAPES),
        ([Shard(1)], [], [shape for shape in SHAPES if len(shape) > 1]),
        ([Shard(2)], [], [(5, 4, 3), (3, 2, 5, 2)]),
    ]:
        pair = Pair(make, placements, shapes, plain=plain)
        with counted_calls() as calls:
            pair.step()
        assert len(calls) == 6
        assert_close(pair)
    pair = Pair(make, [Replicate()], SHAPES)
    with counted_calls() as calls:
        pair.step()
    assert not calls
    pair.assert_same()


@case()
def options_of_adafactor_on_shards(rank: int) -> None:
    for dtype, kwargs in [
        (torch.bfloat16, {"master_weights": "float32", "ema_decay": 0.5}),
        (torch.bfloat16, {"rounding": "kahan"}),
        (torch.bfloat16, {"ema_decay": 0.5}),
        (torch.float32, {"max_grad_norm": 0.5}),
        (torch.float64, {"weight_decay": 0.1, "maximize": True}),
        (torch.float32, {"scale_parameter": False, "relative_step": True, "warmup_init": True}),
    ]:
        pair = Pair(lambda ps, kwargs=kwargs: make(ps, **kwargs), shapes=SHAPES[:3] + SHAPES[5:], dtype=dtype)  # type: ignore[misc]
        pair.step(zero_grad=True)
        # A factor on a rounding boundary of bfloat16 may come to lie on its other side, and with it a param.
        rounded = dtype == torch.bfloat16
        assert_close(pair, rtol=1e-2 if rounded else 2e-6)
        assert all(not whole(p.grad).any() for p in params_of(pair.sharded))


@case(ranks=4)
def adafactor_on_meshes_of_two_dimensions(rank: int) -> None:
    """Uneven and empty shards, replicas, and one dimension of a tensor divided by both of the mesh."""
    mesh, shapes = mesh_of(2, 2), [(10, 3), (5, 4, 2), (1, 1), (3, 70)]
    for placements, reductions in [
        ([Shard(0), Shard(1)], 2),
        ([Shard(0), Shard(0)], 2),
        *([] if OF_2_6 else [([Shard(1), Shard(0)], 2)]),
        ([Replicate(), Shard(0)], 1),
        ([Shard(1), Replicate()], 1),
    ]:
        pair = Pair(make, placements, shapes, mesh=mesh)
        with counted_calls() as calls:
            pair.step()
        assert len(calls) == 2 * 3 * reductions
        assert_close(pair)
    pair = Pair(make, shapes=[(3, 10), (3,), (1,)])
    pair.step()
    assert_close(pair)


@case(ranks=4)
def adafactor_over_several_meshes(rank: int) -> None:
    of = [(mesh_of(2, 2), [Shard(0), Replicate()]), (mesh_of(4), [Shard(0)]), (mesh_of(2, 2), [Replicate(), Shard(1)])]
    values, grads = numbers([(9, 4)] * len(of), 1), numbers([(9, 4)] * len(of), 2)
    params = [Parameter(place(t, *its)) for t, its in zip(values, of, strict=True)]
    others = [Parameter(t.clone()) for t in values]
    for p, q, grad, its in zip(params, others, grads, of, strict=True):
        p.grad, q.grad = place(grad, *its), grad
    for its in (params, others):
        make(its).step()
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(whole(p.detach()), q.detach(), rtol=2e-6, atol=1e-7)


@case(ranks=4)
def tensor_parallel_and_fully_sharded(rank: int) -> None:
    """FSDP2 over a matrix that tensor parallelism divides in the same dimension."""
    from torch import nn
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    require_fsdp_of_cpus()
    mesh: Any = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "model"))
    torch.manual_seed(4)
    its = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 8))
    parallelize_module(its, mesh["model"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
    fully_shard(its, mesh=mesh["data"])
    twins = [Parameter(whole(p.detach()).clone()) for p in its.parameters()]
    optimizers = [make(ps) for ps in (its.parameters(), twins)]
    for i in range(3):
        its(numbers([(6, 8)], 10 * i + rank // 2)[0]).square().mean().backward()
        for p, q in zip(its.parameters(), twins, strict=True):
            q.grad = whole(p.grad).clone()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    for p, q in zip(its.parameters(), twins, strict=True):
        torch.testing.assert_close(whole(p.detach()), q.detach(), rtol=2e-6, atol=1e-7)


@case()
def adafactor_refuses_together(rank: int) -> None:
    """What one process cannot step, and what only some of them have a gradient of; then the next step is one."""
    pair = Pair(lambda ps: make(ps, ema_decay=0.5))
    for first in (True, False):
        for wrong in ("shape", "none"):
            pair.give_grads(0)
            before = [p.to_local().clone() for p in params_of(pair.sharded)]
            p = params_of(pair.sharded)[0]
            grad: Any = p.grad
            if rank == 1 and wrong == "none":
                p.grad = None
            elif rank == 1:
                p.grad = place(torch.zeros(10, 3), pair.mesh, [Shard(0)])
                p.grad._local_tensor = p.grad._local_tensor[:, :2]  # type: ignore[attr-defined]
            words = "1 of the 2 processes that have a part of it have a gradient.*set it to zeros where there is none"
            if wrong == "shape":
                words = "its gradient has shape" if rank == 1 else "another process has refused its step"
            with pytest.raises(RuntimeError, match=words):
                pair.sharded.step()
            assert bool(pair.sharded.state) == (not first)
            for param, start in zip(params_of(pair.sharded), before, strict=True):
                assert_identical(param.to_local(), start)
            p.grad = grad
        pair.sharded.step()
        pair.whole.step()
        assert_close(pair)
    # Nobody has a gradient of the first.
    pair.give_grads(1)
    for optimizer in (pair.sharded, pair.whole):
        params_of(optimizer)[0].grad = None
        optimizer.step()
    assert_close(pair)
    for param in params_of(pair.sharded):
        param.grad = None
    pair.sharded.step()


@case()
def a_failure_between_the_two_sums_is_everybodys(rank: int) -> None:
    """For want of memory: nobody waits in the second, and params and factors are as they were on every process."""
    sums = []

    def summed(*args: Any) -> Any:
        made = shards.summed(*args)
        sums.append(made)
        if rank == 1 and len(sums) == 1:
            raise MemoryError("nothing left for what comes next")
        return made

    pair = Pair(make, shapes=SHAPES)
    pair.step(1)
    before = [copy.deepcopy(pair.sharded.state_dict()), [p.to_local().clone() for p in params_of(pair.sharded)]]
    pair.give_grads(1)
    pair.sharded._plan = None  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(kept, "summed", summed)
        with pytest.raises(
            MemoryError if rank == 1 else RuntimeError,
            match="nothing left" if rank == 1 else "another process has refused its step.*nothing has been written",
        ):
            pair.sharded.step()
    assert len(sums) == 2
    for p, start in zip(params_of(pair.sharded), before[1], strict=True):
        assert_identical(p.to_local(), start)
    for mine, its in zip(pair.sharded.state_dict()["state"].values(), before[0]["state"].values(), strict=True):
        for key, value in its.items():
            assert_identical(whole(mine[key]), whole(value))
    # The next step is one.
    pair.sharded.step()
    pair.whole.step()
    assert_close(pair)


@case()
def what_adafactor_cannot_have_of_shards(rank: int) -> None:
    (t,) = numbers([(10, 3)], 1)
    p: Any = Parameter(place(t, mesh_of(2), [Shard(0)]))
    p.grad = place(t, mesh_of(2), [Shard(0)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        twice = make([p, p])
    with pytest.raises(RuntimeError, match="once a step, and it is in the list twice; list it once"):
        twice.step()
    optimizer = make([p])
    optimizer.step()
    factor = optimizer.state[p]["row_var"]
    optimizer.state[p]["row_var"] = place(whole(factor), mesh_of(2), [Shard(0)])
    before = p.to_local().clone()
    with pytest.raises(RuntimeError, match=r"'row_var' is placed as .*; every process needs all of it: replicate it"):
        optimizer.step()
    optimizer.state[p]["row_var"] = factor.to_local()
    with pytest.raises(RuntimeError, match="'row_var' is no DTensor and the param is one; distribute the state"):
        optimizer.step()
    assert_identical(p.to_local(), before)
