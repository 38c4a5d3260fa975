"""Wrappers that share a model among processes otherwise than FSDP2: DDP, ZeRO, FSDP1, HSDP, and what they hand over."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import pytest
import torch
from ranks import case
from sharded import numbers, require_fsdp_of_cpus, whole
from support import assert_identical, params_of
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn import Parameter
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

import fusedopt

Optimizers = list[Any]


def model(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(4)
    return nn.Sequential(nn.Linear(7, 5), nn.LayerNorm(5), nn.GELU(), nn.Linear(5, 3)).to(dtype)


def backward(its: nn.Module, seed: int) -> None:
    """Every process has inputs of its own."""
    (x,) = numbers([(6, 7)], 10 * seed + torch.distributed.get_rank())
    its(x).square().mean().backward()


def feed(twins: list[Parameter], its: nn.Module) -> None:
    for q, p in zip(twins, its.parameters(), strict=True):
        q.grad = p.grad.clone()  # type: ignore[union-attr]


def assert_on_all(params: list[Any]) -> None:
    """Every process has the same bits."""
    for p in params:
        both = [torch.empty_like(p) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(both, p.detach().contiguous())
        for other in both:
            assert_identical(other, p.detach())


MAKES: list[Any] = [
    lambda ps: fusedopt.AdamW(ps, lr=0.01, max_grad_norm=0.5, ema_decay=0.9),
    lambda ps: fusedopt.LAMB(ps, lr=0.01),
    lambda ps: fusedopt.Adafactor(ps, lr=0.01),
    lambda ps: fusedopt.SGD(ps, lr=0.1, momentum=0.9),
]


@case()
def ddp_of_every_making(rank: int) -> None:
    """Also where gradients are views of a bucket, which begin at any element, and where a hook has made them."""
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook

    for kwargs in ({}, {"gradient_as_bucket_view": True}, {"static_graph": True}, {"hook": fp16_compress_hook}):
        hook = kwargs.pop("hook", None)
        for make in MAKES if not kwargs and hook is None else MAKES[:2]:
            its = DistributedDataParallel(model(), **kwargs)
            if hook is not None:
                its.register_comm_hook(None, hook)
            twins = [Parameter(p.detach().clone()) for p in its.parameters()]
            optimizers = [make(list(its.parameters())), make(twins)]
            for i in range(3):
                backward(its, i)
                feed(twins, its)
                if kwargs.get("gradient_as_bucket_view"):
                    offsets = {p.grad.storage_offset() for p in its.parameters()}  # type: ignore[union-attr]
                    assert any(offset % 4 for offset in offsets)
                for optimizer in optimizers:
                    optimizer.step()
                    optimizer.zero_grad()
            for p, q in zip(its.parameters(), twins, strict=True):
                assert_identical(p.detach(), q.detach())
            assert_on_all(list(its.parameters()))


@case()
def ddp_clears_gradients_in_the_step(rank: int) -> None:
    its = DistributedDataParallel(model(), gradient_as_bucket_view=True)
    optimizer = fusedopt.AdamW(its.parameters(), lr=0.01)
    other = copy.deepcopy(its.module)
    second = torch.optim.AdamW(other.parameters(), lr=0.01)
    for i in range(3):
        backward(its, i)
        feed(list(other.parameters()), its)
        pointers = [p.grad.data_ptr() for p in its.parameters()]  # type: ignore[union-attr]
        optimizer.step(zero_grad=True)
        second.step()
        assert all(not p.grad.any() for p in its.parameters())  # type: ignore[union-attr]
        assert pointers == [p.grad.data_ptr() for p in its.parameters()]  # type: ignore[union-attr]
    for p, q in zip(its.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q)


@case()
def zero_redundancy(rank: int) -> None:
    """Options are passed on, params of a process are its own to step, and the file is one of them all."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    for name, kwargs in [
        ("AdamW", {"lr": 0.01, "ema_decay": 0.9}),
        ("AdamW", {"lr": 0.01, "master_weights": "float32"}),
        ("LAMB", {"lr": 0.01}),
        ("Adafactor", {"lr": 0.01}),
    ]:
        dtype = torch.bfloat16 if "master_weights" in kwargs else torch.float32
        cls: Any = getattr(fusedopt, name)
        models = [model(dtype) for _ in range(3)]
        zero, resumed = (ZeroRedundancyOptimizer(its.parameters(), cls, **kwargs) for its in models[:2])
        plain: Optimizer = cls(models[2].parameters(), **kwargs)

        def step(which: list[tuple[nn.Module, Any]], first: int) -> None:
            for i in range(first, first + 2):
                for its, optimizer in which:
                    params = list(its.parameters())
                    for p, grad in zip(
                        params, numbers([tuple(p.shape) for p in params], i, params[0].dtype), strict=True
                    ):
                        p.grad = grad
                    optimizer.step()

        step([(models[0], zero), (models[2], plain)], 0)
        zero.consolidate_state_dict(to=0)
        file = [copy.deepcopy(zero.state_dict()) if rank == 0 else None]
        torch.distributed.broadcast_object_list(file)
        for p, q in zip(models[1].parameters(), models[0].parameters(), strict=True):
            p.data.copy_(q.data)
        resumed.load_state_dict(file[0])  # type: ignore[arg-type]
        step([(models[0], zero), (models[1], resumed), (models[2], plain)], 2)
        for p, q, r in zip(*(its.parameters() for its in models), strict=True):
            assert_identical(p.detach(), r.detach())
            assert_identical(q.detach(), r.detach())
        mine = [p for p in params_of(zero.optim) if zero.optim.state.get(p)]
        assert 0 < len(mine) < len(list(models[0].parameters()))
        for p in mine:
            other = params_of(plain)[next(i for i, q in enumerate(models[0].parameters()) if q is p)]
            assert sorted(zero.optim.state[p]) == sorted(plain.state[other])


