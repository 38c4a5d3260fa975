"""Shards on two devices, which the emulator plays: the steps of the CPU engine in two processes, to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from cases import CASES
from ranks import case
from sharded import Pair, counted_calls, place, whole
from sharded_draws import DRAWING
from support import assert_identical, params_of
from torch.distributed.tensor import Shard

import fusedopt

SHAPES = [(10, 3), (1,), (70, 64), (5, 4, 2)]
# What its groups keep, and its factors, are made where the CPU steps.
ON_THE_CPU_ALONE = {"Prodigy": fusedopt.Prodigy, "Adafactor": fusedopt.Adafactor}
SUMMING = [c for c in CASES if not c.elementwise and c.optimizer not in ON_THE_CPU_ALONE]


def emulated() -> bool:
    from fusedopt import _C

    return bool(_C.cuda_built_for() == "emulated")


def pairs() -> dict[str, Pair]:
    """Of every rule with sums, and of what rounds by chance."""
    made: dict[str, Pair] = {}
    for one in SUMMING:
        made[one.name] = Pair(one.ours, shapes=SHAPES)
        made[f"{one.name}, some of them plain"] = Pair(one.ours, shapes=SHAPES, plain=[0, 2])
    made["columns"] = Pair(lambda ps: fusedopt.LAMB(ps, lr=0.1), [Shard(1)], [(10, 3), (5, 4, 2), (1, 1)])
    for one in DRAWING:
        for dtype in one.dtypes:
            make: Any = lambda ps, its=one.kwargs: fusedopt.AdamW(ps, lr=0.01, **its)  # noqa: E731
            made[f"{one.name}, {dtype}"] = Pair(make, shapes=[*SHAPES, (3, 1700)], dtype=dtype)
            made[f"{one.name}, {dtype}, columns"] = Pair(make, [Shard(1)], [(10, 3), (37, 259)], dtype=dtype)
            lamb: Any = lambda ps, its=one.kwargs: fusedopt.LAMB(ps, lr=0.01, **its)  # noqa: E731
            made[f"{one.name}, {dtype}, LAMB"] = Pair(lamb, shapes=SHAPES, dtype=dtype)
    return made


@case()
def steps_on_devices(rank: int) -> None:
    """One all-reduce a step; what they come to is left in a file, for a comparison."""
    ends: dict[str, Any] = {}
    for name, pair in pairs().items():
        sums = any(name.startswith(one.name) for one in SUMMING) or "LAMB" in name or name == "columns"
        with counted_calls() as calls:
            pair.step()
        assert len(calls) == 3 * sums, name
        if not sums:
            pair.assert_same()
        ends[name] = [
            [p.detach() if not hasattr(p, "to_local") else p.to_local().detach(), *_states(pair.sharded.state[p])]
            for p in params_of(pair.sharded)
        ]
    torch.save(ends, Path(f"{'emulated' if emulated() else 'cpu'}-{rank}"))


def _states(state: dict[str, Any]) -> list[torch.Tensor]:
    return [value.to_local() if hasattr(value, "to_local") else value for value in state.values()]


@case()
def refusals_on_devices(rank: int) -> None:
    """Together, with nothing written: counters, which a kernel has advanced by then, are as they were."""
    for cls in (fusedopt.LAMB, fusedopt.NovoGrad):
        pair = Pair(lambda ps, cls=cls: cls(ps, lr=0.1, ema_decay=0.5), shapes=SHAPES)
        pair.step(1)
        pair.give_grads(1)
        before = [
            [value.clone() for value in (p.to_local(), *_states(pair.sharded.state[p]))]
            for p in params_of(pair.sharded)
        ]
        p = params_of(pair.sharded)[0]
        grad = p.grad
        if rank == 1:
            p.grad = place(torch.zeros(10, 3), pair.mesh, [Shard(0)])
            p.grad._local_tensor = p.grad._local_tensor[:, :2]
        words = "its gradient has shape" if rank == 1 else "another process has refused its step, for a reason that it"
        with pytest.raises(RuntimeError, match=words):
            pair.sharded.step()
        for param, start in zip(params_of(pair.sharded), before, strict=True):
            assert_identical([param.to_local().detach(), *_states(pair.sharded.state[param])], start)
        p.grad = grad
        pair.sharded.step()
        pair.whole.step()
        for param, q in zip(params_of(pair.sharded), params_of(pair.whole), strict=True):
            torch.testing.assert_close(whole(param.detach()), q.detach(), rtol=1e-6, atol=1e-7)


@case()
def a_device_without_gradients_has_part_in_the_sums(rank: int) -> None:
    pair = Pair(lambda ps: fusedopt.LAMB(ps, lr=0.1), shapes=SHAPES)
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
def what_devices_cannot_add_up_is_refused(rank: int) -> None:
    for name, cls in ON_THE_CPU_ALONE.items():
        pair = Pair(lambda ps, cls=cls: cls(ps, lr=0.1), shapes=SHAPES)
        pair.give_grads(0)
        before = [p.to_local().clone() for p in params_of(pair.sharded)]
        if not emulated():
            continue
        with pytest.raises(
            RuntimeError, match="which it does on the CPU alone; replicate it, or use an optimizer that"
        ):
            pair.sharded.step()
        assert not pair.sharded.state, name
        for p, start in zip(params_of(pair.sharded), before, strict=True):
            assert_identical(p.to_local(), start)
