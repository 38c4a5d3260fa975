"""AdamW as compile_rule makes it from its rule, against the class that the package has built in."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import fusedopt
from fusedopt.bench.baselines import BASELINES, CONTROL, OURS, Baseline, Ours
from fusedopt.bench.contest import Contest

# The package's own class, as the rival of one compiled from a rule.
BUILT_IN = "built-in class"
ADAM_RULE = Path(__file__).resolve().parent.parent / "csrc" / "rules" / "adam.h"
# What AdamW defaults to; a rule's header need not have defaults.
ADAMW = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2}


@functools.cache
def compiled_adamw() -> Callable[..., torch.optim.Optimizer]:
    cls: Callable[..., torch.optim.Optimizer] = fusedopt.compile_rule(ADAM_RULE, name="CompiledAdamW")
    return functools.partial(cls, amsgrad=0, decoupled_weight_decay=1, bias_correction=1, caution=0)


class FromRule(Baseline):
    def make(self, contest: Contest, groups: list[Any]) -> torch.optim.Optimizer:
        return compiled_adamw()(groups, **contest.arguments)


@dataclass(frozen=True)
class CompiledContest(Contest):
    """Ours is AdamW compiled from its rule by compile_rule."""

    @property
    def name(self) -> str:
        return f"{super().name}-compiled"


def baselines_of(contest: Contest) -> Mapping[str, Baseline]:
    """Who takes part in a contest, by name."""
    if not isinstance(contest, CompiledContest):
        return BASELINES
    return {OURS: FromRule(OURS), CONTROL: FromRule(CONTROL), BUILT_IN: Ours(BUILT_IN)}
