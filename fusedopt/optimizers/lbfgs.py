"""L-BFGS, whose history is read twice an iteration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from .. import _C
from .._core.arguments import check_fused, check_with_torch, for_torch
from .._core.callers import warn_of_unserved
from .._core.optimizer import unhooked
from .._core.origin import refuse_foreign
from .._core.unread import Reads, Unread
from .._core.untraced import untraced
from ._lbfgs_search import History, Search


class LBFGS(torch.optim.LBFGS):
    r"""L-BFGS, in two passes over the history an iteration.

    .. math::
        s_i = p_{i+1} - p_i, \quad y_i = g_{i+1} - g_i, \quad
        V_i = I - \frac{y_i s_i^\top}{y_i^\top s_i}, \quad
        H_{i+1} = V_i^\top H_i V_i + \frac{s_i s_i^\top}{y_i^\top s_i}, \quad
        d = -H g, \quad p \leftarrow p + t d

    The products of all pairs with the gradient are taken in one pass, the recursion runs on these numbers in double,
    and the direction is added up in a second pass. Gradients are read where they are. Complex params count as pairs of
    real ones. Params are float32, float64 or complex, all of one precision and on one device, with any strides; others
    take torch's own step.

    Args:
        params: tensors or (name, tensor) pairs, in one group.
        lr: :math:`t \ge 0`, or where a line search begins. Default: 1.
        max_iter: iterations in one step. Default: 20.
        max_eval: evaluations of the closure in one step; 1.25 times as many as iterations unless given. As in torch
            2.10 and newer a line search ends with them, too: with ``max_iter=1`` it has none left and moves nothing. In
            an older torch it takes as many as it wants. Default: None.
        tolerance_grad: a step ends when no gradient is larger. Default: 1e-7.
        tolerance_change: a step ends when neither params nor loss change by more. Default: 1e-9.
        history_size: how many pairs are kept. Default: 100.
        line_search_fn: "strong_wolfe", or None for steps of fixed length. Default: None.
        maximize: ascend; where the installed torch has it (2.14 and newer). Default: False.
        foreach: accepted for torch's sake; changes nothing. Default: None.
        fused: accepted as everywhere; changes nothing. Default: None.

    Raises:
        ValueError: a hyper-parameter is out of range, or there are several groups.

    Example:
        >>> param = torch.nn.Parameter(torch.tensor([4.0, -2.0]))
        >>> optimizer = fusedopt.LBFGS([param], line_search_fn="strong_wolfe")
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = ((param - torch.tensor([1.0, 3.0])) ** 2 * torch.tensor([1.0, 10.0])).sum()
        ...     loss.backward()
        ...     return loss
        >>> optimizer.step(closure).item()
        259.0
        >>> [round(x, 4) for x in param.tolist()]
        [1.0, 3.0]

    Sources: Nocedal 1980, "Updating Quasi-Newton Matrices with Limited Storage"; Chen, Wang and Zhou 2014, "Large-scale
    L-BFGS using MapReduce" (the recursion on products); tests of progress and the line search are torch's.
    """

    _reads: ClassVar[Reads] = {
        **dict.fromkeys(("lr", "max_iter", "max_eval", "tolerance_grad", "tolerance_change", "history_size")),
        "line_search_fn": None,
        "maximize": (False, True),
    }
    _unread: ClassVar = Unread(torch.optim.LBFGS, _reads)
    # Made by the first step. Not part of __getstate__, so a copied optimizer makes its own.
    _history: History | None = None

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1,
        max_iter: int = 20,
        max_eval: int | None = None,
        tolerance_grad: float = 1e-7,
        tolerance_change: float = 1e-9,
        history_size: int = 100,
        line_search_fn: str | None = None,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
    ) -> None:
        given = {"lr": lr, "max_iter": max_iter, "max_eval": max_eval}
        more = {"tolerance_grad": tolerance_grad, "tolerance_change": tolerance_change, "history_size": history_size}
        rest = {"line_search_fn": line_search_fn, "maximize": maximize}
        super().__init__(params, **for_torch(type(self), LBFGS, {**given, **more, **rest}))
        check_fused(fused, foreach, False)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        # What is not given has been checked as a default.
        if isinstance(param_group, dict) and len(param_group) > 1:
            check_with_torch(type(self), LBFGS, {**self.defaults, **param_group})
        super().add_param_group(param_group)

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "defaults" not in state:  # as a copy has and a file has not
            refuse_foreign(self, state["param_groups"], state["state"])
        super().__setstate__(state)
        # torch's constructor makes these, which copies do not run.
        self._params = self.param_groups[0]["params"]
        self._numel_cache = None

    @torch.no_grad()
    def step(self, closure: Callable[[], Any]) -> Any:  # type: ignore[override]
        """Iterate until a tolerance or a limit is met.

        Args:
            closure: re-evaluates the model with gradients enabled and returns the loss.

        Returns:
            What `closure` returned at first.

        Raises:
            RuntimeError: `line_search_fn` is unknown.
        """
        search_fn = self.param_groups[0]["line_search_fn"]
        if search_fn not in (None, "strong_wolfe"):
            raise RuntimeError(
                f"only 'strong_wolfe' is supported: param_groups[0]['line_search_fn'] is {search_fn!r}; set it to "
                "that, or to None for steps of fixed length"
            )
        if torch.compiler.is_compiling():
            return untraced(LBFGS.step, self, closure)
        ours = not self._unread.find(self.param_groups)
        if not ours or len(self.param_groups) != 1 or not self._has_engine():
            if ours:
                warn_of_unserved()
            return unhooked(super().step, self)(closure)
        state = self.state[self._params[0]]
        state.setdefault("func_evals", 0)
        state.setdefault("n_iter", 0)
        if self._history is None:
            self._history = History()
        search = Search(self, torch.enable_grad()(closure), state, self._history)
        try:
            return search.run(self.param_groups[0])
        finally:
            search.store(self.param_groups[0]["history_size"])

    def _has_engine(self) -> bool:
        """Whether params and state are such as the engines take, and as torch's own step would take them."""
        state = self.state.get(self._params[0], {}) if self._params else {}
        flats = [state[key] for key in ("d", "prev_flat_grad") if state.get(key) is not None]
        pairs = [state.get(key) or [] for key in ("old_dirs", "old_stps")]
        if state.get("n_iter") and (len(flats) != 2 or state.get("t") is None or len(pairs[0]) != len(pairs[1])):
            return False
        return bool(_C.lbfgs_fits(self._params, [*flats, *pairs[0], *pairs[1]]) > 0)
