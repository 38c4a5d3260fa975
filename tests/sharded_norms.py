"""The norm of gradients that are DTensors: the same on every process, that of whole tensors up to a rounding."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from ranks import case
from sharded import SHAPES, Pair, counted_calls, mesh_of, numbers, place, whole
from support import assert_identical, params_of
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.nn import Parameter

import fusedopt
from fusedopt import _clipping as clipping

ORDERS = (2.0, 1.0, 3.0, math.inf)


def assert_everywhere(norm: torch.Tensor) -> None:
    found = [torch.zeros_like(norm) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(found, norm)
    for other in found:
        assert_identical(other, norm)


def assert_one_rounding(norm: torch.Tensor, expected: torch.Tensor) -> None:
    assert norm.dtype == expected.dtype
    torch.testing.assert_close(norm, expected, rtol=torch.finfo(norm.dtype).eps, atol=0)


def compare(pair: Pair, order: float = 2.0) -> None:
    pair.give_grads(0)
    mine, its = params_of(pair.sharded), params_of(pair.whole)
    expected = fusedopt.clip_grad_norm_(its, 0.5, order)
    before = [(p.grad._version, getattr(p.grad, "_local_tensor", p.grad)._version) for p in mine]
    norm: Any = fusedopt.clip_grad_norm_(mine, 0.5, order)
    assert isinstance(norm, DTensor) != bool(pair.plain)
    assert_one_rounding(whole(norm), expected)
    assert_everywhere(whole(norm))
    for p, q, (outer, inner) in zip(mine, its, before, strict=True):
        torch.testing.assert_close(whole(p.grad), q.grad)
        assert p.grad._version > outer
        assert getattr(p.grad, "_local_tensor", p.grad)._version > inner


@case()
def norms_of_every_order(rank: int) -> None:
    for order in ORDERS:
        for placements in ([Shard(0)], [Replicate()]):
            compare(Pair(lambda ps: fusedopt.SGD(ps), placements), order)
    compare(Pair(lambda ps: fusedopt.SGD(ps), dtype=torch.float64))
    compare(Pair(lambda ps: fusedopt.SGD(ps), dtype=torch.bfloat16))


@case()
def ordinary_gradients_count_once(rank: int) -> None:
    for order in ORDERS:
        compare(Pair(lambda ps: fusedopt.SGD(ps), plain=[1, 3]), order)


@case(ranks=4)
def norms_on_meshes_of_two_dimensions(rank: int) -> None:
    mesh = mesh_of(2, 2)
    for placements in ([Shard(0), Shard(1)], [Replicate(), Shard(0)], [Shard(0), Replicate()], [Replicate()] * 2):
        for order in (2.0, math.inf):
            compare(Pair(lambda ps: fusedopt.SGD(ps), placements, [(10, 3), (5, 4, 2), (1, 1)], mesh=mesh), order)


@case(ranks=4)
def params_of_several_meshes_and_placements(rank: int) -> None:
    """Each mesh makes its sum, and these are added; what one dimension divides and another repeats counts once."""
    mesh = init_named()
    of = [
        (mesh, [Shard(0), Shard(0)]),
        (mesh, [Shard(0), Replicate()]),
        (mesh, [Replicate(), Shard(1)]),
        (mesh["data"], [Shard(0)]),
        (mesh["model"], [Shard(1)]),
        (mesh_of(4), [Shard(0)]),
    ]
    grads = numbers([(9, 4)] * len(of), 5)
    params = []
    for grad, (its, placements) in zip(grads, of, strict=True):
        params.append(Parameter(place(torch.zeros(9, 4), its, placements)))
        params[-1].grad = place(grad, its, placements)
    others = [Parameter(torch.zeros(9, 4)) for _ in of]
    for p, grad in zip(others, grads, strict=True):
        p.grad = grad
    optimizers = [fusedopt.SGD(its, lr=1.0, max_grad_norm=0.5) for its in (params, others)]
    for optimizer in optimizers:
        optimizer.step()
    assert_one_rounding(optimizers[0].grad_norm, optimizers[1].grad_norm)  # type: ignore[arg-type]
    assert_everywhere(optimizers[0].grad_norm)  # type: ignore[arg-type]
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(whole(p.detach()), q.detach())


def init_named() -> Any:
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "model"))


@case()
def a_step_that_clips_has_one_collective(rank: int) -> None:
    """Of meshes that are equal, as fully_shard makes one for each module, too."""
    from torch.distributed.device_mesh import init_device_mesh

    params = [Parameter(place(t, init_device_mesh("cpu", (2,)), [Shard(0)])) for t in numbers(SHAPES, 1)]
    optimizer = fusedopt.AdamW(params, max_grad_norm=0.5)
    with counted_calls() as calls:
        for i in range(2):
            for p, grad in zip(params, numbers(SHAPES, i), strict=True):
                p.grad = place(grad, p.device_mesh, [Shard(0)])  # type: ignore[attr-defined]
            optimizer.step()
    assert len(calls) == 2


@case()
def a_step_finds_the_norm_in_its_own_look_at_shards(rank: int) -> None:
    """From the second on; the first makes states, and has the norm's bits by other means."""
    for plain in ([], [1, 3]):
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            pair = Pair(lambda ps: fusedopt.AdamW(ps, lr=0.1, max_grad_norm=0.5), dtype=dtype, plain=plain)
            for i in range(3):
                pair.step(1, first=i)
                optimizer: Any = pair.sharded
                assert optimizer._plan.looks_once
                assert_identical(
                    optimizer.grad_norm,
                    clipping.clip(clipping.measure([{"params": params_of(optimizer)}]), None, 0.5)[0],
                )
                assert_one_rounding(optimizer.grad_norm, pair.whole.grad_norm)  # type: ignore[attr-defined]
                assert_everywhere(optimizer.grad_norm)


