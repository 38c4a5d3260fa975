"""A moving average of the params, kept by each step under "ema" in a param's state."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch.optim.optimizer import Optimizer

from .divided import refuse_part
from .precision import check_ema_decay
from .shards import have_gathered_anew


class AveragedStep(Optimizer):
    """An optimizer that can put its params' average in their place."""

    _ema_decay: float | None = None
    # Whether params are their average at the moment.
    _averaged = False
    # As ClippedStep has it.
    _of_zero: bool

    def _average_with(self, ema_decay: float | None) -> None:
        """Keep an average from now on, or none: a constructor's choice."""
        check_ema_decay(ema_decay)
        self._ema_decay = ema_decay

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        return state if self._ema_decay is None else {**state, "_ema_decay": self._ema_decay}

    def _averages(self) -> bool:
        """Whether there is an average of any param."""
        return self._ema_decay is not None

    @property
    def ema_decay(self) -> float | None:
        """The factor of the params' moving average, None if there is none; read at every step."""
        return self._ema_decay

    @ema_decay.setter
    def ema_decay(self, ema_decay: float | None) -> None:
        check_ema_decay(ema_decay)
        if (ema_decay is None) != (self._ema_decay is None):
            raise ValueError("ema_decay is None or a number from the constructor on; construct the optimizer anew")
        self._ema_decay = ema_decay

    @contextmanager
    def ema_parameters(self) -> Iterator[None]:
        """Put the moving average of every param in the param's place, until the context ends.

        Params that have not been stepped keep their values. Copies in fewer bits (`copy_params_to`) are of the average,
        too. Inside, ``AveragedModel(model)`` of torch.optim.swa_utils, or any copy of the model, takes it over. What
        else is written to params there is gone afterwards, so steps, loading and another such context are refused;
        `state_dict()` is as outside.

        Raises:
            RuntimeError: there is no average, for want of `ema_decay=` in the constructor. Inside: from `step`, from a
                backward pass that steps, from `load_state_dict` and from `ema_parameters`.
            ValueError: ZeroRedundancyOptimizer has given this process some of the params.

        Example:
            >>> param = torch.nn.Parameter(torch.zeros(1))
            >>> optimizer = fusedopt.SGD([param], lr=1.0, ema_decay=0.5)
            >>> for _ in range(2):
            ...     param.grad = torch.ones(1)
            ...     optimizer.step()
            >>> with optimizer.ema_parameters():
            ...     param.item()
            -1.5
            >>> param.item()
            -2.0
        """
        if not self._averages():
            raise RuntimeError("there is no average of the params; construct the optimizer with ema_decay=")
        self._refuse_while_averaged("ema_parameters() was entered again")
        self._refuse_some("ema_parameters() would put the average in the place of")
        averages = {
            p: self.state[p]["ema"]
            for group in self.param_groups
            for p in group["params"]
            if "ema" in self.state.get(p, {})
        }
        # A model that computes in fewer bits has the copies for its params.
        replaced = [*averages.items(), *((copy, averages[p]) for p, copy in self._copied_out() if p in averages)]
        before = [tensor.detach().clone() for tensor, _ in replaced]
        # A hook, so that a step elsewhere does not have to ask.
        refusal = self.register_step_pre_hook(_refuse_step)
        self._averaged = True
        try:
            with torch.no_grad():
                for tensor, average in replaced:
                    tensor.copy_(average)
            have_gathered_anew(averages)
            yield
        finally:
            refusal.remove()
            self._averaged = False
            with torch.no_grad():
                for (tensor, _), value in zip(replaced, before, strict=True):
                    tensor.copy_(value)
            have_gathered_anew(averages)

    def _copied_out(self) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
        """Params that every step writes out in fewer bits, each with what it is written to."""
        return ()

    def _refuse_step(self, what: str) -> None:
        """Raise RuntimeError while params are not what steps are made from."""
        self._refuse_while_averaged(what)

    def _refuse_some(self, what: str) -> None:
        """Raise ValueError for a change of the model that this process could make to some of its params alone."""
        remedy = "load the state_dict() that consolidate_state_dict() has made into an optimizer of all params, and "
        refuse_part((), f"{what} those alone;", f"{remedy}call it there", self._of_zero)

    def _refuse_while_averaged(self, what: str) -> None:
        if self._averaged:
            raise RuntimeError(
                f"{what} inside ema_parameters(), where the params are their average and what they were comes back at "
                "its end; leave the context first"
            )


def _refuse_step(optimizer: Optimizer, *_: Any) -> None:
    cast(AveragedStep, optimizer)._refuse_step("step() was called")
