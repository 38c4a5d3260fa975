"""What the Schedule-Free optimizers share: which of two points the params are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .arguments import NO_OPTIONS, Options, check_number
from .precision import PARTNERS, exact_param, partner_of
from .shards import have_gathered_anew
from .standalone import Standalone


class ScheduleFree(Standalone):
    """An optimizer whose params are y while it trains, and x, the average of all z, while they are used."""

    def __init__(
        self,
        params: Any,
        given: dict[str, Any],
        *,
        foreach: bool | None = None,
        fused: bool | None = None,
        options: Options = NO_OPTIONS,
    ) -> None:
        # In the group under the reference's name, so that a file says which of the two the model's file has.
        super().__init__(params, {**given, "train_mode": True}, foreach=foreach, fused=fused, options=options)

    def train(self) -> None:
        """Put y, where gradients are to be taken, into the params' place, if it is not there.

        Example:
            >>> param = torch.nn.Parameter(torch.zeros(1))
            >>> optimizer = fusedopt.SGDScheduleFree([param], lr=1.0, momentum=0.5)
            >>> for _ in range(2):
            ...     param.grad = torch.ones(1)
            ...     optimizer.step()
            >>> optimizer.eval()
            >>> param.item()
            -1.5
            >>> optimizer.train()
            >>> param.item()
            -1.75
        """
        self._turn(train_mode=True)

    def eval(self) -> None:
        """Put x, the average of all z, into the params' place: for validation, and for files of the model.

        Until `train()` steps are refused. `state_dict()` says which of the two the params were, and loading it says so
        again; the model's file has to be of the same moment.

        Raises:
            ValueError: ZeroRedundancyOptimizer has given this process some of the params.

        Example:
            >>> param = torch.nn.Parameter(torch.zeros(1))
            >>> optimizer = fusedopt.SGDScheduleFree([param], lr=1.0)
            >>> optimizer.eval()
            >>> param.grad = torch.ones(1)
            >>> optimizer.step()
            Traceback (most recent call last):
            RuntimeError: step() was called after eval(), which has put the average in the params' place; call train()
        """
        self._turn(train_mode=False)

    def _turn(self, train_mode: bool) -> None:
        self._refuse_while_averaged("train() or eval() was called")
        self._refuse_some("train() and eval() would turn")
        for group in self.param_groups:
            if group["train_mode"] == train_mode:
                continue
            beta1 = float(group["betas"][0] if "betas" in group else group["momentum"])
            weight = 1 - beta1 if train_mode else 1 - 1 / beta1
            with torch.no_grad():
                for p in group["params"]:
                    if "z" in self.state.get(p, {}):
                        self._move_to_z(p, self.state[p], weight)
            group["train_mode"] = train_mode
            have_gathered_anew(group["params"])
        # Of groups to come.
        self.defaults["train_mode"] = train_mode

    def _move_to_z(self, p: torch.Tensor, state: dict[str, Any], weight: float) -> None:
        partner = next((name for name in PARTNERS if name in state), None)
        if partner is None and state["z"].dtype == p.dtype:
            p.lerp_(state["z"].to(p.device), weight)
        elif partner is None:
            # As in a step: in float32 what is in fewer bits, and complex numbers and doubles as what they are.
            wide = torch.promote_types(p.dtype, torch.float32)
            p.copy_(p.to(wide).lerp(state["z"].to(p.device, wide), weight))
        else:
            exact = exact_param(p, partner, state[partner]).lerp(state["z"].float(), weight)
            p.copy_(exact)
            state[partner].copy_(partner_of(exact, p, partner))
        self._copy_out(p)

    def _refuse_step(self, what: str) -> None:
        super()._refuse_step(what)
        if not all(group["train_mode"] for group in self.param_groups):
            raise RuntimeError(f"{what} after eval(), which has put the average in the params' place; call train()")

    def _fused_step(self, closure: Callable[[], Any] | None = None, zero_grad: bool = False) -> Any:
        self._refuse_step("step() was called")
        return super()._fused_step(closure, zero_grad)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            group.setdefault("train_mode", True)

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        for name in ("warmup_steps", "r", "weight_lr_power"):
            if name in group:
                check_number(name, group[name], f"{name} value")
        name, beta1 = ("betas[0]", group["betas"][0]) if "betas" in group else ("momentum", group["momentum"])
        if not 0 < beta1 < 1:
            raise ValueError(f"{name} must be between 0 and 1, without them: {beta1}")
