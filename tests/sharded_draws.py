"""What rounds by chance draws by an element's number in the whole, so that any division of it draws the same."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from options import OPTIONS
from ranks import case
from sharded import OF_2_6, Pair, mesh_of, numbers, place, require_muon, whole
from sharded_files import FLAT, Runs, assert_resumes, save
from support import params_of
from torch import nn
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.nn import Parameter
from torch.optim import Optimizer

import fusedopt

# More than a block of draws, sizes that no number of processes divides, and shards that begin within a block.
SHAPES: tuple[tuple[int, ...], ...] = ((10, 3), (3, 1700), (1,), (5, 40, 30), (37, 259))
# Codes are of a process's own blocks, and another division has others.
DRAWING = [o for o in OPTIONS if not o.codes and o.name in ("stochastic", "bfloat16-state", "float16-state")]
DRAWING += [o for o in OPTIONS if o.name == "stochastic-average"]
BY_CHANCE: dict[str, Any] = {"lr": 0.01, "rounding": "stochastic"}
MATRICES = [(24, 40), (33, 7)]


def assert_same_draws(
    mesh: Any, placements: Any, shapes: Any = SHAPES, optimizer: Any = fusedopt.AdamW, options: Any = None
) -> None:
    for one in DRAWING if options is None else options:
        for dtype in one.dtypes:
            pair = Pair(
                lambda ps, one=one: optimizer(ps, lr=0.01, **one.kwargs), placements, shapes, mesh=mesh, dtype=dtype
            )
            pair.step()
            pair.assert_same()


@case()
def two_processes_draw_as_one(rank: int) -> None:
    assert_same_draws(mesh_of(2), [Shard(0)])
    assert_same_draws(mesh_of(2), [Replicate()])
    many = [shape for shape in SHAPES if len(shape) > 1]
    assert_same_draws(mesh_of(2), [Shard(1)], many)


@case(ranks=4)
def four_processes_draw_as_one(rank: int) -> None:
    assert_same_draws(mesh_of(4), [Shard(0)])
    many = [shape for shape in SHAPES if len(shape) > 1]
    for placements in ([Shard(0), Shard(1)], [Shard(1), Shard(0)], [Shard(0), Shard(0)], [Replicate(), Shard(1)]):
        assert_same_draws(mesh_of(2, 2), placements, many)
    three = [(5, 40, 30), (4, 7, 3)]
    for placements in ([Shard(1), Shard(2)], [Shard(2), Shard(0)], [Shard(2), Shard(2)]):
        assert_same_draws(mesh_of(2, 2), placements, three)


@case(ranks=4)
def strided_shards_draw_as_one(rank: int) -> None:
    """FSDP2 over tensor parallel, which divides a dimension twice, the inner mesh dimension first."""
    from torch.distributed.tensor.placement_types import _StridedShard

    for shape in [(16, 5), (24, 300)]:
        for inner in [Shard(0)] if OF_2_6 else [Shard(0), Shard(1)]:
            placements = [_StridedShard(0, split_factor=2), inner]
            assert_same_draws(mesh_of(2, 2), placements, [shape], options=DRAWING[:1])


@case()
def products_of_wholes_draw_as_one(rank: int) -> None:
    require_muon()
    for placements in ([Shard(0)], [Shard(1)]):
        pair = Pair(lambda ps: fusedopt.Muon(ps, **BY_CHANCE), placements, MATRICES, dtype=torch.bfloat16)
        pair.step()
        pair.assert_same()


@case()
def rules_of_several_passes_draw_as_one(rank: int) -> None:
    """What Adafactor and LAMB sum is the whole's but for a rounding, and so draws are."""
    for placements in ([Shard(0)], [Shard(1)]):
        for optimizer in (fusedopt.Adafactor, fusedopt.LAMB):
            pair = Pair(lambda ps, its=optimizer: its(ps, **BY_CHANCE), placements, MATRICES, dtype=torch.bfloat16)
            pair.step()
            for p, q in zip(params_of(pair.sharded), params_of(pair.whole), strict=True):
                # By a process's own elements a half of them would differ by a unit of the last place.
                assert (whole(p.detach()) == q).float().mean() > 0.98