REFUSING: list[tuple[Any, dict[str, Any]]] = [
    (fusedopt.AdamW, {}),
    (fusedopt.LAMB, {}),
    (fusedopt.Adafactor, {}),
    (fusedopt.SGD, {"lr": 1.0}),
]


@case()
def a_process_that_refuses_its_step_tells_the_others_by_the_norm(rank: int) -> None:
    """Before the first step and later; also one that has no gradients itself, and so no rows."""
    for cls, kwargs in REFUSING:
        for steps, empty in [(0, False), (2, False), (2, True)]:
            pair = Pair(lambda ps, cls=cls, kwargs=kwargs: cls(ps, max_grad_norm=0.5, **kwargs))  # type: ignore[misc]
            pair.step(steps)
            pair.give_grads(7)
            params = params_of(pair.sharded)
            before = [p.to_local().clone() for p in params]
            if rank == 1:
                params[0].grad._local_tensor = torch.ones(2, 2)
            elif empty:
                for p in params:
                    p.grad = None
            words = "its gradient has shape" if rank == 1 else "another process has refused its step"
            with pytest.raises(RuntimeError, match=words):
                pair.sharded.step()
            for p, start in zip(params, before, strict=True):
                assert_identical(p.to_local(), start)
            # Nobody is out of step with the others.
            pair.step(1, first=steps)
            assert_everywhere(pair.sharded.grad_norm)  # type: ignore[attr-defined]


@case(ranks=4)
def replicas_do_not_hear_of_a_refusal(rank: int) -> None:
    """Sums go over the dimension that divides, and so does the word: the other replica has made its step."""
    mesh = mesh_of(2, 2)
    for cls, kwargs in REFUSING:
        pair = Pair(
            lambda ps, cls=cls, kwargs=kwargs: cls(ps, max_grad_norm=0.5, **kwargs),  # type: ignore[misc]
            [Replicate(), Shard(0)],
            mesh=mesh,
        )
        pair.step(2)
        pair.give_grads(2)
        params = params_of(pair.sharded)
        before = [p.to_local().clone() for p in params]
        if rank < 2:
            pair.sharded.step()
        else:
            if rank == 3:
                params[0].grad._local_tensor = torch.ones(2, 2)
            words = "its gradient has shape" if rank == 3 else "another process has refused its step"
            with pytest.raises(RuntimeError, match=words):
                pair.sharded.step()
        for p, start in zip(params, before, strict=True):
            assert torch.equal(p.to_local(), start) == (rank > 1 or start.numel() == 0)


@case()
def a_scaler_and_a_clip_share_one_collective(rank: int) -> None:
    params = [Parameter(place(t, mesh_of(2), [Shard(0)])) for t in numbers(SHAPES, 1)]
    optimizer = fusedopt.AdamW(params, max_grad_norm=0.5)
    scaler = fusedopt.GradScaler("cpu", init_scale=4.0)
    scaler.scale(torch.zeros(()))
    for p, grad in zip(params, numbers(SHAPES, 2), strict=True):
        p.grad = place(grad, mesh_of(2), [Shard(0)])
    with counted_calls() as calls:
        scaler.step(optimizer)
        scaler.update()
    assert len(calls) == 1


