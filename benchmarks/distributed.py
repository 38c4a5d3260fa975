"""Sharded training in two processes of one thread each, against torch in the same rounds; what compiling a step costs.

python benchmarks/distributed.py [--quick] [--only TEXT] [--seconds N] [--out FILE]
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from judging import best_of, verdict
from memory import status
from rich.table import Table
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer

import fusedopt
from fusedopt.bench.machine import machine
from fusedopt.bench.method import Contestant, Effort, Ratio, compare, interleave, summarise, warm_up
from fusedopt.bench.suites import SUITES
from fusedopt.bench.tables import console

PROCESSES = 2
OURS, CONTROL, LOCAL = "fusedopt", "fusedopt again", "fusedopt over local tensors"
# What a clipped step cannot do without, what it is besides, and the two one after the other.
REDUCES, UNCLIPPED, BOTH = "an all-reduce of two numbers", "fusedopt, not clipped", "fusedopt, not clipped, and that"
FUSED, FOREACH, COMPILED = "torch fused", "torch foreach", "torch compiled"
IMPLEMENTATIONS = {FUSED: {"fused": True}, FOREACH: {"foreach": True}}
MAX_NORM = 1.0


@dataclass(frozen=True)
class Workload:
    """An optimizer over shards, ours and torch's; `at_most`: ours may take so many times what the rival does."""

    name: str
    optimizer: str
    against: Sequence[str]
    asked: float
    kwargs: dict[str, Any] = field(default_factory=dict)
    shapes: Sequence[tuple[int, ...]] = ((64, 64), (64,)) * 50
    clips: bool = False
    offloads: bool = False
    at_most: bool = False


SMALL = ((32, 16),) * 1000  # 256 elements of each in a process
WORKLOADS = (
    Workload("100 params: AdamW", "AdamW", [FUSED], 25),
    Workload("100 params: clip to norm 1 and AdamW", "AdamW", [FUSED], 25, clips=True),
    Workload("1,000 params: AdamW", "AdamW", [FUSED, FOREACH], 25, shapes=SMALL),
    Workload("1,000 params: SGD momentum", "SGD", [FOREACH], 25, {"lr": 0.01, "momentum": 0.9}, SMALL),
    Workload("1,000 params: RMSprop", "RMSprop", [FOREACH], 40, shapes=SMALL),
    Workload("1,000 params: AdamW, sharded or not", "AdamW", [LOCAL], 1.3, shapes=SMALL, at_most=True),
    Workload(
        "gpt2 offloaded: bfloat16 params, float32 master",
        "AdamW",
        [FUSED],
        1.3,
        shapes=SUITES["gpt2"].shapes,
        offloads=True,
    ),
)
LIFE = "1,000 steps: live objects and resident memory"
COMPILING = "torch.compile of a step of 200 params: first call"


class Sharded(nn.Module):
    """Params of given shapes, as fully_shard leaves them."""

    def __init__(self, shapes: Sequence[tuple[int, ...]], dtype: torch.dtype) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.params = nn.ParameterList(Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes)


def shards(workload: Workload, dtype: torch.dtype = torch.float32) -> list[Any]:
    """Params with gradients; all contestants have the same numbers."""
    from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard

    policies: dict[str, Any] = {"offload_policy": CPUOffloadPolicy(pin_memory=False)} if workload.offloads else {}
    module = Sharded(workload.shapes, dtype)
    fully_shard(module, **policies)
    params: list[Any] = list(module.parameters())
    for p in params:
        p.grad = p.detach() * 0.1
    return params


def local(params: Sequence[Any]) -> list[Parameter]:
    made = [Parameter(p.to_local().detach().clone()) for p in params]
    for p, q in zip(made, params, strict=True):
        p.grad = q.grad.to_local().clone()
    return made


def ours(workload: Workload, params: list[Any]) -> Callable[[], object]:
    options: dict[str, Any] = {"max_grad_norm": MAX_NORM} if workload.clips else {}
    if workload.offloads:
        options = {"master_weights": "float32", "state_dtype": "float32"}
    optimizer: Optimizer = getattr(fusedopt, workload.optimizer)(params, **workload.kwargs, **options)
    return optimizer.step


def theirs(workload: Workload, params: list[Any], implementation: dict[str, bool]) -> Callable[[], object]:
    cls: Any = getattr(torch.optim, workload.optimizer)
    if workload.offloads:
        return step_on_copies(cls, workload.kwargs, params, implementation)
    optimizer: Optimizer = cls(params, **workload.kwargs, **implementation)
    if not workload.clips:
        return optimizer.step

    def call() -> None:
        torch.nn.utils.clip_grad_norm_(params, MAX_NORM)
        optimizer.step()

    return call