@case()
def channels_last_counts_in_memory(rank: int) -> None:
    shape = (6, 4, 3, 5)
    (values,), (grad,) = numbers([shape], 1, torch.bfloat16), numbers([shape], 2, torch.bfloat16)
    for dim in range(2):
        ordered = values.to(memory_format=torch.channels_last)
        q = Parameter(ordered.clone())
        part = ordered.chunk(2, dim)[rank].clone(memory_format=torch.preserve_format)
        p = Parameter(
            DTensor.from_local(part, mesh_of(2), [Shard(dim)], shape=torch.Size(shape), stride=ordered.stride())
        )
        q.grad = grad.to(memory_format=torch.channels_last)
        its = q.grad.chunk(2, dim)[rank].clone(memory_format=torch.preserve_format)
        p.grad = DTensor.from_local(its, mesh_of(2), [Shard(dim)], shape=torch.Size(shape), stride=ordered.stride())
        for param in (p, q):
            optimizer: Any = fusedopt.Lion([param], lr=0.01, rounding="stochastic")
            optimizer.step()
        mine = p.to_local()  # type: ignore[attr-defined]
        assert torch.equal(mine, q.detach().chunk(2, dim)[rank])


@case()
def steps_in_backward_draw_as_one(rank: int) -> None:
    """A plan for each param knows where its param stands among all."""
    pair = Pair(lambda ps: fusedopt.AdamW(ps, lr=0.01, rounding="stochastic"), dtype=torch.bfloat16)
    its = nn.ParameterList(params_of(pair.sharded))
    handle: Any = fusedopt.step_in_backward(its, pair.sharded)
    for i in range(3):
        pair.give_grads(i)
        pair.whole.step()
        grads = [p.grad for p in params_of(pair.sharded)]
        for p in params_of(pair.sharded):
            p.grad = None
        torch.autograd.backward([p * 1 for p in params_of(pair.sharded)], grads)
    handle.remove()
    pair.assert_same()


@case(ranks=4)
def files_go_on_with_the_same_draws(rank: int) -> None:
    """In one, three and four processes, what two have saved: params that are rounded by chance, and states."""

    def made(**kwargs: Any) -> Any:
        def make(params: Any) -> Optimizer:
            return fusedopt.AdamW(params, lr=0.01, **kwargs)

        return make

    all_runs = {
        "params": Runs(made(rounding="stochastic", rounding_seed=3), torch.bfloat16),
        "states": Runs(made(state_dtype="bfloat16"), torch.float32, wide=700),
        "roots": Runs(made(state_dtype="float16"), torch.float32),
    }
    for options in (None, FLAT):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", message="TypedStorage is deprecated")  # torch 2.6's, of its own
            assert_resumes(all_runs, (1, 2, 3, 4), save(all_runs, 2, options), options)


@case()
def what_has_no_such_numbers_is_refused(rank: int) -> None:
    """Pieces of unequal length within rows: the second process has 2, 3, 6, 7 and 10 of eleven columns."""
    from torch.distributed.tensor.placement_types import _StridedShard

    placements = [_StridedShard(1, split_factor=3)]
    try:
        values, grad = (place(t, mesh_of(2), placements) for t in numbers([(2, 11), (2, 11)], 1, torch.bfloat16))
    except AssertionError as error:
        if "only allows even sharding" not in str(error):
            raise
        pytest.skip(str(error))  # torch 2.6's
    p = Parameter(values)
    p.grad = grad
    before = p.to_local().clone()  # type: ignore[attr-defined]
    optimizer: Any = fusedopt.Lion([p], lr=0.01, rounding="stochastic")
    if rank == 0:
        optimizer.step()
        return
    with pytest.raises(RuntimeError, match=r"param 0 .*placed as \(_StridedShard.*rounded by chance.*redistribute\(\)"):
        optimizer.step()
    assert torch.equal(p.to_local(), before)  # type: ignore[attr-defined]
    fusedopt.Lion([p], lr=0.01).step()
