"""Bytes a param that params, gradients and states take under each set of options, as the table of docs/memory.md."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from figures import ROOT, put
from torch import Tensor
from torch.nn import Parameter

import fusedopt

PAGE = ROOT / "docs" / "memory.md"
MARK = "memory"
# A matrix of a model of this size: Adafactor's states are a row and a column of it.
SIDE = 2048
MODEL = 1_000_000_000


@dataclass(frozen=True)
class Setting:
    """An optimizer, its options and the dtype of its params."""

    optimizer: str
    dtype: torch.dtype = torch.float32
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def call(self) -> str:
        return f"{self.optimizer}({', '.join(f'{name}={value!r}' for name, value in self.options.items())})".replace(
            "'", '"'
        )


BFLOAT16 = torch.bfloat16
SETTINGS = [
    Setting("AdamW"),
    Setting("AdamW", torch.float32, {"state_dtype": "bfloat16"}),
    Setting("AdamW", torch.float32, {"state_dtype": "int8"}),
    Setting("AdamW", torch.float32, {"state_dtype": "int4"}),
    Setting("AdamW", BFLOAT16),
    Setting("AdamW", BFLOAT16, {"rounding": "stochastic"}),
    Setting("AdamW", BFLOAT16, {"rounding": "kahan"}),
    Setting("AdamW", BFLOAT16, {"master_weights": "float32"}),
    Setting("AdamW", BFLOAT16, {"master_weights": "remainder"}),
    Setting("AdamW", BFLOAT16, {"master_weights": "remainder", "state_dtype": "int8"}),
    Setting("AdamW", BFLOAT16, {"master_weights": "remainder", "state_dtype": "int4"}),
    Setting("AdamW", BFLOAT16, {"rounding": "stochastic", "state_dtype": "int8"}),
    Setting("SGD", torch.float32, {"momentum": 0.9}),
    Setting("Lion"),
    Setting("Lion", BFLOAT16, {"rounding": "stochastic", "state_dtype": "int8"}),
    Setting("Adafactor"),
    Setting("Adafactor", BFLOAT16, {"rounding": "stochastic"}),
]


def _bytes(tensors: list[Tensor]) -> int:
    return sum(storage.nbytes() for storage in {t.data_ptr(): t.untyped_storage() for t in tensors}.values())


def measure(setting: Setting) -> tuple[float, float, float]:
    """Bytes of the param, of its gradient and of all that is kept beside it, for each element."""
    param = Parameter(torch.zeros(SIDE, SIDE, dtype=setting.dtype))
    optimizer = getattr(fusedopt, setting.optimizer)([param], **setting.options)
    param.grad = torch.ones_like(param)
    optimizer.step()
    states = [value for value in optimizer.state[param].values() if isinstance(value, Tensor)]
    sizes = [_bytes([param.detach()]), _bytes([param.grad]), _bytes(states)]
    own, grad, kept = (size / param.numel() for size in sizes)
    return own, grad, kept


def row(setting: Setting) -> str:
    own, grad, kept = measure(setting)
    dtype = str(setting.dtype).removeprefix("torch.")
    gigabytes = [MODEL * size / 1e9 for size in (own, grad, kept, own + grad + kept, own + kept)]
    return f"| `{setting.call}` | {dtype} | {' | '.join(f'{size:.1f}' for size in gigabytes)} |"


def table() -> str:
    return "\n".join(
        [
            "| optimizer | params | params, GB | gradients, GB | states, GB | in all, GB | without gradients, GB |",
            "|---|---|---|---|---|---|---|",
            *map(row, SETTINGS),
        ]
    )


def main(page: Path = PAGE) -> None:
    page.write_text(put(page.read_text(), MARK, table()))


if __name__ == "__main__":
    main()