def step_on_copies(cls: Any, kwargs: Any, params: list[Any], implementation: dict[str, bool]) -> Callable[[], object]:
    """float32 shards that are stepped, and casts of gradients and params between them and those in bfloat16."""
    wide: list[Any] = [Parameter(p.detach().float()) for p in params]
    for p in wide:
        p.grad = torch.empty_like(p)
    optimizer = cls(wide, **kwargs, **implementation)
    # Copies of local tensors, which cost torch least.
    pairs = [[(p.grad.to_local(), q.grad.to_local()) for p, q in zip(wide, params, strict=True)]]
    pairs.append([(q.detach().to_local(), p.detach().to_local()) for p, q in zip(wide, params, strict=True)])

    def call() -> None:
        torch._foreach_copy_([to for to, _ in pairs[0]], [of for _, of in pairs[0]])
        optimizer.step()
        torch._foreach_copy_([to for to, _ in pairs[1]], [of for _, of in pairs[1]])

    return call


def contest(workload: Workload) -> tuple[list[Contestant], dict[str, list[Any]]]:
    dtype = torch.bfloat16 if workload.offloads else torch.float32
    params = {name: shards(workload, dtype) for name in (OURS, *workload.against, CONTROL)}
    calls = {}
    for name, its in params.items():
        if name == LOCAL:
            params[name] = its = local(its)
        rival = IMPLEMENTATIONS.get(name)
        calls[name] = ours(workload, its) if rival is None else theirs(workload, its, rival)
    if workload.clips:
        told = torch.zeros(2, dtype=torch.float64)
        calls[REDUCES] = lambda: torch.distributed.all_reduce(told)
        calls[UNCLIPPED] = step = ours(replace(workload, clips=False), shards(workload))
        calls[BOTH] = lambda: (step(), torch.distributed.all_reduce(told))
    # No process begins a call before all are there.
    return [Contestant(name, call, torch.distributed.barrier) for name, call in calls.items()], params


def rounds_within(contestants: Sequence[Contestant], seconds: float, most: int) -> int:
    """As many rounds as a time allows, by the first process's clock; the same number in all."""
    start = time.perf_counter()
    warm_up(contestants, 1)
    taken = torch.tensor(time.perf_counter() - start, dtype=torch.float64)
    torch.distributed.broadcast(taken, 0)
    return int(min(most, max(5, seconds / max(float(taken), 1e-9))))


def measure(workload: Workload, seconds: float, most: int) -> dict[str, Any]:
    contestants, params = contest(workload)
    warm_up(contestants, 2)
    tolerance = 2**-7 if workload.offloads else 1e-5
    for name in workload.against:
        for p, q in zip(params[OURS], params[name], strict=True):
            torch.testing.assert_close(shard_of(p), shard_of(q), rtol=tolerance, atol=tolerance)
    # Where steps are short, a turn is several calls: the first of them finds its caches cold.
    repeat = 1 if workload.offloads else 5
    count = rounds_within(contestants, seconds / repeat, most)
    rounds = interleave(contestants, Effort(rounds=count, seconds=math.inf, repeat=repeat))
    rival = best_of(rounds, workload.against)
    pair = (OURS, rival) if workload.at_most else (rival, OURS)
    ratio = compare(rounds[pair[0]], rounds[pair[1]])
    control = compare(rounds[CONTROL], rounds[OURS])
    return {
        "workload": workload.name,
        "against": rival,
        "params": len(params[OURS]),
        "elements_of_a_process": sum(shard_of(p).numel() for p in params[OURS]),
        "ratio": asdict(ratio),
        "asked": workload.asked,
        "at_most": workload.at_most,
        "verdict": verdict(ratio, workload.asked, workload.at_most, control),
        "nanoseconds": rounds,
    }


def shard_of(param: Any) -> Tensor:
    tensor: Tensor = param.detach()
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def life(steps: int, workload: Workload) -> dict[str, Any]:
    """What a process has more of after so many steps: objects that the collector knows, and resident bytes."""
    found = {}
    for name in (OURS, FUSED, FOREACH):
        params = shards(workload)
        rival = IMPLEMENTATIONS.get(name)
        step = ours(workload, params) if rival is None else theirs(workload, params, rival)
        locals_ = [p.grad.to_local() for p in params]

        def backward(params: list[Any] = params, grads: list[Tensor] = locals_) -> None:
            # Which makes new DTensors in every step.
            for p, grad in zip(params, grads, strict=True):
                p.grad = type(p.data).from_local(
                    grad, p.device_mesh, p.placements, run_check=False, shape=p.shape, stride=p.stride()
                )

        for _ in range(3):
            backward()
            step()
        gc.collect()
        before = len(gc.get_objects()), status("VmRSS")
        for _ in range(steps):
            backward()
            step()
        gc.collect()
        found[name] = {"objects": len(gc.get_objects()) - before[0], "bytes": status("VmRSS") - before[1]}
        # As nobody keeps what was counted.
        del params, step, locals_, backward
    return {"workload": LIFE, "steps": steps, "more": found, "verdict": grows(found[OURS], steps)}


