"""Clipping inside a step: the norm that an optimizer measures, and what it divides gradients by."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch.optim.optimizer import Optimizer

from .. import _C
from .. import _clipping as clipping
from .divided import constructed_by_zero, refuse_part


def check_max_grad_norm(value: float | None) -> float | None:
    """The number as a float, or an error."""
    text = f"max_grad_norm is {value!r}; give a number of at least 0, or None for no clipping"
    if isinstance(value, (str, list, tuple)):
        raise TypeError(text)
    if value is not None and not value >= 0:
        raise ValueError(text)
    return None if value is None else float(value)


class ClippedStep(Optimizer):
    """An optimizer that can hold the norm of all gradients together to a maximum while it steps."""

    _max_grad_norm: float | None = None
    # Whether ZeroRedundancyOptimizer has constructed it, of some of the params.
    _of_zero = False
    # What a GradScaler has read for the step that it is about to make.
    _measured: clipping.Measurement | None = None
    # Of the last step with max_grad_norm, in the units of unscaled gradients; on a GPU it stays there, unread.
    grad_norm: torch.Tensor | None = None

    @property
    def max_grad_norm(self) -> float | None:
        """What the norm of all gradients together is clipped to inside the update, which does not rewrite them.

        The coefficient is that of `clip_grad_norm_`, of gradients as they are after a GradScaler's unscaling;
        `grad_norm` then holds the norm that the last step found, before clipping. None: no clipping.

        Raises:
            ValueError: set to a number that is negative or NaN, or what is here is not all of the model.
            TypeError: set to text.

        Example:
            >>> param = torch.nn.Parameter(torch.ones(2))
            >>> optimizer = fusedopt.SGD([param], lr=1.0)
            >>> optimizer.max_grad_norm = 0.5
            >>> param.grad = torch.tensor([3.0, 4.0])
            >>> optimizer.step()
            >>> optimizer.grad_norm, param.detach()
            (tensor(5.), tensor([0.7000, 0.6000]))
        """
        return self._max_grad_norm

    @max_grad_norm.setter
    def max_grad_norm(self, value: float | None) -> None:
        self._max_grad_norm = self._checked_maximum(value)

    def _checked_maximum(self, value: float | None) -> float | None:
        """A value for `max_grad_norm`, or an error, before anything is written."""
        checked = check_max_grad_norm(value)
        if checked is not None:
            # None before torch's constructor has run, which adds them.
            self._refuse_part(self.__dict__.get("param_groups", ()))
        return checked

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        # torch's constructor adds all groups by this.
        if constructed_by_zero():
            self._of_zero = True
        super().add_param_group(param_group)
        try:
            if self._max_grad_norm is not None:
                self._refuse_part(self.param_groups)
        except ValueError:
            del self.param_groups[-1]
            raise

    def _refuse_part(self, groups: Iterable[dict[str, Any]]) -> None:
        refuse_part(
            groups,
            "max_grad_norm would be held against the norm of those alone;",
            "leave it out and call clip_grad_norm_: FullyShardedDataParallel has its own, and beside "
            "ZeroRedundancyOptimizer every process has all gradients",
            self._of_zero,
        )

    def _step_clipped(self, plan: _C.Plan, clears_grad: bool) -> torch.Tensor | None:
        """The gradients' norm after a step that found it in its own look at them; None, and no step, elsewhere."""
        if self._max_grad_norm is None or self._measured is not None:
            return None
        return plan.step_clipped(self, self._max_grad_norm, clears_grad)

    def _measure(self) -> clipping.Measurement | None:
        """What `max_grad_norm` needs to know of the gradients; None without it."""
        if self._max_grad_norm is None:
            return None
        return clipping.measure(self.param_groups, self._measured)

    def _keep_measured(self, measured: clipping.Measurement | None) -> None:
        """What the next step need not sum anew, if nobody writes to the gradients before."""
        self._measured = measured

    def _clip(self) -> tuple[torch.Tensor | None, float | torch.Tensor | None]:
        """The gradients' norm, and what to divide them by in place of `grad_scale`; None without `max_grad_norm`."""
        if self._max_grad_norm is None:
            return None, None
        measured = cast(clipping.Measurement, self._measure())
        self._measured = None
        return clipping.clip(measured, self.__dict__.get("grad_scale"), self._max_grad_norm)

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        own = {"_max_grad_norm": self._max_grad_norm, "_of_zero": self._of_zero or None}
        return {**state, **{name: value for name, value in own.items() if value is not None}}
