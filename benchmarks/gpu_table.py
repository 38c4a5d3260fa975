"""The questions that a GPU answers: what is measured on which clock, against whom, and what fusedopt has to reach."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch

import fusedopt
from fusedopt.bench.baselines import COMPILED, FOREACH, FUSED, GRAPHED, LOOP, OURS_GRAPHED, absent
from fusedopt.bench.clock import COLD, DEVICE, HOST, WALL
from fusedopt.bench.contest import Contest
from fusedopt.bench.method import Effort
from fusedopt.bench.streaming import COPY
from fusedopt.bench.suites import SUITES, Suite

F32, BF16 = torch.float32, torch.bfloat16

# The device's clock repeats well. The host's does not, and its steps are short.
ON_DEVICE = Effort(rounds=20, repeat=3, seconds=4.0, warmup=6)
ON_HOST = Effort(rounds=30, repeat=9, seconds=4.0, warmup=6)
QUICK = Effort(rounds=4, seconds=0.3, minimum=3, warmup=6)

# How far an A/A control may be from 1 before nothing is concluded.
SPREAD = {DEVICE: 1.05, COLD: 1.05, WALL: 1.25, HOST: 1.25}

# From this many bytes of traffic a step is bound by memory, and its bandwidth means something.
LARGE = 2**28

SPEEDUP, SHARE, TIME = "speedup", "share", "time"


@dataclass(frozen=True)
class Goal:
    """What is asked of ours on one clock; ``asked`` None asks for nothing and reports the figure.

    SPEEDUP: to be that many times faster than ``against``. SHARE: to move that share of the bytes a second that a copy
    moves. TIME: to take so many microseconds at most.
    """

    mode: str
    against: str
    asked: float | None = None
    kind: str = SPEEDUP


@dataclass(frozen=True)
class Trial:
    """One set of contestants and all that is asked about them."""

    contest: Contest
    goals: tuple[Goal, ...]
    tag: str = ""

    @property
    def name(self) -> str:
        return self.contest.name + self.tag

    @property
    def modes(self) -> list[str]:
        return list(dict.fromkeys(goal.mode for goal in self.goals))

    def rivals(self, mode: str) -> list[str]:
        """Who takes part on one clock beside ours and its control."""
        return [r for r in self.contest.rivals if any(g.mode == mode and g.against == r for g in self.goals)]

    def cut(self) -> Trial:
        return replace(self, contest=replace(self.contest, suite=self.contest.suite.cut()))


def trial(
    suite: str | Suite,
    optimizer: str,
    goals: Iterable[Goal],
    *,
    dtype: torch.dtype = F32,
    state: torch.dtype | None = None,
    fresh: bool = False,
    tag: str = "",
    resting: bool = False,
    **arguments: float | str,
) -> Trial:
    goals = tuple(goals)
    rivals = tuple(dict.fromkeys(goal.against for goal in goals if goal.against))
    parameters = SUITES[suite] if isinstance(suite, str) else suite
    contest = Contest(parameters, optimizer, rivals, arguments, dtype, fresh, state, resting=resting)
    return Trial(contest, goals, tag)


def without_fused() -> list[str]:
    """Our optimizers that torch has with a foreach but no fused kernel: whose constructors know one word only."""
    theirs = [(name, getattr(torch.optim, name, None)) for name in fusedopt.__all__]
    words = [(name, inspect.signature(cls).parameters) for name, cls in theirs if inspect.isclass(cls)]
    return [name for name, known in words if "foreach" in known and "fused" not in known]


def share(asked: float | None) -> Goal:
    return Goal(DEVICE, COPY, asked, SHARE)


def against(rival: str, *modes: str, asked: float | None = None) -> list[Goal]:
    return [Goal(mode, rival, asked) for mode in modes]


MODELS = ("llama7b-shard8", "gpt2", "bert-large", "vit-l16")
AS_FAST = against(FUSED, DEVICE, asked=1.0)
RESNET_F32 = [*against(FUSED, DEVICE, COLD, asked=1.0), *against(FUSED, WALL, asked=3.0)]
THOUSAND = [*against(FUSED, WALL, asked=5.0), Goal(HOST, "", 30.0, TIME), *against(FUSED, HOST, DEVICE, COLD)]
THOUSAND_FRESH = [*against(FUSED, WALL, HOST)]
# Whose AdamW runs on a GPU.
FOREIGN = ("apex", "TransformerEngine")
FOREIGN_THERE = [name for name in FOREIGN if name not in absent()]

# Whose second moments are zero: as fast as others.
RESTING = [(F32, 0.93), (BF16, 0.90)]

TRIALS = [
    trial("llama7b-shard8", "Adam", [share(0.93)]),
    trial("llama7b-shard8", "Adam", [share(0.90)], dtype=BF16),
    trial("llama7b-shard8", "Adam", [share(0.90)], dtype=BF16, state=F32),
    *(trial("llama7b-shard8", "Adam", [share(asked)], dtype=dtype, resting=True) for dtype, asked in RESTING),
    trial("1000x1024", "AdamW", THOUSAND),
    trial("465groups", "AdamW", [*against(FUSED, WALL, asked=20.0), *against(FUSED, HOST)]),
    *(trial(model, "AdamW", AS_FAST, dtype=dtype) for model in MODELS for dtype in (F32, BF16)),
    trial("resnet50", "AdamW", RESNET_F32),
    trial("resnet50", "AdamW", against(FUSED, DEVICE, COLD, asked=1.0), dtype=BF16),
    *(trial("gpt2", name, against(FOREACH, DEVICE, asked=2.5)) for name in without_fused()),
    trial("1000x1024", "AdamW", THOUSAND_FRESH, fresh=True),
    trial("resnet50", "AdamW", against(FUSED, WALL, HOST, DEVICE), fresh=True),
    trial("gpt2", "SGD", against(FUSED, DEVICE)),
    trial("gpt2", "SGD", against(FUSED, DEVICE), tag="-momentum", momentum=0.9),
    trial("465groups", "AdamW", against(FUSED, WALL, HOST), fresh=True),
    # Reported without goals. A for-loop launches more kernels than a queue holds, so its device time cannot be had.
    trial("1000x1024", "AdamW", against(LOOP, WALL) + against(FOREACH, WALL), tag="-others"),
    trial(
        "resnet50",
        "AdamW",
        [goal for name in (FOREACH, GRAPHED, OURS_GRAPHED, *FOREIGN_THERE) for goal in against(name, DEVICE, WALL)],
        tag="-others",
    ),
    trial("resnet50", "AdamW", against(COMPILED, DEVICE, WALL), tag="-compiled"),
    # Bound by the bus and by the host's memory.
    trial(
        "gpt2",
        "AdamW",
        [Goal(WALL, "", None, TIME)],
        dtype=BF16,
        tag="-offload",
        offload="cpu",
        master_weights="float32",
    ),
]

# The geometric mean of ours against torch fused over these.
MEAN = "adamw-bfloat16, geometric mean"
MEAN_ASKED = 1.1
MEAN_OF = [f"{model}-adamw-bfloat16, {DEVICE}" for model in (*MODELS, "resnet50")]

ALIGNMENT, ALIGNMENT_ASKED = "misaligned", 0.5
ALIGNED, MISALIGNED = (trial(suite, "AdamW", []).contest for suite in ("64x1Mi", "64x1Mi-misaligned"))

BANDWIDTH = "copy"
COPY_SIZES = [gib * 2**30 for gib in (1, 2, 4, 8)]

# An advance and an update, however many tensors and groups there are.
LAUNCHES, LAUNCHES_ASKED = "launches", 2
LAUNCH_SUITES = ("1000x1024", "465groups", "resnet50")

NAMES = (BANDWIDTH, LAUNCHES, ALIGNMENT, *(t.name for t in TRIALS))
