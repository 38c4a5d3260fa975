"""What optimizers share whose step is more than one sweep over all params."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from .. import _C
from .optimizer import FusedStep

_ENGINES = ("cpu", "cuda") if _C.cuda_built() and _C.cuda_built_for() != "emulated" else ("cpu",)


def label(group: dict[str, Any], group_index: int, index: int) -> str:
    """How errors call a param: "param 3 of group 0 ('layer.weight')"."""
    names = group.get("param_names")
    return f"param {index} of group {group_index}" + (f" ({names[index]!r})" if names else "")


class SweepStep(FusedStep):
    """A fused optimizer that calls rules over lists of tensors instead of leaving the whole step to a plan."""

    _has_options = False

    def _with_grads(self) -> Iterator[tuple[dict[str, Any], str, torch.Tensor]]:
        """Each param that has a gradient, with its group and what errors call it."""
        for group_index, group in enumerate(self.param_groups):
            for index, param in enumerate(group["params"]):
                if param.grad is not None:
                    yield group, label(group, group_index, index), param

    def _fused_step(self, closure: Callable[[], Any] | None = None, zero_grad: bool = False) -> Any:
        return self._host_step(closure, zero_grad, self._step_all)

    def _step_all(self, multiplier: float, divisor: float | torch.Tensor | None) -> None:
        with torch.no_grad():
            if self._known_to_torch_alone() is None and all(self._takes(param) for _, _, param in self._with_grads()):
                self._sweep(multiplier)
            else:
                groups = [{**g, "params": [p for p in g["params"] if p.grad is not None]} for g in self.param_groups]
                with self._plain_grads(groups, divisor):
                    self._torch_step()

    def _takes(self, param: torch.Tensor) -> bool:
        """Whether the engines can step a param; all others are left to torch's own step, with all of their company."""
        plain = type(param) in (torch.Tensor, torch.nn.Parameter) and type(param.grad) is torch.Tensor
        # torch reads gradients made in inference mode, and has words for params and states that were.
        tensors = (param, param.grad, *self.state.get(param, {}).values())
        plain = plain and not any(isinstance(tensor, torch.Tensor) and tensor.is_inference() for tensor in tensors)
        return plain and param.device.type in _ENGINES and not param.is_complex()

    def _sweep(self, multiplier: float) -> None:
        """Step every param that has a gradient, having checked them all."""
        raise NotImplementedError
