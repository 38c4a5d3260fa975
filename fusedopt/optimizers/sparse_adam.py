"""SparseAdam."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from .. import _C
from .._core.arguments import Options
from .._core.sweeps import SweepStep


class SparseAdam(SweepStep, torch.optim.SparseAdam):
    r"""Adam on the rows that a sparse gradient holds, in one pass over these rows.

    .. math::
        m \leftarrow \beta_1 m + (1 - \beta_1) g, \quad
        v \leftarrow \beta_2 v + (1 - \beta_2) g^2, \quad
        p \leftarrow p - \gamma \frac{\sqrt{1 - \beta_2^t}}{1 - \beta_1^t} \frac{m}{\sqrt{v} + \epsilon}

    for the rows in the gradient of an `nn.Embedding(sparse=True)`; all others, and their averages, stay as they are. As
    in torch, `step` is a Python number in the state, and a gradient without rows counts as a step.

    Args:
        params: tensors, (name, tensor) pairs or dicts of groups; float32, float64, bfloat16 or float16.
        lr: the learning rate :math:`\gamma > 0`, a number or a tensor of one element. Default: 1e-3.
        betas: :math:`\beta_1, \beta_2 \in [0, 1)`. Default: (0.9, 0.999).
        eps: :math:`\epsilon > 0`, added to the root. Default: 1e-8.
        maximize: ascend. Default: False.
        foreach: accepted for torch's sake; changes nothing. Default: None.
        fused: changes no result; True has a GradScaler leave unscaling and skipping to the step, as for torch's fused
            steps. Default: None.
        max_grad_norm: scale gradients inside the update so that the norm of all together is at most this. Default:
            None.

    Raises:
        ValueError: a hyper-parameter is out of range, or a param is sparse or complex.

    Example:
        >>> embedding = torch.nn.Embedding(1000, 4, sparse=True)
        >>> optimizer = fusedopt.SparseAdam(embedding.parameters(), lr=0.5)
        >>> before = embedding.weight.detach().clone()
        >>> embedding(torch.tensor([3, 7])).sum().backward()
        >>> optimizer.step()
        >>> (embedding.weight != before).any(1).nonzero().flatten().tolist()
        [3, 7]

    Source: Kingma and Ba 2015, "Adam: A Method for Stochastic Optimization", masked as torch does it.
    """

    _rule = "sparse_adam"
    _reads: ClassVar = dict.fromkeys(("lr", "betas", "eps", "maximize"))

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        maximize: bool = False,
        *,
        foreach: bool | None = None,
        fused: bool | None = None,
        max_grad_norm: float | None = None,
    ) -> None:
        given = {"lr": lr, "betas": betas, "eps": eps, "maximize": maximize}
        super().__init__(params, given, foreach=foreach, fused=fused, options=Options(max_grad_norm))

    def _takes(self, param: torch.Tensor) -> bool:
        # Slices are told by where they are in memory, so all have to lie alike.
        tensors = (param, *self.state.get(param, {}).values())
        alike = all(tensor.is_contiguous() for tensor in tensors if isinstance(tensor, torch.Tensor))
        return super()._takes(param) and alike

    def _sweep(self, multiplier: float) -> None:
        found = []
        for group, name, param in self._with_grads():
            assert param.grad is not None
            if not param.grad.is_sparse:
                raise RuntimeError("SparseAdam does not support dense gradients, please consider Adam instead")
            # The update is not linear: rows that occur twice have to be added first.
            grad = param.grad.coalesce()
            found.append((group, param, _slices(grad, param, name), grad._values().contiguous()))
        calls: dict[Any, list[Any]] = defaultdict(list)
        for group, param, slices, values in found:
            state = self.state[param]
            if not state:
                state["step"] = 0
                for key in ("exp_avg", "exp_avg_sq"):
                    state[key] = torch.zeros_like(param, memory_format=torch.preserve_format)
            state["step"] += 1
            if slices.numel() > 0:
                hypers = (float(group["lr"]), *map(float, group["betas"]), float(group["eps"]))
                sign = -1.0 if group.get("maximize") else 1.0
                call = (param.device, hypers, state["step"], sign)
                calls[call].append((param, values, [state["exp_avg"], state["exp_avg_sq"]], slices))
        for (_, hypers, step, sign), rows in calls.items():
            params, grads, states, where = zip(*rows, strict=True)
            _C.Sweep(self._rule)(hypers, [step - 1], params, grads, states, sign * multiplier, where)


def _slices(grad: torch.Tensor, param: torch.Tensor, name: str) -> torch.Tensor:
    """Where each of a sparse gradient's values belongs, among all of the param's slices of their size."""
    indices, sparse_dims = grad._indices(), grad.sparse_dim()
    if grad.shape != param.shape:
        shapes = f"its gradient has shape {list(grad.shape)}, the param {list(param.shape)}"
        raise RuntimeError(f"{name}: {shapes}; set .grad anew")
    slices = torch.zeros(indices.shape[1], dtype=torch.int64, device=indices.device)
    for dim in range(sparse_dims):
        slices = slices * param.shape[dim] + indices[dim]
    # A sparse tensor may be made without a check of its indices; on a GPU looking at them would wait for it.
    if not slices.is_cuda and slices.numel() > 0:
        outside = (indices < 0) | (indices >= torch.tensor(param.shape[:sparse_dims])[:, None])
        if outside.any():
            raise RuntimeError(f"{name}: its gradient has indices outside of the param; check how it was made")
    return slices
