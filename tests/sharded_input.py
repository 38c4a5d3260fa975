"""What goes wrong among processes: params that were replaced, groups that are gone, files of another model."""

from __future__ import annotations

import tempfile
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from ranks import case
from sharded import mesh_of, numbers, place, require_fsdp_of_cpus, whole
from support import assert_identical
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard
from torch.nn import Parameter

import fusedopt


def model(wide: int = 4) -> nn.Sequential:
    torch.manual_seed(4)
    return nn.Sequential(nn.Linear(6, wide), nn.Linear(wide, 6))


def backward(its: nn.Module) -> None:
    its(torch.ones(3, 6)).square().mean().backward()


@case()
def params_that_fully_shard_has_replaced(rank: int) -> None:
    """torch says nothing and trains nothing: they get no gradients any more."""
    require_fsdp_of_cpus()
    words = "param 0 of group 0.*: fully_shard has put a DTensor in its place since this optimizer was made"
    for steps_before in (False, True):
        its = model()
        optimizer = fusedopt.AdamW(its.named_parameters(), lr=0.1)
        if steps_before:
            backward(its)
            optimizer.step()
            optimizer.zero_grad()
        fully_shard(its)
        backward(its)
        if not hasattr(optimizer.param_groups[0]["params"][0], "_fsdp_orig_uid"):
            pytest.skip("an older torch leaves no mark")
        with pytest.raises(RuntimeError, match=words):
            optimizer.step()
    # Of a part of the model, too.
    its = model()
    optimizer = fusedopt.AdamW(its.parameters(), lr=0.1)
    fully_shard(its[1])
    backward(its)
    before = [p.detach().clone() for p in its[0].parameters()]
    with pytest.raises(RuntimeError, match="param 2 of group 0: fully_shard has put"):
        optimizer.step()
    for p, start in zip(its[0].parameters(), before, strict=True):
        assert_identical(p.detach(), start)
    fresh = fusedopt.AdamW(its.parameters(), lr=0.1)
    fresh.step()
    # Without gradients a step is nothing, as ever.
    fresh.zero_grad()
    fresh.step()


@case()
def a_mesh_whose_group_is_gone(rank: int) -> None:
    """What needs no communication goes on; a norm is refused by torch, and nothing has been written."""
    (t,) = numbers([(8, 3)], 1)

    def made(make: Any) -> Any:
        group = torch.distributed.new_group([0, 1])
        mesh = DeviceMesh.from_group(group, "cpu")
        param: Any = Parameter(place(t, mesh, [Shard(0)]))
        param.grad = place(t, mesh, [Shard(0)])
        optimizer = make([param])
        torch.distributed.destroy_process_group(group)
        return optimizer, param

    makes: list[Any] = [lambda ps: fusedopt.AdamW(ps, max_grad_norm=1.0), fusedopt.LAMB, fusedopt.Adafactor]
    for make in makes:
        optimizer, param = made(make)
        before = param.to_local().clone()
        # In torch 2.6's words it is an invariant.
        with pytest.raises(Exception, match=r"process group|Invariant encountered: value was None"):
            optimizer.step()
        assert_identical(param.to_local(), before)
        assert not optimizer.state
    optimizer, param = made(lambda ps: fusedopt.AdamW(ps))
    before = param.to_local().clone()
    optimizer.step()
    assert not torch.equal(param.to_local(), before)


@case()
def files_of_another_model(rank: int) -> None:
    """torch's loader refuses what it does not find or what has another size; states of a wrong shape a step refuses."""
    require_fsdp_of_cpus()
    folder = [tempfile.mkdtemp() if rank == 0 else ""]
    torch.distributed.broadcast_object_list(folder)
    its = fully_shard(model())
    optimizer = fusedopt.AdamW(its.parameters(), lr=0.1, ema_decay=0.5)
    backward(its)
    optimizer.step()
    optimizer.zero_grad()
    dcp.save({"optimizer": get_optimizer_state_dict(its, optimizer)}, checkpoint_id=folder[0])

    wider = fully_shard(model(5))
    other = fusedopt.AdamW(wider.parameters(), lr=0.5, ema_decay=0.5)
    file = {"optimizer": get_optimizer_state_dict(wider, other)}
    with pytest.raises(CheckpointException, match="Size mismatch between saved"):
        dcp.load(file, checkpoint_id=folder[0])
    # A file of an optimizer without an average has none to load.
    plain = fusedopt.AdamW(its.parameters(), lr=0.1)
    folder = [tempfile.mkdtemp() if rank == 0 else ""]
    torch.distributed.broadcast_object_list(folder)
    backward(its)
    plain.step()
    dcp.save({"optimizer": get_optimizer_state_dict(its, plain)}, checkpoint_id=folder[0])
    file = {"optimizer": get_optimizer_state_dict(its, optimizer)}
    with pytest.raises(CheckpointException, match=r"Missing key in checkpoint state_dict: .*ema"):
        dcp.load(file, checkpoint_id=folder[0])
    # Into one that averages as well, by a planner that allows for it: the average begins with the next step.
    averaging = fusedopt.AdamW(its.parameters(), lr=0.1, ema_decay=0.5)
    file = {"optimizer": get_optimizer_state_dict(its, plain)}
    dcp.load(file, checkpoint_id=folder[0])
    set_optimizer_state_dict(its, averaging, file["optimizer"])
    backward(its)
    averaging.step()
    for p in its.parameters():
        assert_identical(whole(averaging.state[p]["ema"]), whole(p.detach()))

    # Of shards, for whole params.
    with pytest.raises(ValueError, match=r"DTensor, which no step here can read; .*, as a DTensor's full_tensor\(\)"):
        fusedopt.AdamW(model().parameters(), ema_decay=0.5).load_state_dict(optimizer.state_dict())

    # Passed by all planners: its states have the shapes of another param.
    states = [dict(optimizer.state[p]) for p in its.parameters()]
    for p, state in zip(wider.parameters(), states, strict=True):
        other.state[p] = state
    backward(wider)
    before = [p.to_local().clone() for p in wider.parameters()]  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError, match=r"has shape .*; the checkpoint is of another model"):
        other.step()
    for p, start in zip(wider.parameters(), before, strict=True):
        assert_identical(p.to_local(), start)  # type: ignore[attr-defined]


@case()
def a_process_that_raises_before_an_element_wise_step(rank: int) -> None:
    """The others have stepped: such a step asks nobody."""
    param: Any = Parameter(place(torch.ones(8, 3), mesh_of(2), [Shard(0)]))
    param.grad = place(torch.ones(8, 3), mesh_of(2), [Shard(0)])
    optimizer = fusedopt.SGD([param], lr=1.0)
    if rank == 1:
        param.grad._local_tensor = torch.ones(2, 2)
        with pytest.raises(RuntimeError, match="its gradient has shape"):
            optimizer.step()
    else:
        optimizer.step()
    assert param.to_local().eq(1.0 if rank == 1 else 0.0).all()
