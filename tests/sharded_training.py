"""Training under fully_shard (FSDP2) and its companions: files of several processes, gradients released in backward."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.distributed.checkpoint as dcp
from ranks import case
from sharded import counted_calls, mesh_of, numbers, require_fsdp_of_cpus, whole
from support import assert_identical, params_of
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn import Parameter
from torch.optim import Optimizer

import fusedopt


def model(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(4)
    return nn.Sequential(nn.Linear(10, 3), nn.LayerNorm(3), nn.GELU(), nn.Linear(3, 10), nn.Linear(10, 1)).to(dtype)


def shard(its: nn.Sequential, **policies: Any) -> nn.Sequential:
    require_fsdp_of_cpus()
    for module in (its[0], its[3]):
        fully_shard(module, **policies)
    fully_shard(its, **policies)
    return its


def backward(its: nn.Module, seed: int, dtype: torch.dtype = torch.float32) -> None:
    (x,) = numbers([(6, 10)], 10 * seed + torch.distributed.get_rank(), dtype)
    its(x).square().mean().backward()


def twin_of(its: nn.Module) -> list[Parameter]:
    return [Parameter(whole(p.detach()).clone()) for p in its.parameters()]


def feed(twins: list[Parameter], its: nn.Module) -> None:
    for q, p in zip(twins, its.parameters(), strict=True):
        q.grad = whole(p.grad).clone()


@case()
def policies(rank: int) -> None:
    """Params and gradients that FSDP2 keeps are float32 under mixed precision, and on the CPU when offloaded."""
    mixed = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for policies in ({}, {"mp_policy": mixed}, {"offload_policy": CPUOffloadPolicy(pin_memory=False)}):
        its = shard(model(), **policies)
        twins = twin_of(its)
        optimizers: list[Any] = [
            fusedopt.AdamW(ps, lr=0.01, ema_decay=0.9, max_grad_norm=10.0) for ps in (its.parameters(), twins)
        ]
        for i in range(3):
            backward(its, i)
            feed(twins, its)
            assert {p.grad.dtype for p in its.parameters()} == {torch.float32}  # type: ignore[union-attr]
            for optimizer in optimizers:
                optimizer.step(zero_grad=i == 1)
                optimizer.zero_grad(set_to_none=i != 1)
        for p, q in zip(its.parameters(), twins, strict=True):
            assert_identical(whole(p.detach()), q)
            assert_identical(whole(optimizers[0].state[p]["ema"]), optimizers[1].state[q]["ema"])


@case()
def gradients_released_in_backward(rank: int) -> None:
    """fully_shard runs the hooks of params that it has reduced a gradient for."""
    models = [shard(model()) for _ in range(2)]
    optimizers = [fusedopt.AdamW(its.parameters(), lr=0.01, ema_decay=0.9) for its in models]
    with fusedopt.step_in_backward(models[0], optimizers[0]):
        for i in range(3):
            for its in models:
                backward(its, i)
            optimizers[1].step()
            optimizers[1].zero_grad()
            assert all(p.grad is None for p in models[0].parameters())
    for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert_identical(whole(p.detach()), whole(q.detach()))
        assert_identical(whole(optimizers[0].state[p]["ema"]), whole(optimizers[1].state[q]["ema"]))


@case()
def norms_are_made_param_by_param_in_backward(rank: int) -> None:
    """Of LAMB's each, as it is stepped: as many all-reduces as params that processes have parts of."""
    models = [shard(model()) for _ in range(2)]
    optimizers = [fusedopt.LAMB(its.parameters(), lr=0.01) for its in models]
    with fusedopt.step_in_backward(models[0], optimizers[0]):
        for i in range(2):
            with counted_calls() as calls:
                backward(models[0], i)
            assert len(calls) == len(list(models[0].parameters()))
            backward(models[1], i)
            optimizers[1].step()
            optimizers[1].zero_grad()
    for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(whole(p.detach()), whole(q.detach()))


