"""The bytes that a step moves at the least, counted from what a rule declares and keeps, and those that it takes."""

from __future__ import annotations

import torch

from .. import _C
from .contest import Contest


def traffic(optimizer: torch.optim.Optimizer) -> int:
    """The bytes that a step cannot do without: param read and written, gradient read, states read and written.

    The states are those that one of our optimizers holds after its first step, less what its rule declares as counters;
    torch's hold the same. Of a sparse gradient only its rows move. 0 for LBFGS, whose passes depend on its history.
    """
    if isinstance(optimizer, torch.optim.LBFGS):
        return 0
    counters = _C.rules().get(getattr(optimizer, "_rule", ""), {"counters": ["step"]})["counters"]
    total = 0.0
    for group in optimizer.param_groups:
        for param in group["params"]:
            state = optimizer.state[param].items()
            kept = [value for key, value in state if key not in counters and value is not None]
            grad = param.grad._values() if param.grad.is_sparse else param.grad
            share = grad.numel() / param.numel() if param.numel() else 0
            total += grad.nbytes + share * 2 * (param.nbytes + sum(value.nbytes for value in kept))
    return round(total)


def footprint(contest: Contest, contestants: int) -> int:
    """About the bytes of memory that the contest takes, at Adam's two states."""
    element = contest.dtype.itemsize
    state = (contest.state_dtype or contest.dtype).itemsize
    # The values to begin with and the pool of gradients are made in float32.
    return contest.suite.elements * (contestants * (2 * element + 2 * state) + 2 * element + 4)
