"""Is a result right? Each contestant takes some steps beside a float64 run before it is timed.

The reference is torch's own for-loop class on float64 copies of the same values and gradients. Its fused classes could
not be one: on a CPU they are wrong in several ways (16-bit SGD moves only the ends of tensors, strides are ignored),
none of which the for-loop shares, and in float64 there is no rounding that a tolerance would have to leave room for.
Where torch has no class of that name, as for Lion, the reference is this package's own in float64, so that a rival is
at least held to the same formula.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from .baselines import BASELINES, DEFAULT, LOOP, OURS, Baseline, first_line
from .clock import Clock
from .contest import Contest
from .entrants import Entrant, Stage
from .suites import Suite

# Two more than a graph is captured after; the first three get gradients of their own.
STEPS = 6
# So small that a 16-bit param still resolves a step of a thousandth.
SCALE = 0.01
# Longer than any vector, with ends that fill none.
SHAPES = ((1027,), (33, 65), (6, 4, 3, 3), (5,))
MATRICES = ((33, 65), (64, 32))
TABLES = ((50, 7), (40, 3))
# The share of the largest update by which an element may be off, beside a few units of its last place, and the share of
# elements that may be off by more: in 16 bits each operation of the for-loop rounds, and signs near 0 flip.
# Counters such as the product of momenta are kept in float32, also by torch, which float64 params can tell.
TOLERANCE = {torch.float64: (1e-6, 0.0), torch.float32: (1e-3, 0.0)}
HALF = (0.06, 0.01)
# Muon's matrix products are in bfloat16 whatever the param's dtype.
ROUNDED_INSIDE = ("Muon",)


def small(contest: Contest) -> Contest:
    """The same contest over a few tensors that have every kind of end."""
    suite = contest.suite
    shapes = TABLES if suite.rows else MATRICES if contest.optimizer in ROUNDED_INSIDE else SHAPES
    elements = sum(math.prod(shape) for shape in shapes)
    kind = Suite("check", shapes, len(shapes), elements, suite.group_each, suite.offset, 8 * bool(suite.rows))
    return replace(contest, suite=replace(kind, coalesced=suite.coalesced))


def reference_for(contest: Contest, device: torch.device) -> Baseline:
    for name in (LOOP, DEFAULT):
        if not BASELINES[name].lacks(contest, device):
            return BASELINES[name]
    return BASELINES[OURS]


def verify(contest: Contest, names: Iterable[str], clock: Clock) -> dict[str, str]:
    """What is wrong with each of ``names``, in words; empty where nothing is."""
    contest = small(contest)
    stage = Stage(contest, clock.device, SCALE)
    baseline = reference_for(contest, clock.device)
    reference = Entrant(contest, baseline, stage.values, stage.pool, torch.float64)
    # As it is called itself: a rival's way to step may belong to a graph or a compiler.
    take_steps(reference, OURS, clock)
    verdicts = {}
    for name in names:
        try:
            entrant = stage.entrant(name)
            take_steps(entrant, name, clock)
        except Exception as error:  # whatever another package raises says that it cannot
            verdicts[name] = f"failed: {first_line(error)}"
            continue
        verdicts[name] = compare_with(reference, entrant, stage.values)
    return verdicts


def take_steps(entrant: Entrant, name: str, clock: Clock) -> None:
    contestant = entrant.contestant(name, clock)
    for number in range(STEPS):
        contestant.prepare()
        if number >= entrant.turn:
            # In place for the sake of graphs, and always, since optimi for one leaves its gradients overwritten.
            entrant.renew(in_place=True)
        contestant.call()
    clock.synchronize()


@torch.no_grad()
def compare_with(reference: Entrant, entrant: Entrant, start: list[Tensor]) -> str:
    contest = entrant.contest
    relative, stray = HALF if contest.optimizer in ROUNDED_INSIDE else TOLERANCE.get(contest.dtype, HALF)
    eps = torch.finfo(contest.dtype).eps
    for expected, actual, before in zip(reference.params, entrant.params, start, strict=True):
        moved = float((expected - before).abs().max())
        error = (actual.double() - expected).abs()
        # NaN is no smaller than anything.
        off = ~(error <= relative * moved + 4 * eps * expected.abs())
        share = float(off.double().mean())
        if share > stray:
            worst = float(error.nan_to_num(nan=math.inf).max()) / moved
            return (
                f"wrong: after {STEPS} steps {100 * share:.0f} % of the elements of a tensor of shape "
                f"{tuple(expected.shape)} are off by up to {worst:.2g} times its largest update"
            )
    return ""
