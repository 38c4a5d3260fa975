"""Checkpoints of several processes, loaded by another number of them, whose next steps have the same bits."""

from __future__ import annotations

import copy
import re
import tempfile
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from cases import ONE_PER_OPTIMIZER
from ranks import case
from sharded import numbers, place, require_2_7, whole
from support import assert_identical, params_of
from tiers import of_a_kind
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.optim import Optimizer

import fusedopt

Make = Callable[[list[Any]], Optimizer]

ELEMENTWISE = [c for c in ONE_PER_OPTIMIZER if c.optimizer not in ("LAMB", "LARS", "MARS", "NovoGrad", "Prodigy")]
FLAT = StateDictOptions(flatten_optimizer_state_dict=True)


@cache
def mesh_of_first(count: int) -> Any:
    """Of the first so many processes, which all have to ask for; None to the others."""
    group = torch.distributed.new_group(list(range(count)))
    return DeviceMesh.from_group(group, "cpu") if torch.distributed.get_rank() < count else None


def model(mesh: Any, dtype: torch.dtype, wide: int = 10) -> nn.Sequential:
    torch.manual_seed(4)
    its = nn.Sequential(nn.Linear(wide, 3), nn.LayerNorm(3), nn.Linear(3, wide), nn.Linear(wide, 1)).to(dtype)
    if mesh is not None:
        fully_shard(its, mesh=mesh)
    return its


def step(its: nn.Module, optimizer: Optimizer, count: int, first: int = 0) -> None:
    """Gradients are those of whole params, whatever part of them a process has."""
    for i in range(first, first + count):
        params = list(its.parameters())
        for p, grad in zip(params, numbers([tuple(p.shape) for p in params], 20 + i, params[0].dtype), strict=True):
            p.grad = place(grad, p.device_mesh, p.placements) if hasattr(p, "device_mesh") else grad  # type: ignore[attr-defined]
        optimizer.step()
        optimizer.zero_grad()


class Runs:
    """The same training in files of any number of processes, and without any of them."""

    def __init__(self, make: Make, dtype: torch.dtype = torch.float32, wide: int = 10) -> None:
        self.make, self.dtype, self.wide = make, dtype, wide
        self.reference = self.start(None)
        step(*self.reference, 5)

    def start(self, mesh: Any, make: Make | None = None) -> tuple[nn.Module, Optimizer]:
        its = model(mesh, self.dtype, self.wide)
        return its, (make or self.make)(list(its.parameters()))

    def file(self, its: nn.Module, optimizer: Optimizer, options: Any) -> dict[str, Any]:
        state = get_optimizer_state_dict(its, optimizer, options=options)
        return {"model": get_model_state_dict(its), "optimizer": state}

    def assert_reference(self, resumed: Any) -> None:
        """Params and states have the bits of the run that was never sharded nor saved."""
        for p, q in zip(params_of(resumed[1]), params_of(self.reference[1]), strict=True):
            assert_identical(whole(p.detach()), q.detach())
            mine, its = resumed[1].state[p], self.reference[1].state[q]
            assert sorted(mine) == sorted(its)
            for key, value in its.items():
                assert_identical(whole(mine[key]), value)
                if value.dim() and hasattr(p, "placements"):
                    assert mine[key].placements == p.placements


def save(all_runs: dict[str, Runs], count: int, options: Any = None, make: Make | None = None) -> str:
    """One file of them all, by so many processes; where it is."""
    where, mesh = folder(), mesh_of_first(count)
    if mesh is not None:
        file = {}
        for name, runs in all_runs.items():
            its, optimizer = runs.start(mesh, make)
            step(its, optimizer, 3)
            file[name] = runs.file(its, optimizer, options)
        dcp.save(file, checkpoint_id=where, process_group=mesh.get_group())
    torch.distributed.barrier()
    return where