@case(ranks=4)
def fully_sharded_and_tensor_parallel(rank: int) -> None:
    from torch.distributed.device_mesh import init_device_mesh

    require_fsdp_of_cpus()
    mesh: Any = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "model"))
    torch.manual_seed(4)
    its = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 8))
    parallelize_module(its, mesh["model"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
    fully_shard(its, mesh=mesh["data"])
    twins = twin_of(its)
    optimizers = [fusedopt.AdamW(ps, lr=0.01, max_grad_norm=0.05) for ps in (its.parameters(), twins)]
    for i in range(3):
        (x,) = numbers([(6, 8)], 10 * i + rank // 2)
        its(x).square().mean().backward()
        feed(twins, its)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    torch.testing.assert_close(optimizers[0].grad_norm, optimizers[1].grad_norm)
    for p, q in zip(its.parameters(), twins, strict=True):
        torch.testing.assert_close(whole(p.detach()), q.detach(), rtol=1e-6, atol=1e-7)


@case()
def what_is_written_between_steps_is_what_the_model_computes_with(rank: int) -> None:
    """fully_shard keeps what the root gathered for a forward pass that no backward pass follows: validation."""
    (x,) = numbers([(6, 10)], 7)
    for keep in (False, True):
        for name in ("AdamW", "AdamWScheduleFree"):
            its, alone = shard(model()), model()
            if keep:
                cast(FSDPModule, its).set_reshard_after_forward(False)
            options: dict[str, Any] = {"ema_decay": 0.5} if name == "AdamW" else {}
            optimizer, other = (getattr(fusedopt, name)(m.parameters(), lr=0.1, **options) for m in (its, alone))

            def assert_computes_the_same(its: nn.Module = its, alone: nn.Module = alone) -> None:
                with torch.no_grad():
                    torch.testing.assert_close(its(x), alone(x))

            for i in range(3):
                backward(its, i)
                feed(list(alone.parameters()), its)
                optimizer.step()
                other.step()
                optimizer.zero_grad()
                assert_computes_the_same()
                if name == "AdamW":
                    with optimizer.ema_parameters(), other.ema_parameters():
                        assert_computes_the_same()
                else:
                    for turned in (optimizer, other):
                        turned.eval()
                    assert_computes_the_same()
                    for turned in (optimizer, other):
                        turned.train()
            assert_computes_the_same()


def masters(its: nn.Module, **kwargs: Any) -> Optimizer:
    return fusedopt.AdamW(its.parameters(), lr=0.01, master_weights="float32", ema_decay=0.9, **kwargs)


@case()
def files_for_another_number_of_processes(rank: int) -> None:
    """Saved on two, loaded on one: what the first process makes of the file alone goes on with the same bits."""
    for kwargs in ({}, {"state_dtype": "int8"}):
        its = shard(model(torch.bfloat16))
        optimizer = masters(its, **kwargs)
        for i in range(2):
            backward(its, i, torch.bfloat16)
            optimizer.step()
            optimizer.zero_grad()
        folder = [tempfile.mkdtemp() if rank == 0 else ""]
        torch.distributed.broadcast_object_list(folder)
        dcp.save(
            {"model": get_model_state_dict(its), "optimizer": get_optimizer_state_dict(its, optimizer)},
            checkpoint_id=folder[0],
        )
        kept = [{k: whole(v) for k, v in optimizer.state_dict()["state"][i].items()} for i in range(8)]
        params = [whole(p.detach()) for p in its.parameters()]
        if rank == 0:
            alone = model(torch.bfloat16)
            resumed = masters(alone, **kwargs)
            file = {"model": get_model_state_dict(alone), "optimizer": get_optimizer_state_dict(alone, resumed)}
            dcp.load(file, checkpoint_id=folder[0], no_dist=True)
            set_model_state_dict(alone, file["model"])
            set_optimizer_state_dict(alone, resumed, file["optimizer"])
            for p, q in zip(alone.parameters(), params, strict=True):
                assert_identical(p.detach(), q)
            for i, state in resumed.state_dict()["state"].items():
                assert sorted(state) == sorted(kept[i])
                for key, value in state.items():
                    assert_identical(value, kept[i][key])
            Path(folder[0], "done").touch()
        torch.distributed.barrier()
        # And by two of them, into an optimizer that has made no states yet.
        others = shard(model(torch.bfloat16))
        resumed = masters(others, **kwargs)
        file = {"model": get_model_state_dict(others), "optimizer": get_optimizer_state_dict(others, resumed)}
        dcp.load(file, checkpoint_id=folder[0])
        set_model_state_dict(others, file["model"])
        set_optimizer_state_dict(others, resumed, file["optimizer"])
        for pair in ((its, optimizer), (others, resumed)):
            backward(pair[0], 2, torch.bfloat16)
            pair[1].step()
        for p, q in zip(its.parameters(), others.parameters(), strict=True):
            assert_identical(whole(q.detach()), whole(p.detach()))


@case()
def one_file_of_all(rank: int) -> None:
    """full_state_dict, as most scripts that save one file use it."""
    its = shard(model())
    optimizer = fusedopt.AdamW(its.parameters(), lr=0.01, ema_decay=0.9)
    for i in range(2):
        backward(its, i)
        optimizer.step()
        optimizer.zero_grad()
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    # Its counters are the optimizer's own.
    file = copy.deepcopy(get_optimizer_state_dict(its, optimizer, options=options))
    assert bool(file) == (rank == 0)
    others = shard(model())
    for p, q in zip(others.parameters(), its.parameters(), strict=True):
        p.data.copy_(q.data)
    resumed = fusedopt.AdamW(others.parameters(), lr=0.5, ema_decay=0.9)
    set_optimizer_state_dict(
        others, resumed, file, options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    )
    for pair in ((its, optimizer), (others, resumed)):
        backward(pair[0], 2)
        pair[1].step()
    for p, q in zip(its.parameters(), others.parameters(), strict=True):
        assert_identical(whole(q.detach()), whole(p.detach()))
        assert_identical(whole(resumed.state[q]["ema"]), whole(optimizer.state[p]["ema"]))


@case()
def a_live_optimizer_is_replaced(rank: int) -> None:
    its = shard(model())
    theirs = torch.optim.AdamW(its.parameters(), lr=0.01)
    backward(its, 0)
    theirs.step()
    its.zero_grad()
    ours = fusedopt.replace(theirs)
    twins = twin_of(its)
    other = fusedopt.AdamW(twins, lr=0.01)
    other.load_state_dict(
        {
            **copy.deepcopy(theirs.state_dict()),
            "state": {
                i: {k: whole(v).clone() for k, v in state.items()} for i, state in theirs.state_dict()["state"].items()
            },
        }
    )
    for i in range(1, 3):
        backward(its, i)
        feed(twins, its)
        ours.step()
        other.step()
        its.zero_grad()
    for p, q in zip(its.parameters(), twins, strict=True):
        assert_identical(whole(p.detach()), q)


@case()
def closures_and_hooks(rank: int) -> None:
    its = shard(model())
    optimizer = fusedopt.AdamW(its.parameters(), lr=0.01)
    seen = []
    optimizer.register_step_post_hook(lambda *_: seen.append(1))

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss: torch.Tensor = its(numbers([(6, 10)], rank)[0]).square().mean()
        loss.backward()
        return loss

    losses = [optimizer.step(closure) for _ in range(3)]
    assert len(seen) == 3
    assert losses[2] < losses[0]


@case()
def compiled_steps_are_ours(rank: int) -> None:
    ends = []
    for by_compiler in (True, False):
        its = shard(model())
        optimizer = fusedopt.AdamW(its.parameters(), lr=0.01, max_grad_norm=1.0, ema_decay=0.9)
        step = torch.compile(optimizer.step, backend="eager") if by_compiler else optimizer.step
        for i in range(3):
            backward(its, i)
            step()
            optimizer.zero_grad()
        ends.append([p.to_local() for p in its.parameters()])  # type: ignore[attr-defined]
    for p, q in zip(*ends, strict=True):
        assert_identical(p.detach(), q.detach())


@case()
def differentiable_steps_are_torchs(rank: int) -> None:
    from sharded import Pair

    pair = Pair(lambda ps: fusedopt.SGD([p.detach().clone() for p in ps], lr=0.1, differentiable=True))
    pair.step(2)
    for p, q in zip(params_of(pair.sharded), params_of(pair.whole), strict=True):
        torch.testing.assert_close(whole(p.detach()), q.detach())
    assert mesh_of(2).size() == 2
    with pytest.raises(RuntimeError, match="with its gradient it can only take torch's own step"):
        Pair(lambda ps: fusedopt.SGD(ps, lr=0.1, differentiable=True, ema_decay=0.5)).step(1)
