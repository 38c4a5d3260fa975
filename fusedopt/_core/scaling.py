"""Who unscales gradients and skips a step that overflows: a GradScaler around `step`, or `step` itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.optim.optimizer import Optimizer


class ScaledStep(Optimizer):
    """An optimizer whose `step` can take a GradScaler's scale and finding instead of gradients that it has unscaled.

    torch's classes do so with fused=True only. Frameworks rely on that: Lightning clips no gradients that a step is to
    unscale, and Accelerate sees a skipped step by its not being called. So it is the same here.
    """

    # Whether the constructor was told fused=True. Groups of classes whose twin lacks `fused` have no place for it.
    _fused_given = False
    # How many callers want to hand their scale to `step`, whatever it was told.
    _scale_givers = 0

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """What torch's GradScaler asks."""
        return self._fused_given or self._scale_givers > 0

    @_step_supports_amp_scaling.setter
    def _step_supports_amp_scaling(self, value: bool) -> None:
        # torch's constructors assign it.
        self._fused_given = value

    def _count_scale_givers(self, more: int) -> None:
        self._scale_givers += more

    @contextmanager
    def _giving_scale(self) -> Iterator[None]:
        self._count_scale_givers(1)
        try:
            yield
        finally:
            self._count_scale_givers(-1)

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        return {**state, "_fused_given": True} if self._fused_given else state
