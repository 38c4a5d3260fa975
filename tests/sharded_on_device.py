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
SUMMING = [c for c in CASES if not c.elementwise]


def emulated() -> bool:
    from fusedopt import _C

    return bool(_C.cuda_built_for() == "emulated")


def pairs() -> dict[str, tuple[Pair, int]]:
    """Of every rule with sums, Adafactor, Muon and what rounds by chance; and how many all-reduces a step of it is."""
    made: dict[str, tuple[Pair, int]] = {}
    for one in SUMMING:
        made[one.name] = Pair(one.ours, shapes=SHAPES), 1
        made[f"{one.name}, some of them plain"] = Pair(one.ours, shapes=SHAPES, plain=[0, 2]), 1
    made["columns"] = Pair(lambda ps: fusedopt.LAMB(ps, lr=0.1), [Shard(1)], [(10, 3), (5, 4, 2), (1, 1)]), 1
    # Where a process has nothing of any, it has what its rule remembers of all.
    novograd: Any = lambda ps: fusedopt.NovoGrad(ps, lr=0.1)  # noqa: E731
    made["NovoGrad, shards without elements"] = Pair(novograd, shapes=[(1,), (1, 4)]), 1
    for one in DRAWING:
        for dtype in one.dtypes:
            make: Any = lambda ps, its=one.kwargs: fusedopt.AdamW(ps, lr=0.01, **its)  # noqa: E731
            made[f"{one.name}, {dtype}"] = Pair(make, shapes=[*SHAPES, (3, 1700)], dtype=dtype), 0
            made[f"{one.name}, {dtype}, columns"] = Pair(make, [Shard(1)], [(10, 3), (37, 259)], dtype=dtype), 0
            lamb: Any = lambda ps, its=one.kwargs: fusedopt.LAMB(ps, lr=0.01, **its)  # noqa: E731
            made[f"{one.name}, {dtype}, LAMB"] = Pair(lamb, shapes=SHAPES, dtype=dtype), 1
    if "Muon" in fusedopt.__all__:
        muon: Any = lambda ps: fusedopt.Muon(ps, lr=0.1)  # noqa: E731
        made["Muon"] = Pair(muon, shapes=[(10, 3), (3, 10), (10, 3)]), 0
        # Where a process has nothing of any, it has nothing to multiply either.
        made["Muon, shards without elements"] = Pair(muon, shapes=[(1, 4), (1, 7)]), 0
    return made | {f"Adafactor, {name}": (pair, 2) for name, pair in factored().items()}


def factored() -> dict[str, Pair]:
    """Several chunks to a row and blocks to a column, vectors, empty shards, ordinary params, and options."""

    def pair(*args: Any, dtype: torch.dtype = torch.float32, plain: Any = (), **kwargs: Any) -> Pair:
        return Pair(lambda ps: fusedopt.Adafactor(ps, lr=0.05, **kwargs), *args, dtype=dtype, plain=plain)

    shapes = [(10, 3), (150, 1100), (6, 1), (5, 4, 2), (3, 2, 4, 5), (7,), (1,), (2500,), (0, 4)]
    rows: list[Any] = [Shard(0)]
    small, half = shapes[:1] + shapes[3:7], torch.bfloat16
    return {
        "rows": pair(rows, shapes),
        "some of them plain": pair(rows, shapes, plain=[1, 5]),
        "columns": pair([Shard(1)], [(10, 3), (150, 2300), (1, 1), (5, 4, 2)]),
        "columns of a batch": pair([Shard(2)], [(5, 4, 3), (3, 2, 5, 2)]),
        "master": pair(rows, small, dtype=half, master_weights="float32", ema_decay=0.5),
        "kahan": pair(rows, small, dtype=half, rounding="kahan"),
        "by chance": pair(rows, [*small, (150, 300)], dtype=half, rounding="stochastic"),
        "by chance, columns": pair([Shard(1)], [(10, 3), (37, 259)], dtype=half, rounding="stochastic"),
        "float64": pair(rows, small, dtype=torch.float64, weight_decay=0.1, maximize=True),
        "relative": pair(rows, small, scale_parameter=False, relative_step=True, warmup_init=True),
        "clipped": pair(rows, small, max_grad_norm=0.5),
    }


@case()
def steps_on_devices(rank: int) -> None:
    """One all-reduce a step, or two; what they come to is left in a file, for a comparison."""
    ends: dict[str, Any] = {}
    for name, (pair, collectives) in pairs().items():
        with counted_calls() as calls:
            pair.step()
        # A norm on a device is made before the step.
        assert len(calls) == 3 * (collectives + (name == "Adafactor, clipped")), name
        if not collectives:
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
    for cls in (fusedopt.LAMB, fusedopt.NovoGrad, fusedopt.Prodigy, fusedopt.Adafactor):
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
def a_distance_of_processes_without_gradients(rank: int) -> None:
    """Prodigy's distance is of all params: who has no gradient in a step hears of it, before its first and after."""
    told = []
    for plain, having in [([], [[], [0, 1, 2, 3], [], [1], []]), ([3], [[3], [0, 1, 2, 3], [3], [1, 3]])]:
        pair = Pair(lambda ps: fusedopt.Prodigy(ps, d0=1e-2), shapes=SHAPES, plain=plain)
        for i, here in enumerate(having):
            pair.give_grads(i)
            for k, p in enumerate(params_of(pair.sharded)):
                if rank == 1 and k not in here:
                    p.grad = None
            pair.sharded.step()
            group = pair.sharded.param_groups[0]
            told.append(torch.tensor([float(group[key]) for key in ("d", "d_max", "d_numerator", "k")]))
            assert told[-1][3] == i + 1
            everyone = [torch.empty(4) for _ in range(2)]
            torch.distributed.all_gather(everyone, told[-1])
            assert_identical(everyone[0], everyone[1])
    torch.save({"distances": told}, Path(f"{'emulated' if emulated() else 'cpu'}-distance-{rank}"))
