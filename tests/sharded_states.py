"""What is kept of DTensors: options, files and conversions, to whoever looks DTensors of the param's placements."""

from __future__ import annotations

import copy
import io
import warnings
from typing import Any

import pytest
import torch
from options import OPTIONS
from ranks import case
from sharded import PLACEMENTS, Pair, mesh_of, numbers, place, whole
from support import assert_identical, params_of
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.nn import Parameter

import fusedopt

# The second has more than 4,096 elements for each process, and for each of them a last block that is not full.
LARGE = [(5, 7), (6, 1700), (), (9, 1000)]


def sharded_and_local(make: Any, dtype: torch.dtype, placements: Any = PLACEMENTS[0]) -> tuple[Any, Any]:
    """Optimizers over DTensors, and over ordinary tensors that are what this process has of them."""
    placed = [place(t, mesh_of(2), placements if t.dim() else [Replicate()]) for t in numbers(LARGE, 1, dtype)]
    return make([Parameter(t) for t in placed]), make([Parameter(t.to_local().clone()) for t in placed])


def step(sharded: Any, local: Any, count: int = 3, first: int = 0) -> None:
    for i in range(first, first + count):
        for p, q, grad in zip(
            params_of(sharded), params_of(local), numbers(LARGE, 50 + i, q_dtype(local)), strict=True
        ):
            p.grad = place(grad, mesh_of(2), p.placements)
            q.grad = p.grad.to_local().clone()
        sharded.step()
        local.step()


def q_dtype(optimizer: Any) -> torch.dtype:
    dtype: torch.dtype = params_of(optimizer)[0].dtype
    return dtype


def here(value: Any) -> Any:
    return value.to_local() if isinstance(value, DTensor) else value


def assert_local(sharded: Any, local: Any) -> None:
    for p, q in zip(params_of(sharded), params_of(local), strict=True):
        assert_identical(here(p.detach()), q)
        mine, its = sharded.state[p], local.state[q]
        assert list(mine) == list(its)
        for key in its:
            assert_identical(here(mine[key]), its[key])
            if isinstance(its[key], Tensor) and its[key].shape == q.shape and its[key].dtype != torch.int8 and q.dim():
                assert mine[key].placements == p.placements, key


@case()
def every_option_does_what_it_does_to_local_tensors(rank: int) -> None:
    """Blocks of codes are of a process's own elements; draws are by numbers in the whole, as those of the first are."""
    for options in OPTIONS:
        dtype = options.dtypes[0]
        kwargs = {**options.kwargs, **({"state_dtype": options.codes} if options.codes else {})}

        def make(params: Any, kwargs: Any = kwargs) -> Any:
            return fusedopt.AdamW(params, lr=0.01, **kwargs)

        for placements in [(Shard(0),), (Replicate(),)] if options.codes else [(Shard(0),)]:
            sharded, local = sharded_and_local(make, dtype, placements)
            step(sharded, local)
            if rank == 0 or not sharded._draws_at_all():
                assert_local(sharded, local)


@case()
def replicas_round_alike(rank: int) -> None:
    sharded, local = sharded_and_local(
        lambda ps: fusedopt.Lion(ps, lr=0.01, rounding="stochastic"), torch.bfloat16, [Replicate()]
    )
    step(sharded, local)
    for p in params_of(sharded):
        both = [torch.empty_like(p.to_local()) for _ in range(2)]
        torch.distributed.all_gather(both, p.to_local().contiguous())
        assert_identical(*both)


@case()
def a_file_has_numbers_and_goes_on_from_them(rank: int) -> None:
    """Codes, whose blocks are of one division into shards, are in it as float32, and come back as the same codes."""
    for kwargs in ({"state_dtype": "int8"}, {"state_dtype": {"exp_avg_sq": "float16", "exp_avg": "int4"}}):

        def make(params: Any, kwargs: Any = kwargs) -> Any:
            return fusedopt.AdamW(params, lr=0.01, ema_decay=0.5, **kwargs)

        sharded, local = sharded_and_local(make, torch.float32)
        step(sharded, local)
        file, its = copy.deepcopy(sharded.state_dict()), local.state_dict()
        for index, state in file["state"].items():
            p = params_of(sharded)[index]
            assert list(state) == ["step", "exp_avg", "exp_avg_sq", "ema"]
            for name in ("exp_avg", "exp_avg_sq", "ema"):
                assert (state[name].shape, state[name].placements) == (p.shape, p.placements)
                assert state[name].dtype == torch.float32
                if rank == 0 or not sharded._draws_at_all():
                    assert_identical(here(state[name]), its["state"][index][name])
        resumed = make([Parameter(p.detach().clone()) for p in params_of(sharded)])
        resumed.load_state_dict(file)
        before = {id(p): list(sharded.state[p]) for p in params_of(sharded)}
        for p, q in zip(params_of(sharded), params_of(resumed), strict=True):
            assert sorted(resumed.state[q]) == sorted(before[id(p)])
            for key, value in sharded.state[p].items():
                assert_identical(here(resumed.state[q][key]), here(value))
        step(sharded, local, first=3)
        step(resumed, local, first=3, count=0)
        for i in range(3, 6):
            for q, grad in zip(params_of(resumed), numbers(LARGE, 50 + i), strict=True):
                q.grad = place(grad, mesh_of(2), q.placements)
            resumed.step()
        for p, q in zip(params_of(sharded), params_of(resumed), strict=True):
            assert_identical(here(q.detach()), here(p.detach()))


