"""The kernel alone: a rule over one tensor of as many elements as a suite has, without an optimizer around it.

One tensor, since what a call over many would add is the time that handing over their lists takes, which no step spends.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import fusedopt

from .. import _C
from .placement import CONTIGUOUS, MISALIGNED, STRIDED, place

if TYPE_CHECKING:
    from .contest import Contest

KERNEL = "fusedopt, kernel alone"
# Longer than any vector, and no multiple of one.
PROBE = 1027


class Sweep:
    """Params, gradient and states of one flat tensor, and the call of the rule's kernel on them."""

    def __init__(self, contest: Contest, elements: int) -> None:
        def draw() -> Tensor:
            value = torch.randn(elements).to(contest.dtype)
            return place(value, contest.layout, contest.suite.offset)

        self.param, grad = draw().requires_grad_(), draw()
        self.param.grad = grad
        self.optimizer: Any = getattr(fusedopt, contest.optimizer)([self.param], **contest.arguments)
        # Makes the states.
        self.optimizer.step()
        kept = self.optimizer.state[self.param]
        (group,) = self.optimizer.param_groups
        facts = _C.rules()[self.optimizer._rule]
        for name in facts["states"]:
            if contest.state_dtype and kept.get(name) is not None:
                kept[name] = kept[name].to(contest.state_dtype)
        self.states = [kept[name] for name in facts["states"] if kept.get(name) is not None]
        hypers = [hyper({**self.optimizer._rule_defaults, **group}, name) for name in facts["hypers"]]
        sweep = _C.Sweep(self.optimizer._rule)
        # The step that the next one would be; always the same one, since time does not depend on it.
        self.arguments = (hypers, [1.0] * len(facts["counters"]), [self.param], [grad], [self.states])
        self.call = sweep

    def __call__(self) -> None:
        self.call(*self.arguments)

    def has_the_bits(self) -> bool:
        """Whether the kernel does what the next step does, which a variant that depends on arguments does not."""
        tensors = [self.param.detach(), *self.states]
        before = [tensor.clone() for tensor in tensors]
        self()
        swept = [tensor.clone() for tensor in tensors]
        for tensor, old in zip(tensors, before, strict=True):
            tensor.copy_(old)
        self.optimizer.step()
        return all(tensor.equal(bits) for tensor, bits in zip(tensors, swept, strict=True))


def hyper(known: Mapping[str, Any], name: str) -> float:
    """``betas.1`` is the second of ``betas``."""
    key, _, index = name.partition(".")
    value = known[key]
    return float(value[int(index)] if index else value)


def kernel_lacks(contest: Contest, device: torch.device) -> str:
    """Why the kernel cannot be called alone; empty if it can."""
    if device.type != "cpu":
        return "device time says it on CUDA"
    rule = _C.rules().get(getattr(getattr(fusedopt, contest.optimizer), "_rule", ""))
    if rule is None or rule["sums"] or contest.suite.rows or set(rule["counters"]) - {"step"}:
        return "a step takes more than one plain sweep"
    if contest.layout not in (CONTIGUOUS, MISALIGNED, STRIDED):
        return f"one flat tensor cannot be {contest.layout}"
    try:
        same = Sweep(contest, PROBE).has_the_bits()
    except ValueError as error:  # of Muon's params, which must be matrices
        return str(error)
    return "" if same else "a sweep takes the variant of the rule that has no options"
