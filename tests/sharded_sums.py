"""Rules that add up over a whole tensor: one all-reduce for all params, or of shards they say what to do."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from cases import CASES
from ranks import case
from sharded import Pair, counted_calls, mesh_of, numbers, place, require_muon, whole
from support import assert_identical, params_of, stands
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate, Shard
from torch.nn import Parameter

import fusedopt

SUMMING = [c for c in CASES if not c.elementwise]


@case()
def whole_tensors_are_stepped(rank: int) -> None:
    for one in SUMMING:
        pair = Pair(one.ours, [Replicate()])
        pair.step()
        pair.assert_same()
    for options in ({}, {"master_weights": "float32", "ema_decay": 0.5}):
        dtype = torch.bfloat16 if options else torch.float32
        for name in [name for name in ("Adafactor", "Muon") if name in fusedopt.__all__]:
            shapes = [(10, 3), (3, 10)] if name == "Muon" else [(10, 3), (7,), (5, 4, 2)]

            def make(params: Any, name: str = name, options: Any = options) -> Any:
                return getattr(fusedopt, name)(params, lr=0.1, **options)

            pair = Pair(make, [Replicate()], shapes, dtype=dtype)
            pair.step()
            pair.assert_same()


@case(ranks=4)
def one_process_in_each_dimension_that_divides(rank: int) -> None:
    """A mesh of 1 by 4, divided in the first dimension alone."""
    for make in (lambda ps: fusedopt.LAMB(ps, lr=0.1), lambda ps: fusedopt.Adafactor(ps, lr=0.1)):
        pair = Pair(make, [Shard(0), Replicate()], mesh=mesh_of(1, 4))
        pair.step()
        for p, q in zip(params_of(pair.sharded), params_of(pair.whole), strict=True):
            assert_identical(whole(p.detach()), q)


def assert_one_rounding(pair: Pair) -> None:
    """What a norm's last bit does to a step, and on every process the same."""
    for p, q in zip(params_of(pair.sharded), params_of(pair.whole), strict=True):
        torch.testing.assert_close(whole(p.detach()), q.detach(), rtol=1e-6, atol=1e-7)
        assert list(pair.sharded.state.get(p, {})) == list(pair.whole.state.get(q, {}))
        # What no norm enters has the bits.
        for key, value in pair.whole.state.get(q, {}).items():
            torch.testing.assert_close(whole(pair.sharded.state[p][key]), value, rtol=1e-6, atol=1e-7)


@case()
def shards_are_added_up_once_a_step(rank: int) -> None:
    """Whatever the number of params; those that are ordinary or repeated have no part in it."""
    for one in SUMMING:
        for plain in ([], [0, 2]):
            pair = Pair(one.ours, plain=plain)
            with counted_calls() as calls:
                pair.step()
            assert len(calls) == 3
            assert_one_rounding(pair)
    pair = Pair(lambda ps: fusedopt.LAMB(ps, lr=0.1), [Shard(1)], [(10, 3), (5, 4, 2), (1, 1)])
    pair.step()
    assert_one_rounding(pair)
    one_process = Pair(lambda ps: fusedopt.LAMB(ps, lr=0.1), [Replicate()])
    with counted_calls() as calls:
        one_process.step()
    assert not calls
    one_process.assert_same()


@case()
def options_with_sums_over_shards(rank: int) -> None:
    """Also a clipped norm, which is an all-reduce before, and codes, whose blocks are a process's own."""
    for dtype, kwargs in [
        (torch.bfloat16, {"master_weights": "float32", "ema_decay": 0.5}),
        (torch.bfloat16, {"rounding": "kahan"}),
        (torch.float32, {"max_grad_norm": 0.5}),
        (torch.float64, {}),
    ]:

        def make(params: Any, kwargs: Any = kwargs) -> Any:
            return fusedopt.LAMB(params, lr=0.01, **kwargs)

        pair = Pair(make, dtype=dtype)
        with counted_calls() as calls:
            pair.step()
        assert len(calls) == 3 + 3 * ("max_grad_norm" in kwargs)
        assert_one_rounding(pair)
    coded = Pair(lambda ps: fusedopt.LAMB(ps, lr=0.01, state_dtype="int8"), shapes=[(64, 256)])
    coded.step()
    for p, q in zip(params_of(coded.sharded), params_of(coded.whole), strict=True):
        torch.testing.assert_close(whole(p.detach()), q.detach(), rtol=1e-6, atol=1e-7)