@case()
def what_is_made_of_all_params_is_refused_where_a_process_has_some(rank: int) -> None:
    """Each process would clip to a norm of its own, or go a distance of its own."""
    from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
    from torch.distributed.optim import ZeroRedundancyOptimizer

    norm = "max_grad_norm would be held against the norm of those alone; leave it out and call clip_grad_norm_"
    with pytest.raises(ValueError, match="ZeroRedundancyOptimizer gives each process some of the params, and " + norm):
        ZeroRedundancyOptimizer(model().parameters(), fusedopt.AdamW, max_grad_norm=1.0)
    with pytest.raises(ValueError, match="gives each process some of the params, and the distance would be of those"):
        ZeroRedundancyOptimizer(model().parameters(), fusedopt.Prodigy)
    # Of an optimizer that has been constructed: set later, or out of a file of another.
    zero = ZeroRedundancyOptimizer(model().parameters(), fusedopt.AdamW)
    file = fusedopt.AdamW([torch.nn.Parameter(p.detach().clone()) for p in params_of(zero.optim)], max_grad_norm=1.0)
    for p in params_of(file):
        p.grad = torch.ones_like(p)
    file.step()
    for its_own in (zero.optim, copy.deepcopy(zero.optim)):
        with pytest.raises(ValueError, match="gives each process some of the params, and " + norm):
            its_own.max_grad_norm = 1.0
        with pytest.raises(ValueError, match="gives each process some of the params, and " + norm):
            its_own.load_state_dict(file.state_dict())
        assert its_own.max_grad_norm is None
        assert not its_own.state
        its_own.param_groups[0]["max_grad_norm"] = 1.0
        with pytest.raises(
            ValueError, match=r"'max_grad_norm'\] is an option of the optimizer.*delete it from the group"
        ):
            its_own.step()
        del its_own.param_groups[0]["max_grad_norm"]
    with pytest.raises(ValueError, match=r"param_groups\[0\] has 'max_grad_norm', which is an option of the optimizer"):
        ZeroRedundancyOptimizer([{"params": list(model().parameters()), "max_grad_norm": 1.0}], fusedopt.AdamW)
    # Where it divides nothing.
    alone = [torch.distributed.new_group([process]) for process in range(torch.distributed.get_world_size())][rank]
    whole = ZeroRedundancyOptimizer(model().parameters(), fusedopt.AdamW, process_group=alone)
    whole.optim.max_grad_norm = 1.0
    ZeroRedundancyOptimizer(model().parameters(), fusedopt.Prodigy, process_group=alone)
    its = FSDP(model(), use_orig_params=True, device_id=torch.device("cpu"))
    words = "param 0 of group 0 is what FullyShardedDataParallel has of it in this process, and "
    with pytest.raises(ValueError, match=words + norm):
        fusedopt.AdamW(its.parameters(), max_grad_norm=1.0)
    with pytest.raises(ValueError, match=words + "the distance"):
        fusedopt.Prodigy(its.parameters())
    optimizer = fusedopt.AdamW(its.parameters())
    with pytest.raises(ValueError, match=words + norm):
        optimizer.max_grad_norm = 1.0
    assert optimizer.max_grad_norm is None
    other = fusedopt.AdamW([Parameter(torch.zeros(2))], max_grad_norm=1.0)
    with pytest.raises(ValueError, match=r"param 0 of group 1 is what FullyShardedDataParallel has"):
        other.add_param_group({"params": list(its.parameters())})
    assert len(other.param_groups) == 1


