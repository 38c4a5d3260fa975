"""What several of the formulas share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

State = dict[str, Any]
Hypers = Mapping[str, Any]
Rule = Callable[[Tensor, Tensor, State, Hypers], Tensor]


def penalised(p: Tensor, g: Tensor, decay: float) -> Tensor:
    """Without a penalty, an infinite param must not spoil the gradient: 0 * inf is NaN."""
    return g + decay * p if decay != 0 else g


def decayed(p: Tensor, g: Tensor, h: Hypers) -> tuple[Tensor, Tensor]:
    if h.get("decoupled_weight_decay"):
        return p * (1 - float(h["lr"]) * h["weight_decay"]), g
    return p, penalised(p, g, h["weight_decay"])


def moving(direction: Tensor, g: Tensor, h: Hypers) -> tuple[Tensor, float]:
    """Of a cautious step: 1 for the elements that move and 0 for the rest, and how much further they go."""
    if not h.get("caution"):
        return torch.ones_like(g), 1.0
    moves = direction.sign() * g.sign() > 0
    return moves.to(g.dtype), 1 / max(1e-3, moves.double().mean().item())
