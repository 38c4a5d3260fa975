"""The options that optimizers take beside torch's arguments, as tests combine them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from cases import Case
from runs import random_gradients, train
from support import params_of
from torch import Tensor


@dataclass(frozen=True)
class Options:
    """`kwargs` for params of `dtypes`; `codes`: the storage of states that can be in codes, where a rule has any."""

    name: str
    kwargs: dict[str, Any] = field(default_factory=dict)
    codes: str = ""
    dtypes: tuple[torch.dtype, ...] = (torch.bfloat16, torch.float16)

    def of(self, case: Case) -> dict[str, Any]:
        kinds = case.rule["kinds"]
        # What is subtracted cannot be rounded.
        kinds = {**kinds, "square_avg": "", "grad_avg": ""} if case.kwargs.get("centered") else kinds
        names = [name for name in case.states if kinds[name] in ("average", "magnitude")] if self.codes else []
        return {**self.kwargs, **({"state_dtype": dict.fromkeys(names, self.codes)} if names else {})}

    def __str__(self) -> str:
        return self.name


EVERY = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

OPTIONS = [
    Options("master", {"master_weights": "float32"}),
    Options("remainder", {"master_weights": "remainder"}, dtypes=(torch.bfloat16,)),
    Options("kahan", {"rounding": "kahan"}),
    Options("stochastic", {"rounding": "stochastic", "rounding_seed": 7}),
    Options("bfloat16-state", {"state_dtype": "bfloat16"}, dtypes=(torch.float32, torch.float64)),
    Options("float16-state", {"state_dtype": "float16"}, dtypes=(torch.float32, torch.bfloat16)),
    Options("float32-state", {"state_dtype": torch.float32}, dtypes=EVERY),
    Options("codes", codes="int8", dtypes=EVERY),
    Options("codes-stochastic", {"rounding": "stochastic"}, codes="int8", dtypes=(torch.float32, torch.bfloat16)),
    Options("four-bit-codes", codes="int4", dtypes=(torch.float32, torch.float64)),
    Options("four-bit-codes-stochastic", {"rounding": "stochastic"}, codes="int4", dtypes=(torch.bfloat16,)),
    Options("average", {"ema_decay": 0.9}, dtypes=EVERY),
    Options("stochastic-average", {"rounding": "stochastic", "ema_decay": 0.9}, dtypes=(torch.bfloat16,)),
    Options("master-average-codes", {"master_weights": "float32", "ema_decay": 0.9}, codes="int8"),
    Options("remainder-average", {"master_weights": "remainder", "ema_decay": 0.5}, dtypes=(torch.bfloat16,)),
]
PAIRS = [(options, dtype) for options in OPTIONS for dtype in options.dtypes]

SIZES = [(5, 7), (), (4096,), (3, 1700)]


def values(dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(size, generator=generator).to(dtype) for size in SIZES]


def steps(optimizer: Any, count: int = 4, dtype: torch.dtype | None = None, seed: int = 1) -> Any:
    train(optimizer, random_gradients(params_of(optimizer), count, seed, dtype))
    return optimizer


def same(a: Any, b: Any) -> bool:
    if not isinstance(a, Tensor):
        return bool(a == b)
    return a.dtype == b.dtype and torch.equal(a, b)