@case(ranks=4)
def sums_over_meshes_of_two_dimensions(rank: int) -> None:
    """One all-reduce for each dimension that divides; uneven and empty shards; a process's replicas count once."""
    mesh, shapes = mesh_of(2, 2), [(10, 3), (5, 4, 2), (1, 1)]
    for placements, reductions in [
        ([Shard(0), Shard(1)], 2),
        ([Shard(0), Shard(0)], 2),
        ([Replicate(), Shard(0)], 1),
        ([Shard(0), Replicate()], 1),
    ]:
        pair = Pair(lambda ps: fusedopt.LAMB(ps, lr=0.1), placements, shapes, mesh=mesh)
        with counted_calls() as calls:
            pair.step()
        assert len(calls) == 3 * reductions
        assert_one_rounding(pair)
        for d, placement in enumerate(placements):
            for p in params_of(pair.sharded) if placement == Replicate() else ():
                both = [torch.empty_like(p.to_local()) for _ in range(2)]
                torch.distributed.all_gather(both, p.to_local().contiguous(), group=mesh.get_group(d))
                assert_identical(*both)
    pair = Pair(lambda ps: fusedopt.LARS(ps, lr=0.1, momentum=0.9), shapes=[(3, 10), (3,), (1,)])
    pair.step()
    assert_one_rounding(pair)
    assert params_of(pair.sharded)[2].to_local().numel() == (rank == 0)


@case(ranks=4)
def sums_over_several_meshes(rank: int) -> None:
    """Each mesh adds up its own; params of one mesh may be divided differently."""
    two = mesh_of(2, 2)
    of = [
        (two, [Shard(0), Replicate()]),
        (two, [Replicate(), Shard(1)]),
        (mesh_of(4), [Shard(0)]),
        (two, [Shard(1)] * 2),
    ]
    values, grads = numbers([(9, 4)] * len(of), 1), numbers([(9, 4)] * len(of), 2)
    params = [Parameter(place(t, *its)) for t, its in zip(values, of, strict=True)]
    others = [Parameter(t.clone()) for t in values]
    for p, q, grad, its in zip(params, others, grads, of, strict=True):
        p.grad, q.grad = place(grad, *its), grad
    for its in (params, others):
        fusedopt.LAMB(its, lr=0.1).step()
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(whole(p.detach()), q.detach(), rtol=1e-6, atol=1e-7)


@case()
def a_process_without_gradients_has_part_in_the_sums(rank: int) -> None:
    pair = Pair(lambda ps: fusedopt.LAMB(ps, lr=0.1))
    pair.step(1)
    before = [p.to_local().clone() for p in params_of(pair.sharded)]
    pair.give_grads(1)
    if rank == 1:
        for p in params_of(pair.sharded):
            p.grad = None
    pair.sharded.step()
    for p, start in zip(params_of(pair.sharded), before, strict=True):
        assert torch.equal(p.to_local(), start) == (rank == 1 or start.numel() == 0)


