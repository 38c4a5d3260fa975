"""The questions: what is measured, against whom, and the ratio that fusedopt has to reach."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from compiled import ADAMW, BUILT_IN, CompiledContest

from fusedopt import _C
from fusedopt.bench.contest import Contest
from fusedopt.bench.method import Effort
from fusedopt.bench.streaming import BARE
from fusedopt.bench.suites import SUITES

FUSED = ("torch fused",)
ALL_THREE = ("torch for-loop", "torch foreach", "torch fused")
ALL_TWO = ("torch for-loop", "torch foreach")  # where torch has no fused implementation
DEFAULT = ("torch default",)  # also where torch has but one

MOMENTUM = {"momentum": 0.9}

# One iteration a step, so that steps are alike; the closure costs nothing.
ONE_ITERATION = {"lr": 1e-3, "max_iter": 1, "history_size": 10, "tolerance_grad": 0.0}

# By suites, or for one contest. Enough rounds for a steady median where a step is short; the long ones repeat well.
EFFORTS = {
    "8x256": Effort(rounds=100, repeat=30, warmup=20),
    "1000x256": Effort(rounds=30, repeat=15),
    "480groups": Effort(rounds=40, repeat=15),
    "699ramp": Effort(rounds=40),
    "resnet50": Effort(rounds=40),
    "gpt2": Effort(rounds=20),
    "1x32Mi": Effort(rounds=30),
    # Seconds a step, nearly all of it in products of matrices, which repeat well.
    "48matrices": Effort(rounds=10, seconds=60, minimum=3, warmup=1),
    "2matrices": Effort(rounds=10, seconds=60, minimum=3, warmup=1),
    # The repeats are for ours, which takes about a millisecond; torch's is long.
    "embedding": Effort(rounds=30, repeat=5, seconds=8),
    "embedding-uncoalesced": Effort(rounds=30, repeat=5, seconds=8),
    # Until the history is full.
    "resnet50-lbfgs": Effort(rounds=15, warmup=12),
}
IN_THE_LOOP = Effort(rounds=40)
QUICK = Effort(rounds=5, seconds=4.0, minimum=2, warmup=2)


@dataclass(frozen=True)
class Question:
    """Is the best of ``against`` at least ``asked`` times slower than ours (``at_most``: is ours at most that slow)?"""

    contest: Contest
    against: tuple[str, ...]
    asked: float
    at_most: bool = False


def contest(
    suite: str,
    optimizer: str,
    rivals: tuple[str, ...],
    *,
    momentum: bool = False,
    dtype: torch.dtype = torch.float32,
    cold: bool = False,
    atol: float = 1e-5,
) -> Contest:
    return Contest(SUITES[suite], optimizer, rivals, MOMENTUM if momentum else {}, dtype, cold, atol=atol, cold=cold)


def compiled(suite: str) -> Contest:
    return CompiledContest(SUITES[suite], "AdamW", (BUILT_IN,), ADAMW)


# What is asked on the large tensor, where torch's implementations of these take up to a second.
SLOW = {"Rprop": 20, "Adadelta": 6, "NAdam": 4.5, "RAdam": 4.5, "Adamax": 3, "ASGD": 1.5}
# Of these it is asked how near they are to memory's own speed, too: they move as many bytes as the bare loop, so that
# the ratio to torch is torch's time over that of memory, which no kernel changes.
STREAMED = ("Rprop", "RAdam")
BIG_SLOW = {name: contest("1x32Mi", name, (*ALL_TWO, BARE) if name in STREAMED else ALL_TWO) for name in SLOW}
# They and Adagrad make 16 rows, so each gets less time than a row has otherwise.
SLOW_SECONDS = 8.0

# A CPU without instructions for bfloat16 takes torch's Muon half a minute for a step of these two.
MATRICES = "48matrices" if _C.multiplies_bfloat16() else "2matrices"

BIG_ADAMW = contest("1x32Mi", "AdamW", (*FUSED, *DEFAULT, BARE))

QUESTIONS = (
    Question(contest("8x256", "AdamW", FUSED), FUSED, 12),
    Question(contest("8x256", "AdamW", FUSED, cold=True), FUSED, 12),
    Question(contest("1000x256", "AdamW", FUSED), FUSED, 30),
    Question(contest("1000x256", "AdamW", FUSED, cold=True), FUSED, 20),
    Question(contest("1000x256", "SGD", ALL_THREE, momentum=True), ALL_THREE, 15),
    Question(contest("1000x256", "SGD", ALL_THREE, momentum=True, cold=True), ALL_THREE, 12),
    Question(contest("1000x256", "RMSprop", ALL_TWO), ALL_TWO, 50),
    Question(contest("1000x256", "RMSprop", ALL_TWO, cold=True), ALL_TWO, 45),
    Question(contest("699ramp", "AdamW", FUSED, cold=True), FUSED, 10),
    Question(contest("480groups", "AdamW", FUSED), FUSED, 60),
    Question(contest("480groups", "AdamW", FUSED, cold=True), FUSED, 60),
    Question(contest("resnet50", "AdamW", ALL_THREE), ALL_THREE, 1.1),
    Question(contest("resnet50", "AdamW", ALL_THREE, cold=True), ALL_THREE, 1.1),
    Question(contest("resnet50", "RMSprop", ALL_TWO), ALL_TWO, 2.6),
    Question(contest("resnet50", "AdamW", FUSED, dtype=torch.bfloat16), FUSED, 2),
    # Products of 25 million numbers in float32 differ by how they are added, and a dozen steps carry that on.
    Question(Contest(SUITES["resnet50"], "LBFGS", DEFAULT, ONE_ITERATION, atol=2e-4), DEFAULT, 1.5),
    Question(contest("gpt2", "AdamW", FUSED), FUSED, 1.0),
    Question(contest("gpt2", "Adafactor", ALL_TWO, atol=1e-3), ALL_TWO, 2),
    Question(BIG_ADAMW, FUSED, 1.0),
    Question(BIG_ADAMW, DEFAULT, 5),
    Question(BIG_ADAMW, (BARE,), 1.1, at_most=True),
    Question(contest("1x32Mi", "SGD", FUSED, momentum=True), FUSED, 1.0),
    Question(contest("1x32Mi", "RMSprop", ALL_TWO), ALL_TWO, 4.5),
    *(Question(BIG_SLOW[name], ALL_TWO, asked) for name, asked in SLOW.items()),
    *(Question(BIG_SLOW[name], (BARE,), 1.1, at_most=True) for name in STREAMED),
    Question(contest("1x32Mi", "Adagrad", FUSED), FUSED, 1.0),
    *(Question(contest("1000x256", name, ALL_TWO), ALL_TWO, 40) for name in SLOW),
    Question(contest("1000x256", "Adagrad", ALL_THREE), ALL_THREE, 40),
    # torch has Muon from 2.9 on.
    *(Question(contest(MATRICES, name, DEFAULT), DEFAULT, 1.2) for name in ("Muon",) if hasattr(torch.optim, name)),
    Question(contest("embedding", "SparseAdam", DEFAULT, cold=True), DEFAULT, 3),
    Question(contest("embedding-uncoalesced", "SparseAdam", DEFAULT, cold=True), DEFAULT, 3),
    Question(compiled("1x32Mi"), (BUILT_IN,), 0.97),
    Question(compiled("1000x256"), (BUILT_IN,), 0.97),
)


CONTESTS = {question.contest.name: question.contest for question in QUESTIONS}
# Networks that are trained, by the suites of their params; how much faster than torch's a step in the loop is to be.
TRAINED = {"training-loop": "training-loop", "training-resnet50": "resnet50", "training-vit-b16": "vit-b16"}
IN_LOOP = 1.25
MEMORY = "memory"
NAMES = (*CONTESTS, *TRAINED, MEMORY)


def effort_of(name: str, quick: bool = False) -> Effort:
    """What the rounds of a measurement may take."""
    if quick or name in TRAINED:
        return QUICK if quick else IN_THE_LOOP
    contest = CONTESTS[name]
    effort = EFFORTS.get(name, EFFORTS[contest.suite.name])
    # The first call of a turn finds cold caches, and so would each of several.
    effort = replace(effort, rounds=max(effort.rounds, 40), repeat=1) if contest.cold else effort
    return replace(effort, seconds=SLOW_SECONDS) if contest.optimizer in (*SLOW, "Adagrad") else effort


# A first step may hold this much above the state it makes.
MEMORY_ALLOWANCE = 2**20
MEMORY_SUITES = ("1x32Mi", "resnet50")


@dataclass(frozen=True)
class Temporaries:
    """Does the rival take at least ``asked`` times as much memory above the state as we do, in a later step?"""

    suite: str
    optimizer: str
    rival: str
    asked: float


TEMPORARIES = (Temporaries("gpt2", "Adafactor", "torch for-loop", 10),)
