"""Sophia-G."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from .. import _C
from .._core.arguments import Options, check_number
from .._core.precision import MasterWeights, Offload, Rounding, StateDtype
from .._core.standalone import Standalone
from .._core.untraced import untraced


class SophiaG(Standalone):
    r"""Sophia-G, momentum over an estimate of the Hessian's diagonal, clipped, in one pass over memory.

    .. math::
        m \leftarrow \beta_1 m + (1 - \beta_1) g, \quad
        p \leftarrow (1 - \gamma \lambda) p
            - \gamma \operatorname{clip}\left(\frac{m}{\rho B h + 10^{-15}}, -1, 1\right)

    and in `update_hessian()`, which the training loop calls every ten steps or so,
    :math:`h \leftarrow \beta_2 h + (1 - \beta_2) \hat g^2`, where :math:`\hat g` is the gradient of a loss whose labels
    are drawn from what the model predicts (see there). Before the first such call h is 0, and steps are signs of m.

    Args:
        params: tensors, (name, tensor) pairs or dicts of groups; float32, float64, bfloat16, float16 or complex.
        lr: the learning rate :math:`\gamma \ge 0`, a number or a tensor of one element. Default: 1e-4.
        betas: :math:`\beta_1, \beta_2 \in [0, 1)`. Default: (0.965, 0.99).
        rho: :math:`\rho \ge 0`; the larger, the fewer elements are clipped. Default: 0.04.
        weight_decay: :math:`\lambda \ge 0`, decoupled. Default: 0.1.
        maximize: ascend. Default: False.
        capturable: let CUDA graphs capture the step; `step` is kept on the param's device then. Default: False.
        foreach: accepted for torch's sake; changes nothing. Default: None.
        fused: changes no result; True has a GradScaler leave unscaling and skipping to the step, as for torch's fused
            steps. Default: None.
        bs: :math:`B > 0`, how many draws the loss in `update_hessian()` is a mean of: for a language model sequences
            times tokens. The authors' `step` has it as an argument. Default: 5120.
        max_grad_norm: scale gradients inside the update so that the norm of all together is at most this. Default:
            None.
        ema_decay: keep a moving average of the params with this factor, for `ema_parameters()`. Default: None.
        state_dtype: how states are stored: "float32", "bfloat16", "float16", "int8" or "int4" (blocks of 256 codes with
            a float32 scale; tensors of fewer than 4,096 elements stay in float32), or a dict by states' names. Default:
            None.
        master_weights: for params in 16 bits: keep a copy in "float32" to update, or as "remainder" only the low half
            of it, beside bfloat16 params that are its upper half. Default: None.
        rounding: of what has fewer bits than the arithmetic: to "nearest"; "stochastic", up or down by chance so that
            the mean is exact; "kahan", to nearest, with what that takes from a param kept beside it. Default:
            "nearest".
        rounding_seed: where the draws of "stochastic" start. Default: 0.
        offload: "cpu" has states of params on a GPU, and master weights, in host memory, where the CPU steps them:
            gradients come and params go back in parts of 32 MiB, each while another is stepped; the same bits. Default:
            None.

    Raises:
        ValueError: a hyper-parameter is out of range.

    Example:
        >>> param = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        >>> optimizer = fusedopt.SophiaG([param], lr=0.5, betas=(0.0, 0.0), rho=0.5, weight_decay=0.0, bs=1)
        >>> param.grad = torch.tensor([4.0, 1.0])
        >>> optimizer.update_hessian()
        >>> param.grad = torch.tensor([4.0, -0.25])
        >>> optimizer.step()
        >>> param.tolist()
        [0.75, 2.25]

    Source: Liu et al. 2023, "Sophia: A Scalable Stochastic Second-order Optimizer for Language Model Pre-training";
    arguments, state and results as in the authors' `SophiaG`.
    """

    _rule = "sophia"
    _beyond: ClassVar = {"bs": 5120}
    # Of groups only while update_hessian() runs.
    _rule_defaults: ClassVar = {"estimates": False}
    # Numbers that a captured step reads are those of its own plan.
    _estimating: _C.Plan | None = None

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-4,
        betas: tuple[float, float] = (0.965, 0.99),
        rho: float = 0.04,
        weight_decay: float = 0.1,
        *,
        maximize: bool = False,
        capturable: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        bs: float = 5120,
        max_grad_norm: float | None = None,
        ema_decay: float | None = None,
        state_dtype: StateDtype = None,
        master_weights: MasterWeights | None = None,
        rounding: Rounding = "nearest",
        rounding_seed: int = 0,
        offload: Offload | None = None,
    ) -> None:
        given: dict[str, Any] = {"lr": lr, "betas": betas, "rho": rho, "weight_decay": weight_decay}
        flags = {"maximize": maximize, "capturable": capturable, "bs": bs}
        options = Options(max_grad_norm, ema_decay, state_dtype, master_weights, rounding, rounding_seed, offload)
        super().__init__(params, {**given, **flags}, foreach=foreach, fused=fused, options=options)

    def update_hessian(self) -> None:
        r"""Take the squares of the gradients that params have now into the average of the Hessian's diagonal.

        Nothing else changes: no param, no other state, no count of steps. The gradients are to be those of a loss whose
        labels are drawn from the model's own predictions, the estimate of Gauss, Newton and Bartlett: with `logits`
        of the model, ``torch.distributions.Categorical(logits=logits).sample()``. They are neither clipped nor unscaled
        here, and `zero_grad()` afterwards is the caller's. Hutchinson's estimate, which may be negative, is not taken.
        Under rounding="kahan" a param halfway between two numbers may become the other; with `compensation` it is what
        it was.

        Raises:
            RuntimeError: a gradient or a state does not fit its param (nothing has been written then), a CUDA graph
                captures, or it is called inside `ema_parameters()`.

        Example:
            >>> param = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
            >>> optimizer = fusedopt.SophiaG([param], betas=(0.9, 0.5))
            >>> param.grad = torch.tensor([4.0, -1.0])
            >>> optimizer.update_hessian()
            >>> optimizer.state[param]["hessian"].tolist(), param.tolist()
            ([8.0, 0.5], [1.0, 2.0])
        """
        if torch.compiler.is_compiling():
            return untraced(SophiaG.update_hessian, self)
        self._refuse_while_averaged("update_hessian() was called")
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            raise RuntimeError("update_hessian() cannot be captured in a CUDA graph; call it between replays")
        kept = self._plan, self._max_grad_norm, self._ema_decay, self.grad_norm
        draws = self._draws_so_far()
        self._plan, self._max_grad_norm = self._estimating, None
        # A checkpoint has one number for both.
        self._draw_from(draws)
        # An average that stays.
        self._ema_decay = None if self._ema_decay is None else 1.0
        try:
            with self._only([{**group, "estimates": True} for group in self.param_groups]):
                self._fused_step()
        finally:
            draws, self._estimating = self._draws_so_far(), self._plan
            self._plan, self._max_grad_norm, self._ema_decay, self.grad_norm = kept
            self._draw_from(draws)
        return None

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        for name in ("rho", "bs"):
            if name in group:
                check_number(name, group[name], f"{name} value")