@case()
def gradients_on_some_processes_only(rank: int) -> None:
    """All the same take part in the sum; none waits for another for ever."""
    pair = Pair(lambda ps: fusedopt.SGD(ps, lr=1.0, max_grad_norm=0.5), dtype=torch.float64)
    for clears in (False, True):
        pair.give_grads(0)
        mine = [p.grad.to_local().double() for p in params_of(pair.sharded)]
        squares = torch.stack([g.square().sum() for g in mine]).sum() * (rank == 0)
        torch.distributed.all_reduce(squares)
        if rank == 1:
            for p in params_of(pair.sharded):
                p.grad = None
        pair.sharded.step(zero_grad=clears)  # type: ignore[call-arg]
        torch.testing.assert_close(pair.sharded.grad_norm, squares.sqrt())  # type: ignore[attr-defined]
        assert_everywhere(pair.sharded.grad_norm)  # type: ignore[attr-defined]
        norm = fusedopt.clip_grad_norm_(params_of(pair.sharded), 1.0)
        assert_everywhere(whole(norm))


@case()
def infinities_and_nans_of_one_process_are_everybodys(rank: int) -> None:
    for bad, order in [(math.inf, 2.0), (math.nan, 2.0), (math.inf, math.inf), (math.nan, math.inf)]:
        pair = Pair(lambda ps: fusedopt.SGD(ps))
        pair.give_grads(0)
        if rank == 1:
            params_of(pair.sharded)[0].grad.to_local()[0, 0] = bad
        kept = params_of(pair.sharded)[1].grad.to_local().clone()
        with pytest.raises(RuntimeError, match=r"The total norm of order .* is non-finite"):
            fusedopt.clip_grad_norm_(params_of(pair.sharded), 1.0, order, error_if_nonfinite=True)
        assert_identical(params_of(pair.sharded)[1].grad.to_local(), kept)
        norm = whole(fusedopt.clip_grad_norm_(params_of(pair.sharded), 1.0, order))
        assert norm.isnan() if math.isnan(bad) else norm.isinf()
        assert_everywhere(norm)


@case()
def a_share_is_what_this_process_has(rank: int) -> None:
    pair = Pair(lambda ps: fusedopt.SGD(ps))
    pair.give_grads(0)
    for order in ORDERS:
        share = fusedopt.local_grad_norm(params_of(pair.sharded), order)
        mine = torch.cat([p.grad.to_local().flatten() for p in params_of(pair.sharded)]).double().abs()
        torch.testing.assert_close(share, mine.max() if order == math.inf else mine.pow(order).sum())


@case()
def gradients_that_are_sums_yet_to_be_made_are_measured_as_sums(rank: int) -> None:
    (grad,) = numbers([(6, 2)], 1)
    param = Parameter(place(torch.zeros(6, 2), mesh_of(2), [Replicate()]))
    other = Parameter(place(torch.zeros(6, 2), mesh_of(2), [Shard(0)]))
    param.grad = DTensor.from_local(grad * (rank + 1), mesh_of(2), [Partial()])
    other.grad = place(grad, mesh_of(2), [Shard(0)])
    optimizer = fusedopt.SGD([param, other], lr=1.0, max_grad_norm=0.5)
    optimizer.step()
    expected = torch.cat([3 * grad, grad]).norm()
    torch.testing.assert_close(optimizer.grad_norm, expected)
    coefficient = 0.5 / expected
    torch.testing.assert_close(whole(param.detach()), -3 * grad * coefficient)
    torch.testing.assert_close(whole(other.detach()), -grad * coefficient)


@case()
def grad_scalers(rank: int) -> None:
    """torch's and ours: one process's overflow skips the step everywhere."""
    for cls in (torch.amp.GradScaler, fusedopt.GradScaler):
        for kwargs in ({}, {"fused": True}, {"max_grad_norm": 0.5}):
            pair = Pair(lambda ps: fusedopt.SGD(ps, lr=1.0, **kwargs), shapes=[(4, 3)])  # noqa: B023
            scaler = cls("cpu", init_scale=4.0)
            scaler.scale(torch.zeros(()))
            for overflow in (False, True):
                pair.give_grads(0)
                p = params_of(pair.sharded)[0]
                before = whole(p.detach()).clone()
                if overflow and rank == 1:
                    p.grad.to_local()[0, 0] = math.inf
                p.grad = p.grad * 4
                scaler.step(pair.sharded)
                scaler.update()
                if overflow:
                    assert_identical(whole(p.detach()), before)
                else:
                    pair.whole.step()
                    pair.assert_same()
                    scaler = cls("cpu", init_scale=4.0)
                    scaler.scale(torch.zeros(()))