def resume(
    all_runs: dict[str, Runs], count: int, where: str, options: Any = None, make: Make | None = None
) -> dict[str, Any]:
    """What goes on from the file, by name; nothing to processes that do not take part."""
    mesh = mesh_of_first(count)
    if mesh is None:
        return {}
    started = {name: runs.start(mesh, make) for name, runs in all_runs.items()}
    file = {name: all_runs[name].file(*its, options) for name, its in started.items()}
    dcp.load(file, checkpoint_id=where, process_group=mesh.get_group())
    for name, (its, optimizer) in started.items():
        set_model_state_dict(its, file[name]["model"])
        set_optimizer_state_dict(its, optimizer, file[name]["optimizer"], options=options)
    return started


def assert_resumes(all_runs: dict[str, Runs], counts: tuple[int, ...], where: str, options: Any = None) -> None:
    for count in counts:
        for name, resumed in resume(all_runs, count, where, options).items():
            step(*resumed, 2, first=3)
            all_runs[name].assert_reference(resumed)


def folder() -> str:
    """One that all processes know."""
    name = [tempfile.mkdtemp() if torch.distributed.get_rank() == 0 else ""]
    torch.distributed.broadcast_object_list(name)
    return name[0]


@case(ranks=4)
def files_of_two_processes_go_on_in_one_three_and_four(rank: int) -> None:
    """Every optimizer goes on in three, which divide nothing evenly; the other numbers know no rule."""
    all_runs = {one.name: Runs(one.ours) for one in ELEMENTWISE}
    where = save(all_runs, 2)
    assert_resumes(all_runs, (3,), where)
    assert_resumes({one.name: all_runs[one.name] for one in ELEMENTWISE if of_a_kind(one)}, (1, 4), where)


@case(ranks=4)
def what_options_keep_goes_along(rank: int) -> None:
    """Masters, lower halves, compensations and averages are divided anew as the params are.

    Adagrad is among them because a constructor of torch's begins its states, and a file is read for what has begun.
    """
    kwargs: dict[str, Any] = {
        "master": {"master_weights": "float32", "ema_decay": 0.9},
        "remainder": {"master_weights": "remainder"},
        "kahan": {"rounding": "kahan", "ema_decay": 0.5},
    }
    all_runs = {
        f"{name}, {cls.__name__}": Runs(lambda ps, cls=cls, its=its: cls(ps, lr=0.01, **its), torch.bfloat16)  # type: ignore[misc]
        for name, its in kwargs.items()
        for cls in (fusedopt.AdamW, fusedopt.Adagrad)
    }
    assert_resumes(all_runs, (1, 3, 4), save(all_runs, 2))


@case(ranks=4)
def files_of_three_processes_go_on_in_two(rank: int) -> None:
    """Fewer processes, whose shards begin within others': each option, and several at once."""
    kwargs: dict[str, Any] = {
        "master": {"master_weights": "float32", "ema_decay": 0.9},
        "remainder": {"master_weights": "remainder", "ema_decay": 0.9},
        "chance": {"rounding": "stochastic", "ema_decay": 0.9},
        "chance in states": {"rounding": "stochastic", "state_dtype": "bfloat16", "ema_decay": 0.9},
    }
    all_runs = {
        name: Runs(lambda ps, its=its: fusedopt.AdamW(ps, lr=0.01, **its), torch.bfloat16)  # type: ignore[misc]
        for name, its in kwargs.items()
    }
    assert_resumes(all_runs, (2,), save(all_runs, 3))


@case(ranks=4)
def codes_of_three_processes_go_on_in_two(rank: int) -> None:
    """Beside a master or params rounded by chance, which come with their bits as averages do."""
    for kwargs in ({"master_weights": "float32"}, {"rounding": "stochastic"}):

        def make(params: Any, kwargs: Any = kwargs) -> Optimizer:
            return fusedopt.AdamW(params, lr=0.01, state_dtype="int8", ema_decay=0.9, **kwargs)

        runs, where = Runs(make, torch.bfloat16, wide=6000), folder()
        saved: list[Any] = [None]
        if (mesh := mesh_of_first(3)) is not None:
            its, optimizer = runs.start(mesh)
            step(its, optimizer, 3)
            dcp.save({"one": runs.file(its, optimizer, None)}, checkpoint_id=where, process_group=mesh.get_group())
            saved = [_wholes(optimizer)]
        torch.distributed.broadcast_object_list(saved)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="the state was saved by another number of processes")
            resumed = resume({"one": runs}, 2, where)
        for its, optimizer in resumed.values():
            assert params_of(optimizer)[0].to_local().numel() in (6000, 12000)  # type: ignore[attr-defined]
            for mine, wanted in zip(_wholes(optimizer), saved[0], strict=True):
                assert list(mine) == list(wanted)
                for key, value in wanted.items():
                    if "exp_avg" in key:
                        assert (mine[key] - value).abs().max() <= value.abs().max() / 16
                    else:
                        assert_identical(mine[key], value)
            step(its, optimizer, 1, first=3)