@case()
def groups_that_need_no_sums_have_no_part_in_them(rank: int) -> None:
    """They are stepped to the bit, also where a process has no gradients in those that need them."""

    def make(params: Any) -> Any:
        return fusedopt.AdamW([{"params": params[:1]}, {"params": params[1:], "caution": True}], lr=0.1)

    pair = Pair(make)
    with counted_calls() as calls:
        pair.step()
    assert len(calls) == 3
    plain, its = (params_of(optimizer)[0] for optimizer in (pair.sharded, pair.whole))
    assert_identical(whole(plain.detach()), its)
    pair.give_grads(3)
    before = [p.to_local().clone() for p in params_of(pair.sharded)]
    if rank == 1:
        for p in params_of(pair.sharded)[1:]:
            p.grad = None
    pair.sharded.step()
    pair.whole.step()
    assert_identical(whole(plain.detach()), its)
    for p, start in zip(params_of(pair.sharded)[1:], before[1:], strict=True):
        assert torch.equal(p.to_local(), start) == (rank == 1 or start.numel() == 0)


@case()
def a_process_that_refuses_its_step_says_so_to_the_others(rank: int) -> None:
    """None of them waits, nothing is written anywhere, and the next step is one."""
    pair = Pair(lambda ps: fusedopt.LAMB(ps, lr=0.1, ema_decay=0.5))
    for first in (True, False):
        pair.give_grads(0)
        before = [p.to_local().clone() for p in params_of(pair.sharded)]
        p = params_of(pair.sharded)[0]
        grad = p.grad
        if rank == 1:
            p.grad = place(torch.zeros(10, 3), pair.mesh, [Shard(0)])
            p.grad._local_tensor = p.grad._local_tensor[:, :2]
        words = "its gradient has shape" if rank == 1 else "another process has refused its step, for a reason that it"
        with pytest.raises(RuntimeError, match=words):
            pair.sharded.step()
        assert bool(pair.sharded.state) == (not first)
        for param, start in zip(params_of(pair.sharded), before, strict=True):
            assert_identical(param.to_local(), start)
        p.grad = grad
        pair.sharded.step()
        pair.whole.step()
        assert_one_rounding(pair)


@case()
def what_fails_on_the_way_to_a_sum_does_not_leave_it_out_of_the_next_step(rank: int) -> None:
    makes: list[Any] = [lambda ps: fusedopt.LAMB(ps, lr=0.1), lambda ps: fusedopt.SGD(ps, lr=0.1, max_grad_norm=0.5)]
    for make in makes:
        pair = Pair(make)
        pair.give_grads(0)
        size: Any = DeviceMesh.size

        def fails(*_: Any) -> int:
            raise RuntimeError("of no size")

        DeviceMesh.size = fails  # type: ignore[method-assign]
        try:
            with pytest.raises(RuntimeError, match="of no size"):
                pair.sharded.step()
        finally:
            DeviceMesh.size = size  # type: ignore[method-assign]
        pair.step()
        assert_one_rounding(pair)