def grows(more: dict[str, int], steps: int) -> str:
    """A leak is at least one object or eight bytes a step."""
    return "met" if more["objects"] < steps / 10 and more["bytes"] < 8 * 1024 * steps else "missed"


def compiling(count: int, backend: str) -> dict[str, Any]:
    """Seconds of the first call of a compiled step, whose code nothing has compiled before."""
    import torch._inductor.config as inductor

    inductor.force_disable_caches = True
    # Other things than steps are imported for the first of them.
    torch.compile(lambda x: x + 1, backend=backend)(torch.ones(1))
    seconds = {}
    for name in (OURS, COMPILED):
        params = [Parameter(torch.ones(64, 64)) for _ in range(count)]
        for p in params:
            p.grad = torch.ones_like(p)
        cls = fusedopt.AdamW if name == OURS else torch.optim.AdamW
        optimizer = cls(params, lr=torch.tensor(1e-3))
        optimizer.step()
        torch._dynamo.reset()
        step = torch.compile(optimizer.step, backend=backend)
        start = time.perf_counter()
        step()
        seconds[name] = time.perf_counter() - start
    ratio = seconds[OURS] / seconds[COMPILED]
    exact = Ratio(ratio, ratio, ratio)
    return {
        "workload": COMPILING,
        "against": COMPILED,
        "backend": backend,
        "params": count,
        "seconds": seconds,
        "ratio": asdict(exact),
        "asked": 0.1,
        "at_most": True,
        "verdict": verdict(exact, 0.1, at_most=True),
    }


def process(rank: int, folder: str, quick: bool, only: str, seconds: float) -> None:
    """One of the processes; the first keeps what it measures."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=PROCESSES)
    chosen = [w for w in WORKLOADS if only in w.name]
    findings = []
    for workload in chosen:
        if quick:
            cut = [tuple(min(n, 8) for n in shape) for shape in workload.shapes[:10]]
            workload = replace(workload, shapes=cut)
        findings.append(measure(workload, seconds / len(WORKLOADS), 5 if quick else 61))
        tell(rank, findings[-1])
    if only in LIFE:
        findings.append(life(20 if quick else 1000, WORKLOADS[0]))
        tell(rank, findings[-1])
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    if rank == 0:
        Path(folder, "findings").write_text(json.dumps(findings))


def tell(rank: int, finding: dict[str, Any]) -> None:
    if rank == 0:
        print(f"{finding['workload']}: {finding['verdict']}", flush=True)


def table_of(findings: Sequence[dict[str, Any]]) -> Table:
    table = Table("workload", "against", "rival, ms", "ours, ms", "ratio (90 % interval)", "asked")
    for finding in findings:
        if "nanoseconds" in finding:
            times = [summarise(finding["nanoseconds"][name]).median / 1e6 for name in (finding["against"], OURS)]
        elif "seconds" in finding:
            times = [1e3 * finding["seconds"][name] for name in (finding["against"], OURS)]
        else:
            told = [
                f"{name}: {its['objects']} and {its['bytes'] / 2**20:.1f} MiB" for name, its in finding["more"].items()
            ]
            table.add_row(finding["workload"], "; ".join(told), "", "", "", f"no growth: {finding['verdict']}")
            continue
        ratio = finding["ratio"]
        interval = f"{ratio['value']:.2f}x ({ratio['low']:.2f} to {ratio['high']:.2f})"
        asked = f"at {'most' if finding['at_most'] else 'least'} {finding['asked']:g}x: {finding['verdict']}"
        table.add_row(finding["workload"], finding["against"], *(f"{ms:.3g}" for ms in times), interval, asked)
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few small params: everything runs and proves nothing")
    parser.add_argument("--only", default="", help="workloads whose names have this text")
    parser.add_argument("--seconds", type=float, default=40.0, help="of the paired rounds together (default: 40)")
    parser.add_argument("--out", type=Path, help="where to write machine, command and raw rounds as JSON")
    options = parser.parse_args(arguments)
    seconds = 2.0 if options.quick else options.seconds
    findings = []
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing: Any = torch.multiprocessing
        multiprocessing.spawn(process, (folder, options.quick, options.only, seconds), nprocs=PROCESSES)
        findings += json.loads(Path(folder, "findings").read_text())
    if options.only in COMPILING:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        findings.append(compiling(4, "eager") if options.quick else compiling(200, "inductor"))
        torch.set_num_threads(threads)
    console().print(table_of(findings))
    if options.out:
        command = shlex.join(["python", *sys.argv])
        facts = {**machine(command), "processes": PROCESSES, "threads": 1}
        options.out.write_text(json.dumps({"machine": facts, "findings": findings}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