@case()
def what_changes_all_params_is_refused_where_a_process_has_some(rank: int) -> None:
    """Each would have averages of its own params, among others that are as they were."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    words = "ZeroRedundancyOptimizer gives each process some of the params, and "
    for cls, kwargs in ((fusedopt.AdamW, {"ema_decay": 0.5}), (fusedopt.AdamWScheduleFree, {})):
        its, alone = model(), model()
        zero: Any = ZeroRedundancyOptimizer(its.parameters(), cls, lr=0.1, **kwargs)
        plain: Any = cls(alone.parameters(), lr=0.1, **kwargs)
        for i in range(3):
            for p, q in zip(its.parameters(), alone.parameters(), strict=True):
                (p.grad,) = numbers([tuple(p.shape)], i)
                q.grad = p.grad.clone()
            zero.step()
            plain.step()
        before = [p.detach().clone() for p in its.parameters()]
        for its_own in (zero.optim, copy.deepcopy(zero.optim)):
            if kwargs:
                with pytest.raises(ValueError, match=words + "ema_parameters.. would put the average in the place of"):
                    its_own.ema_parameters().__enter__()
            else:
                for turn in (its_own.eval, its_own.train):
                    with pytest.raises(ValueError, match=words + r"train\(\) and eval\(\) would turn those alone"):
                        turn()
        for p, value in zip(its.parameters(), before, strict=True):
            assert_identical(p.detach(), value)
        # As the message says.
        zero.consolidate_state_dict(to=0)
        if rank == 0:
            every: Any = cls(its.parameters(), lr=0.1, **kwargs)
            every.load_state_dict(zero.state_dict())
            with contextlib.ExitStack() as averaged:
                for optimizer in (every, plain):
                    if kwargs:
                        averaged.enter_context(optimizer.ema_parameters())
                    else:
                        optimizer.eval()
                for p, q in zip(its.parameters(), alone.parameters(), strict=True):
                    assert_identical(p.detach(), q.detach())


@case()
def gradients_that_are_averaged_later_are_not_stepped_in_backward(rank: int) -> None:
    """DDP's inner module, and what replicate() averages: its hooks come in the first forward pass."""
    from torch.distributed._composable.replicate import replicate

    words = "param 0 of group 0 has a hook that reads its gradient after it is accumulated and so after it would be"
    wrapped = DistributedDataParallel(model())
    optimizer = fusedopt.SGD(wrapped.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=words):
        fusedopt.step_in_backward(wrapped.module, optimizer)
    assert not any(p._post_accumulate_grad_hooks for p in wrapped.parameters())
    its: Any = replicate(model())
    before = [p.detach().clone() for p in its.parameters()]
    optimizer = fusedopt.SGD(its.parameters(), lr=0.1)
    with (
        fusedopt.step_in_backward(its, optimizer),
        pytest.raises(RuntimeError, match="has a hook that reads its gradient after it is accumulated"),
    ):
        backward(its, 0)
    for p, value in zip(its.parameters(), before, strict=True):
        assert_identical(p.detach(), value)


