"""GradScaler."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, cast

import torch

from ._core.optimizer import FusedStep
from ._core.scaling import ScaledStep


class GradScaler(torch.amp.GradScaler):
    r"""torch.amp.GradScaler whose infinity check is the norm that an optimizer of this package clips by.

    .. math::
        \text{found\_inf} = \lnot\,\text{finite}\Big(\sum_i g_i^2\Big), \qquad
        N = \frac{1}{\text{scale}} \sqrt{\sum_i g_i^2}

    `scaler.step(optimizer)` of an optimizer with `max_grad_norm` reads the gradients twice: for both of these, and in
    the update that divides and clips them. It hands scale and check to every optimizer of this package, where torch's
    does so with `fused=True` only and else unscales gradients in a pass of its own. Everything else is torch's: other
    optimizers, `unscale_`, growth and state.

    Args:
        device: "cuda" or "cpu". Default: "cuda".
        init_scale: the first scale. Default: 65536.0.
        growth_factor: multiplies the scale after `growth_interval` steps without infinities. Default: 2.0.
        backoff_factor: multiplies the scale after a step with one. Default: 0.5.
        growth_interval: in steps. Default: 2000.
        enabled: if not, gradients are neither scaled nor checked. Default: True.

    Example:
        >>> param = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = fusedopt.SGD([param], lr=1.0)
        >>> optimizer.max_grad_norm = 0.5
        >>> scaler = fusedopt.GradScaler("cpu")
        >>> scaler.scale(param @ torch.tensor([3.0, 4.0])).backward()
        >>> scaler.step(optimizer)
        >>> scaler.update()
        >>> optimizer.grad_norm, param.detach()
        (tensor(5.), tensor([0.7000, 0.6000]))

    Source: Micikevicius et al. 2018, "Mixed Precision Training"; the class is torch's.
    """

    def step(self, optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> Any:
        """Step an optimizer, unless a gradient is not finite; as torch's.

        Args:
            optimizer: of this package or any other.
            args: passed to its `step`.
            kwargs: passed to its `step`.

        Returns:
            What its `step` returned.
        """
        with optimizer._giving_scale() if isinstance(optimizer, ScaledStep) else nullcontext():
            try:
                return super().step(optimizer, *args, **kwargs)
            finally:
                if isinstance(optimizer, FusedStep):
                    optimizer._keep_measured(None)

    def _check_inf_per_device(self, optimizer: torch.optim.Optimizer) -> dict[Any, Any]:
        measured = optimizer._measure() if isinstance(optimizer, FusedStep) else None
        # Squares of float64 may overflow where the gradients do not.
        if measured is None or measured.grads.empty or measured.grads.wide or measured.grads.leftover:
            return super()._check_inf_per_device(optimizer)
        cast(FusedStep, optimizer)._keep_measured(measured)
        found = {measured.total.device: torch.isfinite(measured.total).logical_not().float()}
        self._per_optimizer_states[id(optimizer)]["found_inf_per_device"] = found
        return found
