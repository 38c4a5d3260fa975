"""Rules that add up over a whole tensor: what a process has all of they step, and of shards they say what to do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import CASES
from ranks import case
from sharded import Pair, mesh_of, numbers, place, whole
from support import assert_identical, params_of, stands
from torch.distributed.tensor import Replicate, Shard
from torch.nn import Parameter

import fusedopt

SUMMING = [c for c in CASES if c.optimizer in ("LAMB", "LARS")]
REMEDY = (
    r"its rule adds up over a whole tensor, of which this process has a shard; replicate it, or use an optimizer that "
    "works element by element, as AdamW does"
)


@case()
def whole_tensors_are_stepped(rank: int) -> None:
    for one in SUMMING:
        pair = Pair(one.ours, [Replicate()])
        pair.step()
        pair.assert_same()
    for options in ({}, {"master_weights": "float32", "ema_decay": 0.5}):
        dtype = torch.bfloat16 if options else torch.float32
        for cls in (fusedopt.Adafactor, fusedopt.Muon):
            shapes = [(10, 3), (3, 10)] if cls is fusedopt.Muon else [(10, 3), (7,), (5, 4, 2)]

            def make(params: Any, cls: Any = cls, options: Any = options) -> Any:
                return cls(params, lr=0.1, **options)

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


@case()
def shards_are_refused_by_name(rank: int) -> None:
    makes: list[Any] = [*(c.ours for c in SUMMING), lambda ps: fusedopt.Adafactor(ps)]
    for make in makes:
        pair = Pair(make, plain=[0])
        pair.give_grads(0)
        before = [whole(p.detach()).clone() for p in params_of(pair.sharded)]
        name = type(pair.sharded).__name__
        with pytest.raises(RuntimeError, match=f"param 1 of group 0 is no param that {name} can step: {REMEDY}"):
            pair.sharded.step()
        for p, start in zip(params_of(pair.sharded), before, strict=True):
            assert_identical(whole(p.detach()), start)
        assert not pair.sharded.state


@case()
def shards_of_muon_take_torchs_step(rank: int) -> None:
    """Which multiplies them as DTensors; what it rounds to bfloat16 on the way is divided otherwise."""
    shapes = [(10, 3), (16, 16)]
    pair = Pair(lambda ps: fusedopt.Muon(ps, lr=0.1), shapes=shapes)
    pair.step(1)
    for p, q in zip(params_of(pair.sharded), params_of(pair.whole), strict=True):
        torch.testing.assert_close(whole(p.detach()), q.detach(), rtol=0, atol=0.01)
        assert pair.sharded.state[p]["momentum_buffer"].placements == p.placements
    refused = Pair(lambda ps: fusedopt.Muon(ps, lr=0.1, ema_decay=0.5), shapes=shapes)
    with pytest.raises(RuntimeError, match=f"param 0 of group 0: {REMEDY}. torch's own step, which would take it"):
        refused.step(1)


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