@case()
def a_shard_that_is_listed_twice_is_refused(rank: int) -> None:
    (t,) = numbers([(10, 3)], 1)
    p = Parameter(place(t, mesh_of(2), [Shard(0)]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer = fusedopt.LAMB([p, p])
    p.grad = place(t, mesh_of(2), [Shard(0)])
    with pytest.raises(RuntimeError, match="once a step, and it is in the list twice; list it once"):
        optimizer.step()
    assert not optimizer.state


GATHER = "all_gather_single" if hasattr(torch.distributed, "all_gather_single") else "all_gather_into_tensor"
MATRICES = [(10, 3), (16, 16), (3, 10), (16, 16), (1, 5)]


@case()
def muon_gathers_its_matrices_at_once(rank: int) -> None:
    """One all-gather a step for all of them, divided by rows or by columns, and the bits of the run on whole ones."""
    require_muon()
    for placements in ([Shard(0)], [Shard(1)]):
        for dtype, kwargs in [
            (torch.float32, {}),
            (torch.float32, {"nesterov": False, "max_grad_norm": 0.5}),
            (torch.bfloat16, {"master_weights": "float32", "ema_decay": 0.5}),
            (torch.bfloat16, {"rounding": "kahan"}),
        ]:

            def make(params: Any, kwargs: Any = kwargs) -> Any:
                return fusedopt.Muon(params, lr=0.1, **kwargs)

            pair = Pair(make, placements, MATRICES, dtype=dtype)
            with counted_calls(GATHER) as calls:
                pair.step()
            assert len(calls) == 3
            if "max_grad_norm" in kwargs:
                for p, q in zip(params_of(pair.sharded), params_of(pair.whole), strict=True):
                    torch.testing.assert_close(whole(p.detach()), q.detach(), rtol=0, atol=1e-2)
                continue
            pair.assert_same()
    plain = Pair(lambda ps: fusedopt.Muon(ps, lr=0.1), shapes=MATRICES, plain=[1, 2])
    plain.step()
    plain.assert_same()


@case()
def codes_of_momentum_on_shards(rank: int) -> None:
    """Blocks are a process's own: they are those of the whole where a part is whole blocks."""
    require_muon()
    pair = Pair(lambda ps: fusedopt.Muon(ps, lr=0.1, state_dtype="int8"), shapes=[(64, 256)])
    pair.step()
    for p, q in zip(params_of(pair.sharded), params_of(pair.whole), strict=True):
        assert_identical(whole(p.detach()), q.detach())


@case(ranks=4)
def muon_on_meshes_of_two_dimensions(rank: int) -> None:
    """What one dimension divides goes together; what both divide takes a gather each, of torch's."""
    require_muon()
    mesh = mesh_of(2, 2)
    for placements, gathers in [
        ([Replicate(), Shard(0)], 3),
        ([Shard(1), Replicate()], 3),
        ([Shard(0), Shard(1)], 0),
        ([Shard(0), Shard(0)], 0),
    ]:
        pair = Pair(lambda ps: fusedopt.Muon(ps, lr=0.1), placements, MATRICES, mesh=mesh)
        with counted_calls(GATHER) as calls:
            pair.step()
        assert len(calls) == gathers
        pair.assert_same()
    # Of three rows the last of four processes has none.
    pair = Pair(lambda ps: fusedopt.Muon(ps, lr=0.1), shapes=[(3, 10), (8, 8)])
    pair.step()
    pair.assert_same()


@case()
def muon_refuses_together_too(rank: int) -> None:
    require_muon()
    pair = Pair(lambda ps: fusedopt.Muon(ps, lr=0.1, ema_decay=0.5), shapes=MATRICES)
    pair.give_grads(0)
    before = [p.to_local().clone() for p in params_of(pair.sharded)]
    p = params_of(pair.sharded)[0]
    if rank == 1:
        p.grad._local_tensor = p.grad._local_tensor[:, :2]
    words = "its gradient has shape" if rank == 1 else "another process has refused its step, for a reason that it"
    with pytest.raises(RuntimeError, match=words):
        pair.sharded.step()
    for param, start in zip(params_of(pair.sharded), before, strict=True):
        assert_identical(param.to_local(), start)
    # A process without gradients sends zeros in their place, and waits for nobody.
    pair.give_grads(1)
    if rank == 1:
        for param in params_of(pair.sharded):
            param.grad = None
    pair.sharded.step()


@case()
def torchs_adafactor_takes_a_shards_norm_for_the_wholes(rank: int) -> None:
    """Defect o of docs/compatibility.md, which takes two processes to see; in matrices it raises."""
    ends = []
    for sharded in (True, False):
        t, grad = numbers([(7,), (7,)], 1)
        p: Any = Parameter(place(t, mesh_of(2), [Shard(0)]) if sharded else t.clone())
        p.grad = place(grad, mesh_of(2), [Shard(0)]) if sharded else grad
        torch.optim.Adafactor([p]).step()
        ends.append(whole(p.detach()))
    if stands("o") is not None:
        assert stands("o") != torch.allclose(*ends)
