"""The kernel with next to nothing around it: a step over one tensor of as many elements as a suite has."""

from __future__ import annotations

import torch

import fusedopt

from .. import _C
from .contest import Contest
from .placement import CONTIGUOUS, MISALIGNED, STRIDED, place

KERNEL = "fusedopt, one tensor"


class OneTensor:
    """An optimizer of one flat tensor, to be stepped."""

    def __init__(self, contest: Contest, elements: int) -> None:
        def draw() -> torch.Tensor:
            value = torch.randn(elements).to(contest.dtype)
            return place(value, contest.layout, contest.suite.offset)

        param = draw().requires_grad_()
        param.grad = draw()
        self.optimizer: torch.optim.Optimizer = getattr(fusedopt, contest.optimizer)([param], **contest.arguments)
        # Makes the states.
        self.optimizer.step()
        for name in _C.states(self.optimizer._rule) if contest.state_dtype else ():
            if (kept := self.optimizer.state[param].get(name)) is not None:
                self.optimizer.state[param][name] = kept.to(contest.state_dtype)

    def __call__(self) -> None:
        self.optimizer.step()


def kernel_lacks(contest: Contest, device: torch.device) -> str:
    """Why there is no such step; empty if there is one."""
    if device.type != "cpu":
        return "device time says it on CUDA"
    rule = _C.rules().get(getattr(getattr(fusedopt, contest.optimizer), "_rule", ""))
    sums = rule is not None and (all(rule["measures"]) or contest.arguments.get("caution"))
    if rule is None or sums or rule["factored"] or contest.suite.rows:
        return "a step takes more than one plain pass"
    if contest.layout not in (CONTIGUOUS, MISALIGNED, STRIDED):
        return f"one flat tensor cannot be {contest.layout}"
    try:
        OneTensor(contest, 1)
    except ValueError as error:  # of Muon's params, which must be matrices
        return str(error)
    return ""
