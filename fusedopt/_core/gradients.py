"""Gradients that no engine clears while it steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch


def clear_grads(groups: Iterable[Mapping[str, Any]]) -> None:
    """Set all gradients to zero where they lie; as torch's zero_grad(), leave those of create_graph=True no graph."""
    with torch.no_grad():
        for p in [p for group in groups for p in group["params"] if p.grad is not None]:
            with torch.inference_mode(torch.is_inference_mode_enabled() or p.grad.is_inference()):
                if p.grad.requires_grad:
                    p.grad = p.grad.detach()
                p.grad.zero_()
