"""The questions: what is measured, against whom, and the ratio that fusedopt has to reach."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from contest import BARE, Contest
from protocol import Effort
from suites import SUITES

FUSED = ("torch fused",)
ALL_THREE = ("torch for-loop", "torch foreach", "torch fused")
ALL_TWO = ("torch for-loop", "torch foreach")  # RMSprop has no fused implementation in torch
DEFAULT = ("torch default",)

MOMENTUM = {"momentum": 0.9}

# Enough rounds for a steady median where a step is short; the long ones repeat well.
EFFORTS = {
    "8x256": Effort(rounds=100, repeat=30, warmup=20),
    "1000x256": Effort(rounds=30, repeat=15),
    "480groups": Effort(rounds=40, repeat=15),
    "resnet50": Effort(rounds=40),
    "gpt2": Effort(rounds=20),
    "1x32Mi": Effort(rounds=30),
    "training-loop": Effort(rounds=40),
}
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
    fresh: bool = False,
    atol: float = 1e-5,
) -> Contest:
    return Contest(SUITES[suite], optimizer, rivals, MOMENTUM if momentum else {}, dtype, fresh, atol=atol)


BIG_ADAMW = contest("1x32Mi", "AdamW", (*FUSED, *DEFAULT, BARE))

QUESTIONS = (
    Question(contest("8x256", "AdamW", FUSED), FUSED, 12),
    Question(contest("8x256", "AdamW", FUSED, fresh=True), FUSED, 12),
    Question(contest("1000x256", "AdamW", FUSED), FUSED, 30),
    Question(contest("1000x256", "AdamW", FUSED, fresh=True), FUSED, 30),
    Question(contest("1000x256", "SGD", ALL_THREE, momentum=True), ALL_THREE, 15),
    Question(contest("1000x256", "RMSprop", ALL_TWO), ALL_TWO, 50),
    Question(contest("480groups", "AdamW", FUSED), FUSED, 60),
    Question(contest("480groups", "AdamW", FUSED, fresh=True), FUSED, 60),
    Question(contest("resnet50", "AdamW", ALL_THREE), ALL_THREE, 1.1),
    Question(contest("resnet50", "AdamW", ALL_THREE, fresh=True), ALL_THREE, 1.1),
    Question(contest("resnet50", "RMSprop", ALL_TWO), ALL_TWO, 2.6),
    Question(contest("resnet50", "AdamW", FUSED, dtype=torch.bfloat16), FUSED, 2),
    Question(contest("gpt2", "AdamW", FUSED), FUSED, 1.0),
    Question(contest("gpt2", "Adafactor", ALL_TWO, atol=1e-3), ALL_TWO, 2),
    Question(BIG_ADAMW, FUSED, 1.0),
    Question(BIG_ADAMW, DEFAULT, 5),
    Question(BIG_ADAMW, (BARE,), 1.1, at_most=True),
    Question(contest("1x32Mi", "SGD", FUSED, momentum=True), FUSED, 1.0),
    Question(contest("1x32Mi", "RMSprop", ALL_TWO), ALL_TWO, 4.5),
)

CONTESTS = {question.contest.name: question.contest for question in QUESTIONS}
TRAINING, MEMORY = "training-loop", "memory"
NAMES = (*CONTESTS, TRAINING, MEMORY)

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