@case()
def torchs_state_and_ours_are_each_others(rank: int) -> None:
    pair = Pair(lambda ps: fusedopt.AdamW(ps, lr=0.1))
    pair.step(2)
    theirs = torch.optim.AdamW(pair.params(True), lr=0.1)
    theirs.load_state_dict(copy.deepcopy(pair.sharded.state_dict()))
    for p, q in zip(params_of(theirs), params_of(pair.sharded), strict=True):
        p.data.copy_(q.data)
    pair.give_grads(2)
    for p, q in zip(params_of(theirs), params_of(pair.sharded), strict=True):
        p.grad = q.grad
    theirs.step()
    # replace() takes over the state that torch's step has made, and steps on.
    ours = fusedopt.replace(theirs)
    pair.step(1, first=2)
    for i in range(3, 5):
        pair.give_grads(i)
        for p, q in zip(params_of(ours), params_of(pair.sharded), strict=True):
            p.grad = q.grad
        ours.step()
        pair.sharded.step()
    for p, q in zip(params_of(ours), params_of(pair.sharded), strict=True):
        torch.testing.assert_close(p.to_local(), q.to_local())
        assert list(ours.state[p]) == list(pair.sharded.state[q])


@case()
def another_options_file_is_converted(rank: int) -> None:
    """A master to a lower half, and back to nothing, as for ordinary params."""

    def made(**kwargs: Any) -> Any:
        return sharded_and_local(lambda ps: fusedopt.AdamW(ps, lr=0.01, **kwargs), torch.bfloat16)

    sharded, local = made(master_weights="float32")
    step(sharded, local)
    for other in ({"master_weights": "remainder"}, {"rounding": "kahan"}, {"state_dtype": "int8"}, {}):
        converted = made(**other)
        for mine, saved in zip(converted, (sharded, local), strict=True):
            for p, q in zip(params_of(mine), params_of(saved), strict=True):
                p.data.copy_(q.data)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of what is lost
                mine.load_state_dict(saved.state_dict())
        for p in params_of(converted[0]):
            placed = [v.placements == p.placements for v in converted[0].state[p].values() if isinstance(v, DTensor)]
            assert len(placed) >= (0 if "state_dtype" in other else 2)
            assert all(placed)
        step(*converted)
        assert_local(*converted)


@case()
def a_whole_state_for_a_shard_is_refused(rank: int) -> None:
    (t,) = numbers([(8, 1024)], 1)
    optimizer = fusedopt.AdamW([Parameter(place(t, mesh_of(2), [Shard(0)]))], state_dtype="int8")
    file = fusedopt.AdamW([Parameter(t)])
    t.grad = None
    params_of(file)[0].grad = t.clone()
    file.step()
    with pytest.raises(ValueError, match="the state 'exp_avg' of a param that is a DTensor is a whole tensor"):
        optimizer.load_state_dict(file.state_dict())
    assert not optimizer.state


@case()
def averages_in_the_params_place(rank: int) -> None:
    pair = Pair(lambda ps: fusedopt.AdamW(ps, lr=0.1, ema_decay=0.5))
    pair.step()
    before = [p.to_local().clone() for p in params_of(pair.sharded)]
    with pair.sharded.ema_parameters(), pair.whole.ema_parameters():  # type: ignore[attr-defined]
        for p, q, start in zip(params_of(pair.sharded), params_of(pair.whole), before, strict=True):
            assert_identical(whole(p.detach()), q)
            assert start.numel() == 0 or not torch.equal(p.to_local(), start)
    for p, start in zip(params_of(pair.sharded), before, strict=True):
        assert_identical(p.to_local(), start)


@case()
def copies_in_fewer_bits(rank: int) -> None:
    pair = Pair(lambda ps: fusedopt.AdamW(ps, lr=0.1))
    copies = [{p: p.detach().bfloat16() for p in params_of(optimizer)} for optimizer in (pair.sharded, pair.whole)]
    for optimizer, its in zip((pair.sharded, pair.whole), copies, strict=True):
        optimizer.copy_params_to(its)  # type: ignore[attr-defined]
    pair.step()
    pair.assert_same()
    for mine, its in zip(copies[0].values(), copies[1].values(), strict=True):
        assert_identical(whole(mine), its)


@case()
def a_copied_optimizer_has_states_of_its_own(rank: int) -> None:
    pair = Pair(lambda ps: fusedopt.AdamW(ps, lr=0.1))
    pair.step()
    file = copy.deepcopy(pair.sharded.state_dict())
    kept = [here(state["exp_avg"]).clone() for state in file["state"].values()]
    pair.step(2, first=3)
    for state, value in zip(file["state"].values(), kept, strict=True):
        assert_identical(here(state["exp_avg"]), value)
    pair.assert_same()
    buffer = io.BytesIO()
    torch.save(file, buffer)
    assert buffer.tell() > 0