def _wholes(optimizer: Optimizer) -> list[dict[str, Any]]:
    """Of each param itself and what a file has of it."""
    states = optimizer.state_dict()["state"].values()
    params = params_of(optimizer)
    return [
        {"param": whole(p.detach()), **{key: whole(value) for key, value in state.items()}}
        for p, state in zip(params, states, strict=True)
    ]


@case(ranks=4)
def flat_files(rank: int) -> None:
    def make(params: Any) -> Optimizer:
        groups = [{"params": params[:2]}, {"params": params[2:], "lr": 0.02, "betas": (0.8, 0.9)}]
        return fusedopt.AdamW(groups, lr=0.01, ema_decay=0.9)

    all_runs = {"one": Runs(make)}
    where = save(all_runs, 2, FLAT)
    for its in resume(all_runs, 3, where, FLAT).values():
        keys = get_optimizer_state_dict(*its, options=FLAT)
        assert {"state.0.weight.exp_avg", "state.0.weight.ema", "param_groups.2.weight.betas"} <= set(keys)
    assert_resumes(all_runs, (1, 3), where, FLAT)


@case(ranks=4)
def torchs_files_and_ours_are_each_others(rank: int) -> None:
    for name in ("AdamW", "SGD", "RMSprop"):
        kwargs = {"lr": 0.01, **({} if name == "AdamW" else {"momentum": 0.9})}

        def ours(params: Any, name: Any = name, kwargs: Any = kwargs) -> Optimizer:
            optimizer: Optimizer = getattr(fusedopt, name)(params, **kwargs)
            return optimizer

        def theirs(params: Any, name: Any = name, kwargs: Any = kwargs) -> Optimizer:
            optimizer: Optimizer = getattr(torch.optim, name)(params, **kwargs, foreach=False)
            return optimizer

        all_runs = {"one": Runs(ours)}
        for saves, resumes, options in ((theirs, ours, None), (ours, theirs, FLAT)):
            where = save(all_runs, 2, options, saves)
            for its in resume(all_runs, 3, where, options, resumes).values():
                step(*its, 2, first=3)
                for p, q in zip(params_of(its[1]), params_of(all_runs["one"].reference[1]), strict=True):
                    torch.testing.assert_close(whole(p.detach()), q.detach())


@case(ranks=4)
def saved_while_training_goes_on(rank: int) -> None:
    """What is stepped while the file is written is not in it."""
    require_2_7("writes tensors of the CPU as they are when their turn comes, and copies none before")
    runs, where, mesh = Runs(lambda ps: fusedopt.AdamW(ps, lr=0.01, ema_decay=0.9)), folder(), mesh_of_first(4)
    its, optimizer = runs.start(mesh)
    step(its, optimizer, 3)
    future: Any = dcp.async_save({"one": runs.file(its, optimizer, None)}, checkpoint_id=where)
    step(its, optimizer, 2, first=3)
    future.result()
    torch.distributed.barrier()
    assert_resumes({"one": runs}, (3,), where)


