"""``compare``: a user's own params, measured as the suites are."""

from __future__ import annotations

import itertools
import math
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .extras import missing
from .machine import machine
from .method import nothing
from .output import Output
from .placement import CHANNELS_LAST, CONTIGUOUS
from .report import BenchError, Report
from .runner import Runner
from .selection import DTYPES, check_numbers, choose_baselines, clock_of, contests_of, device_facts
from .suites import Suite

Params = nn.Module | Iterable[Tensor] | Iterable[tuple[str, Tensor]] | Iterable[Mapping[str, Any]]


def compare(
    params_or_model: Params,
    optimizers: str | Mapping[str, Mapping[str, Any]] | Sequence[str] = "AdamW",
    baselines: Sequence[str] | None = None,
    *,
    rounds: int = 30,
    seconds: float = 60.0,
    cold: bool = True,
    show: bool = True,
    out: str | Path | None = None,
) -> Report:
    """Time fusedopt's step against others over params like yours.

    Shapes, dtype, device, the number of groups and the memory format are read off the params, and nothing of them is
    changed: each contestant steps tensors of its own that look like them, with random values and gradients, in
    interleaved rounds. The speed-up is the ratio of medians t_theirs / t_ours.

    Args:
        params_or_model: a module, or what an optimizer takes: tensors, (name, tensor) pairs or param groups. Those that
            require no gradient are left out. All of one floating-point dtype, on one device.
        optimizers: a name such as "AdamW", several, or a dict from names to their arguments under torch's names.
            Default: "AdamW".
        baselines: names as ``python -m fusedopt.bench --list`` shows them; None takes all that are there.
            Default: None.
        rounds: how often each contestant has its turn, at least 1. Default: 30.
        seconds: the time budget. What does not fit into it is named in ``failures``. Default: 60.0.
        cold: new gradient tensors before every step, as after a backward pass, and on a CPU nothing in the caches,
            rather than the same gradients again. Default: True.
        show: print the tables, where rich is installed. Default: True.
        out: a folder for ``results.json`` and the plots, which need matplotlib; None writes nothing. Default: None.

    Returns:
        A Report: ``findings`` (speed-ups with intervals, the A/A control, GB/s), ``measurements`` (the raw rounds) and
        ``failures``. ``report.show()`` prints its tables again.

    Raises:
        BenchError: no params, or params of several dtypes or devices; an optimizer or a baseline that is not known or
            not there; a number that is not positive; a folder that cannot be written.

    Example:
        >>> from fusedopt import bench
        >>> model = torch.nn.Linear(8, 4)
        >>> report = bench.compare(model, baselines=["torch fused"], rounds=3, show=False)
        >>> [finding.against for finding in report.findings]
        ['torch fused']

    Source: intervals by the bootstrap (Efron, "Bootstrap methods: another look at the jackknife", 1979).
    """
    check_numbers(rounds=rounds, seconds=seconds)
    groups = groups_of(params_or_model)
    params = list(itertools.chain(*groups))
    suite = suite_of(params)
    clock = clock_of(str(only("device", {p.device for p in params})))
    dtype = str(only("dtype", {p.dtype for p in params})).removeprefix("torch.")
    if dtype not in DTYPES:
        raise BenchError(f"params are of {dtype}; float32, float64, bfloat16 and float16 can be compared")
    contests = contests_of(
        [suite],
        [optimizers] if isinstance(optimizers, str) else optimizers,
        choose_baselines(baselines),
        dtypes=[dtype],
        layouts=[layout_of(params)],
        groups=len(groups) if len(groups) > 1 else None,
        fresh=cold,
        cold=cold and clock.device.type == "cpu",
    )
    report = Report(machine(shlex.join(["fusedopt.bench.compare", *sys.argv])))
    report.machine.update(device_facts(clock))
    folder = None if out is None else Output(Path(out))
    runner = Runner(clock, report, rounds, seconds, nothing if folder is None else lambda: folder.save(report))
    runner.run(contests)
    report.complete = True
    runner.save()
    if folder is not None:
        folder.draw(report)
    if show and not missing("rich"):
        report.show()
    return report


def groups_of(given: Params) -> list[list[Tensor]]:
    """The params of each group that train, without their names."""
    if isinstance(given, nn.Module):
        given = list(given.parameters())
    items: list[Any] = [given] if isinstance(given, Tensor) else list(given)
    if items and isinstance(items[0], Mapping):
        groups = [groups_of(item["params"])[:1] or [[]] for item in items]
        return [group for (group,) in groups if group]
    tensors = [item[1] if isinstance(item, tuple) else item for item in items]
    trained = [tensor for tensor in tensors if tensor.requires_grad]
    return [trained] if trained else []


def suite_of(params: Sequence[Tensor]) -> Suite:
    if not params:
        raise BenchError("params_or_model holds no tensor that requires a gradient; there is nothing to step")
    shapes = tuple(tuple(p.shape) for p in params)
    elements = sum(math.prod(shape) for shape in shapes)
    return Suite("your-model", shapes, len(shapes), elements)


def only(what: str, found: set[Any]) -> Any:
    if len(found) > 1:
        names = ", ".join(sorted(str(value) for value in found))
        raise BenchError(f"params are of more than one {what}: {names}; compare those of each apart")
    return next(iter(found))


def layout_of(params: Sequence[Tensor]) -> str:
    """Channels last if that is how the convolutions' weights lie."""
    kernels = [p for p in params if p.dim() == 4 and not p.is_contiguous()]
    last = [p for p in kernels if p.is_contiguous(memory_format=torch.channels_last)]
    return CHANNELS_LAST if last and len(last) == len(kernels) else CONTIGUOUS
