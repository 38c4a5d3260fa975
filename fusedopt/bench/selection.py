"""From words to contests: which suites, baselines and devices there are, and what a request for others is told."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

import fusedopt

from .baselines import (
    BASELINES,
    COMPILED,
    CONTROL,
    DEFAULT,
    FOREACH,
    FOREIGN,
    FUSED,
    GRAPHED,
    LOOP,
    OURS,
    absent,
)
from .clock import Clock, Cpu, Cuda
from .contest import Contest
from .kernel import KERNEL
from .placement import LAYOUTS
from .report import BenchError
from .suites import SUITES, Suite

# In the order of their size. Those of the promises that are variations of others are asked for by name.
STANDARD = (
    *("1x64", "1x1Mi", "1000x64", "1000x1024", "10000x64", "465groups", "misaligned", "resnet50", "vit-b16", "gpt2"),
    *("1x64Mi", "vit-l16", "bert-large", "llama7b-shard8", "llama7b"),
)
QUICK = ("1x64", "1000x64", "465groups", "misaligned", "resnet50")
STANDARD_BASELINES = (KERNEL, LOOP, FOREACH, FUSED, COMPILED, GRAPHED, *(foreign.name for foreign in FOREIGN))
KNOWN_BASELINES = (KERNEL, *(name for name in BASELINES if name not in (OURS, CONTROL)))
# torch.compile alone takes longer than a quick run may.
QUICK_BASELINES = (KERNEL, LOOP, FOREACH, FUSED)
OPTIMIZERS = tuple(
    name
    for name in fusedopt.__all__
    if isinstance(cls := getattr(fusedopt, name), type)
    and issubclass(cls, torch.optim.Optimizer)
    and name != "GenericOptimizer"  # a class for users to derive from
)
# A name, or what params and gradients are kept in with another for the states.
DTYPES: dict[str, tuple[torch.dtype, torch.dtype | None]] = {
    "float32": (torch.float32, None),
    "float64": (torch.float64, None),
    "bfloat16": (torch.bfloat16, None),
    "float16": (torch.float16, None),
    "bfloat16+float32": (torch.bfloat16, torch.float32),
    "float16+float32": (torch.float16, torch.float32),
}
# What an optimizer is given beside its defaults: SGD without momentum is another algorithm than the one people use,
# and a step of LBFGS is one iteration.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "SGD": {"lr": 1e-3, "momentum": 0.9},
    "LARS": {"lr": 1e-3, "momentum": 0.9},
    "LBFGS": {"lr": 1e-3, "max_iter": 1, "history_size": 10, "tolerance_grad": 0.0},
}


def choose(kind: str, asked: Iterable[str], known: Sequence[str]) -> list[str]:
    """The names asked for, without repetitions; BenchError for one that is not known."""
    names = list(dict.fromkeys(asked))
    for name in names:
        if name not in known:
            alike = [other for other in known if other.lower() == name.lower()]
            near = alike or difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"one of {', '.join(known)}"
            raise BenchError(f"{kind} {name!r} is not known; {hint}")
    return names


def choose_baselines(asked: Sequence[str] | None, quick: bool = False) -> tuple[str, ...]:
    """Baselines that are not installed take no part; one that was asked for by name is a BenchError then."""
    names = choose("baseline", asked or (QUICK_BASELINES if quick else STANDARD_BASELINES), KNOWN_BASELINES)
    reasons = {name: BASELINES[name].absent() for name in names if name in BASELINES}
    for name, reason in reasons.items():
        if reason and asked:
            raise BenchError(f"baseline {name!r} cannot take part: {reason}; leave it out or install it")
    return tuple(name for name in names if not reasons.get(name))


def clock_of(device: str) -> Clock:
    """The clock of a device; BenchError where there is no such device."""
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise BenchError(f"device {device!r} is not known; use cpu, cuda or cuda:0") from error
    if found.type == "cpu":
        return Cpu()
    if found.type != "cuda":
        raise BenchError(f"device {device!r} has no clock here; use cpu, cuda or cuda:0")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        raise BenchError(f"device {device!r}: torch {torch.__version__} finds no GPU; use --device cpu")
    if found.index is not None and found.index >= count:
        raise BenchError(f"device {device!r}: torch finds {count} GPUs, cuda:0 to cuda:{count - 1}")
    return Cuda(found.index)


def device_facts(clock: Clock) -> dict[str, Any]:
    """What the report says of the machine beside the CPU's facts, and which packages are missing there."""
    missing = {"absent": absent()}
    return missing if clock.device.type == "cpu" else {**missing, "gpu": clock.facts()}


def check_numbers(**numbers: float | None) -> None:
    for name, number in numbers.items():
        if number is not None and number <= 0:
            raise BenchError(f"{name} is {number:g}; it must be greater than 0")


def check_threads(threads: int) -> None:
    check_numbers(threads=threads)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or threads
    if threads > cores:
        raise BenchError(
            f"threads is {threads}, and there are {cores} cores; threads that wait for cores are no measure"
        )


def contests_of(
    suites: Iterable[Suite],
    optimizers: Mapping[str, Mapping[str, Any]] | Iterable[str],
    baselines: tuple[str, ...],
    *,
    dtypes: Iterable[str] = ("float32",),
    layouts: Iterable[str] = ("contiguous",),
    groups: int | None = None,
    fresh: bool = True,
    cold: bool = False,
) -> list[Contest]:
    """Every combination."""
    given = optimizers if isinstance(optimizers, Mapping) else {name: ARGUMENTS.get(name, {}) for name in optimizers}
    names = choose("optimizer", given, OPTIMIZERS)
    kinds = [DTYPES[name] for name in choose("dtype", dtypes, tuple(DTYPES))]
    places = choose("layout", layouts, LAYOUTS)
    return [
        Contest(
            suite,
            name,
            rivals_of(baselines, name),
            dict(given[name]),
            dtype,
            fresh,
            state,
            layout=layout,
            groups=groups,
            cold=cold,
        )
        for suite in suites
        for name in names
        for dtype, state in kinds
        for layout in places
    ]


def rivals_of(baselines: tuple[str, ...], optimizer: str) -> tuple[str, ...]:
    """Where torch has but one implementation, that one under its own name."""
    only = (LOOP in baselines or FOREACH in baselines) and hasattr(torch.optim, optimizer)
    if only and BASELINES[LOOP].lacks(Contest(SUITES["1x64"], optimizer, ()), torch.device("cpu")):
        kept = tuple(name for name in baselines if name not in (LOOP, FOREACH, FUSED))
        return tuple(dict.fromkeys((*kept, DEFAULT)))
    return baselines