@case(ranks=4)
def one_file_of_all_for_another_number_of_processes(rank: int) -> None:
    """full_state_dict and cpu_offload: saved of four processes, loaded by a run without any, and by four.

    Lower halves are in it as int32, since no backend gathers 16-bit integers.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    for runs in (
        Runs(lambda ps: fusedopt.AdamW(ps, lr=0.01, ema_decay=0.9)),
        Runs(lambda ps: fusedopt.AdamW(ps, lr=0.01, master_weights="remainder"), torch.bfloat16),
        Runs(lambda ps: fusedopt.Adagrad(ps, lr=0.01, master_weights="float32", ema_decay=0.9), torch.bfloat16),
    ):
        its, optimizer = runs.start(mesh_of_first(4))
        step(its, optimizer, 3)
        model_file = copy.deepcopy(get_model_state_dict(its, options=options))
        file = copy.deepcopy(get_optimizer_state_dict(its, optimizer, options=options))
        if rank == 0:
            alone = runs.start(None)
            alone[0].load_state_dict(model_file)
            # It takes the tensors themselves.
            set_optimizer_state_dict(*alone, copy.deepcopy(file))
            step(*alone, 2, first=3)
            runs.assert_reference(alone)
        everywhere = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
        resumed = runs.start(mesh_of_first(4))
        set_model_state_dict(resumed[0], model_file, options=everywhere)
        set_optimizer_state_dict(*resumed, file, options=everywhere)
        step(*resumed, 2, first=3)
        runs.assert_reference(resumed)


@case(ranks=4)
def factors_go_on(rank: int) -> None:
    """Adafactor's, of which every process has the whole: the same bits in any number of them, until the next sums."""
    for kwargs, dtype in (({}, torch.float32), ({"master_weights": "float32", "ema_decay": 0.9}, torch.bfloat16)):

        def make(params: Any, kwargs: Any = kwargs) -> Optimizer:
            return fusedopt.Adafactor(params, lr=0.01, **kwargs)

        runs = {"one": Runs(make, dtype)}
        where = save(runs, 2)
        for count in (1, 3, 4):
            for its in resume(runs, count, where).values():
                step(*its, 2, first=3)
                for p, q in zip(params_of(its[1]), params_of(runs["one"].reference[1]), strict=True):
                    rtol = 1e-2 if dtype == torch.bfloat16 else 2e-6
                    torch.testing.assert_close(whole(p.detach()), q.detach(), rtol=rtol, atol=1e-6)
                    mine, wanted = its[1].state[p], runs["one"].reference[1].state[q]
                    assert sorted(mine) == sorted(wanted)
                    for key in ("row_var", "col_var") if q.dim() > 1 else ():
                        torch.testing.assert_close(whole(mine[key]), wanted[key], rtol=2e-6, atol=0)


@case(ranks=4)
def codes_are_numbers_in_a_file(rank: int) -> None:
    """Which any number of processes reads; each makes codes of its own blocks of them, as exact as codes are.

    A code has three bits after the leading one, of four bits it has one.
    """
    for code, step_of_code in (("int8", 1 / 16), ("int4", 1 / 4)):

        def make(params: Any, code: Any = code) -> Optimizer:
            return fusedopt.AdamW(params, lr=0.01, state_dtype=code)

        # A weight of 3 x 6,000 is in codes on one process and on three, and its last row on a third of them.
        all_runs = {"one": Runs(make, wide=6000)}
        where = save(all_runs, 2)
        plain = resume(all_runs, 4, where, make=lambda ps: fusedopt.AdamW(ps, lr=0.01))["one"]
        numbers_of = {key: whole(plain[1].state[params_of(plain[1])[0]][key]) for key in ("exp_avg", "exp_avg_sq")}
        for count in (1, 3):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                resumed = resume(all_runs, count, where)
            told = {str(one.message) for one in caught if "the state was saved" in str(one.message)}
            assert bool(told) == bool(resumed)
            for one in told:
                assert re.match(
                    f"the state was saved by another number of processes, or not in codes: 'exp_avg(_sq)?' is rounded "
                    rf"to u?{code} once more, in blocks of what this process has",
                    one,
                )
            for its in resumed.values():
                weight = params_of(its[1])[0]
                state = its[1].state[weight]
                assert (state["exp_avg"].dtype, state["exp_avg_sq"].dtype) == (torch.int8, torch.uint8)
                file = its[1].state_dict()["state"][0]
                for key, wanted in numbers_of.items():
                    assert file[key].placements == weight.placements
                    assert (whole(file[key]) - wanted).abs().max() <= step_of_code * wanted.abs().max()
                step(*its, 1, first=3)