@case()
def overlapping_steps_with_ddp_is_refused(rank: int) -> None:
    """torch has functions of its own for that, of its own classes alone, and says so when it is constructed."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    with pytest.raises(ValueError, match=r"no supported functional optimizer equivalent for <class 'fusedopt.*AdamW'>"):
        ZeroRedundancyOptimizer(model().parameters(), fusedopt.AdamW, overlap_with_ddp=True)


@case()
def fsdp_of_the_first_kind(rank: int) -> None:
    """use_orig_params: a param is a view of what a process has of the flat one, or nothing."""
    from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
    from torch.distributed.fsdp import ShardingStrategy

    for strategy in (ShardingStrategy.FULL_SHARD, ShardingStrategy.NO_SHARD):
        models = [
            FSDP(model(), use_orig_params=True, device_id=torch.device("cpu"), sharding_strategy=strategy)
            for _ in range(2)
        ]
        ours = fusedopt.AdamW(models[0].parameters(), lr=0.01)
        theirs = torch.optim.AdamW(models[1].parameters(), lr=0.01)
        for i in range(3):
            for its, optimizer in zip(models, (ours, theirs), strict=True):
                backward(its, i)
                optimizer.step()
                optimizer.zero_grad()
        for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
            torch.testing.assert_close(p, q)
        # What it makes of states is its own affair: of torch 2.13 on the CPU the first of two has the second's numbers.
        files = [FSDP.optim_state_dict(its, opt) for its, opt in zip(models, (ours, theirs), strict=True)]
        torch.testing.assert_close(*(file["state"] for file in files))
        again = fusedopt.AdamW(models[1].parameters(), lr=0.5)
        again.load_state_dict(copy.deepcopy(ours.state_dict()))
        for its, optimizer in ((models[0], ours), (models[1], again)):
            backward(its, 3)
            optimizer.step()
            optimizer.zero_grad()
        for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
            torch.testing.assert_close(p, q)


@case(ranks=4)
def hybrid_shards(rank: int) -> None:
    """HSDP: params are divided in one dimension of the mesh and repeated in the other, which reduces gradients."""
    from torch.distributed.device_mesh import init_device_mesh

    require_fsdp_of_cpus()

    mesh: Any = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    mixed = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for policy in ({}, {"mp_policy": mixed}):
        its = model()
        fully_shard(its[0], mesh=mesh, **policy)
        fully_shard(its, mesh=mesh, **policy)
        twins = [Parameter(whole(p.detach()).clone()) for p in its.parameters()]
        optimizers = [
            fusedopt.AdamW(ps, lr=0.01, max_grad_norm=0.05, ema_decay=0.9) for ps in (its.parameters(), twins)
        ]
        for i in range(3):
            backward(its, i)
            for q, p in zip(twins, its.parameters(), strict=True):
                q.grad = whole(p.grad).clone()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
        torch.testing.assert_close(optimizers[0].grad_norm, optimizers[1].grad_norm, rtol=1.2e-7, atol=0)
        for p, q in zip(its.parameters(), twins, strict=True):
            torch.testing.assert_close(whole(p.detach()), q.detach(), rtol=1e-6, atol=1e-7)
        local: list[Tensor] = [p.to_local() for p in its.parameters()]  # type: ignore[attr-defined]
        group = mesh.get_group("replicate")
        for part in local:
            both = [torch.empty_like(part) for _ in range(2)]
            torch.distributed.all_gather(both, part.detach().contiguous(), group=group)
            assert_identical(both[0], both[1])
