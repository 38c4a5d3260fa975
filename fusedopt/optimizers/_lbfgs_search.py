"""One step of L-BFGS: its search, and the products of the history that it keeps between steps."""

from __future__ import annotations

import math
import sys
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim.lbfgs import _strong_wolfe

from .. import _C

if TYPE_CHECKING:
    from .lbfgs import LBFGS

# Since then a line search of torch's ends where max_eval does; before it took as many evaluations as it wanted.
_COUNTED = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 10)


class History:
    """The products of the pairs in an optimizer's state, which are made anew if that is not as it was left."""

    def __init__(self) -> None:
        self.gram = _C.Gram()
        self.seen: list[tuple[weakref.ref[Tensor], int]] = []

    def recall(self, params: list[Tensor], dirs: list[Tensor], stps: list[Tensor]) -> None:
        vectors = [*dirs, *stps]
        if len(vectors) == len(self.seen) and all(
            ref() is vector and version == vector._version
            for (ref, version), vector in zip(self.seen, vectors, strict=True)
        ):
            return
        self.forget()
        for i, y in enumerate(dirs):
            products = _C.lbfgs_products(params, y, None, None, 0.0, [*stps[: i + 1], *dirs[: i + 1]])[2::2]
            self.gram.append(products[: i + 1], products[i + 1 :])
        self.remember(dirs, stps)

    def forget(self) -> None:
        self.gram.clear()
        self.seen = []

    def remember(self, dirs: list[Tensor], stps: list[Tensor]) -> None:
        self.seen = [(weakref.ref(vector), vector._version) for vector in (*dirs, *stps)]


class _Gradient:
    """The gradient at a trial point, as far as torch's line search looks: it clones those it may come back to."""

    def __init__(self, slope: float, flat: Tensor | None = None) -> None:
        self.slope = slope
        self.flat = flat  # None: in the params' .grad, until the closure runs again
        self.kept = False

    def clone(self, **_: Any) -> _Gradient:
        self.kept = True
        return self

    def dot(self, _: Any) -> Tensor:
        return torch.tensor(self.slope, dtype=torch.float64, device="cpu")


class _Direction:
    """The direction, as far as torch's line search looks at it."""

    def __init__(self, largest: float) -> None:
        self.largest = largest

    def abs(self) -> _Direction:
        return self

    def max(self) -> float:
        return self.largest


class Search:
    """One step of an optimizer."""

    def __init__(self, optimizer: LBFGS, closure: Callable[[], Any], state: dict[str, Any], history: History) -> None:
        self.optimizer = optimizer
        self.params = optimizer._params
        first = self.params[0]
        dtype = first.dtype.to_real() if first.is_complex() else first.dtype
        self.options = {"dtype": dtype, "device": first.device}
        self.closure = closure
        # torch minimizes the negative then: its losses, gradients and all that is made of them change their signs.
        self.maximize = optimizer.param_groups[0].get("maximize", False)
        self.state = state
        self.history = history
        # None before the first iteration.
        self.direction: Any = state.get("d")
        self.previous: Any = state.get("prev_flat_grad")
        self.t = float(state.get("t") or 0.0)
        self.dirs: list[Tensor] = state.get("old_dirs") or []
        self.stps: list[Tensor] = state.get("old_stps") or []
        self.alpha: list[float] | None = None
        self.prev_loss = state.get("prev_loss")
        self.flat: Tensor | None = None  # the gradient, where it is not read from the params' .grad
        self.origin: Tensor | None = None
        self.last: _Gradient | None = None
        history.recall(self.params, self.dirs, self.stps)

    def run(self, group: dict[str, Any]) -> Any:
        """As torch's step, comparison by comparison."""
        state = self.state
        lr = group["lr"].item() if isinstance(group["lr"], Tensor) else group["lr"]
        max_iter, max_eval = group["max_iter"], group["max_eval"]
        tolerance_grad, tolerance_change = group["tolerance_grad"], group["tolerance_change"]

        orig_loss = self.closure()
        loss = self.minimized(orig_loss)
        evals = 1
        state["func_evals"] += 1
        self.find_grads()
        products = self.measure()
        if products[0] <= tolerance_grad:
            return orig_loss

        n_iter = 0
        while n_iter < max_iter:
            n_iter += 1
            first = state["n_iter"] == 0
            largest, slope = self.start() if first else self.turn(products, group["history_size"])
            state["n_iter"] += 1
            if first:
                self.t = min(1.0, 1.0 / products[1] if products[1] else math.inf) * lr
            else:
                self.t = lr
            self.prev_loss = loss
            if slope > -tolerance_change:
                break

            if group["line_search_fn"] is not None:
                loss, found = self.line_search(loss, largest, slope, max_eval - evals)
            else:
                self.move(self.t)
                found = 0
                if n_iter != max_iter:
                    loss = self.minimized(self.closure())
                    self.find_grads()
                    found = 1
            evals += found
            state["func_evals"] += found

            if n_iter == max_iter or evals >= max_eval:
                break
            if largest * abs(self.t) <= tolerance_change or abs(loss - self.prev_loss) < tolerance_change:
                break
            products = self.measure()
            if products[0] <= tolerance_grad:
                break
        return orig_loss

    def minimized(self, loss: Any) -> float:
        return -float(loss) if self.maximize else float(loss)

    def find_grads(self) -> None:
        """After a run of the closure: which gradient is the one."""
        fits = not self.maximize and _C.lbfgs_grads_fit(self.params)
        self.flat = None if fits else self.gathered()

    def gathered(self) -> Tensor:
        """What the engines cannot read, such as a sparse gradient, as torch makes it one vector; with its sign."""
        flat: Tensor = self.optimizer._gather_flat_grad()
        return flat.to(**self.options)

    def measure(self) -> list[float]:
        """max|g|, sum|g|, then v.g and v.y for y = g - previous and each v of y, s, dirs and stps."""
        if self.state["n_iter"] == 0:
            return _C.lbfgs_products(self.params, self.flat, None, None, 0.0, [])
        vectors = [*self.dirs, *self.stps]
        return _C.lbfgs_products(self.params, self.flat, self.previous, self.direction, self.t, vectors)

    def empty(self) -> Tensor:
        return torch.empty(self.optimizer._numel(), **self.options)

    def start(self) -> tuple[float, float]:
        """Makes the first direction, -g; returns its largest element and the slope along it."""
        self.dirs, self.stps = [], []
        self.history.forget()
        if self.previous is None:
            self.previous = self.empty()
        if self.direction is None:
            self.direction = self.empty()
        return self.add_up(None, None, [], [], 1.0)

    def turn(self, products: list[float], history_size: int) -> tuple[float, float]:
        """Takes the pair of the last move into the history and makes the next direction."""
        gram = self.history.gram
        n = len(self.dirs)
        with_g, with_y = products[2::2], products[3::2]
        (yg, sg), (yy, ys) = with_g[:2], with_y[:2]
        dirs_g, stps_g = with_g[2 : 2 + n], with_g[2 + n :]
        dirs_y, stps_y = with_y[2 : 2 + n], with_y[2 + n :]
        y = s = None
        before = self.dirs[:], self.stps[:]
        if ys > 1e-10:
            while len(self.dirs) >= history_size:
                y, s = self.dirs.pop(0), self.stps.pop(0)
                gram.drop_oldest()
                for oldest in (dirs_g, stps_g, dirs_y, stps_y):
                    oldest.pop(0)
            # What leaves the history makes room for what comes, unless somebody else has it.
            y = y if y is not None and sys.getrefcount(y) == 2 else self.empty()
            s = s if s is not None and sys.getrefcount(s) == 2 else self.empty()
            self.dirs.append(y)
            self.stps.append(s)
            gram.append([*stps_y, ys], [*dirs_y, yy])
            dirs_g.append(yg)
            stps_g.append(sg)
        self.alpha, factor = gram.recur(stps_g, dirs_g)
        # In the order of torch's additions.
        dirs = [(v, -a) for v, a in zip(self.dirs, self.alpha, strict=True)][::-1]
        try:
            return self.add_up(y, s, dirs, list(zip(self.stps, factor, strict=True)), gram.scale)
        except RuntimeError:
            # y and s have not been written.
            self.dirs[:], self.stps[:] = before
            self.history.forget()
            raise

    def add_up(self, y: Tensor | None, s: Tensor | None, *terms: Any) -> tuple[float, float]:
        largest, slope = _C.lbfgs_direction(self.params, self.flat, self.previous, self.direction, y, s, self.t, *terms)
        self.history.remember(self.dirs, self.stps)
        return largest, slope

    def move(self, t: float, fetch: bool = False) -> None:
        self.t = t
        _C.lbfgs_move(self.params, self.direction, t, self.origin, fetch)

    def line_search(self, loss: float, largest: float, slope: float, left: int) -> tuple[float, int]:
        """Moves to the point that torch's line search finds; returns its loss and the evaluations."""
        if self.origin is None:
            self.origin = self.empty()
        self.last = None
        # The gradient at the origin has just been copied.
        start = _Gradient(slope, self.previous)
        limit = {"max_ls": left} if _COUNTED else {}
        loss, point, t, evals = _strong_wolfe(
            self.evaluate, None, self.t, _Direction(largest), loss, start, start.dot(None), **limit
        )
        self.move(float(t))
        self.flat = point.flat
        return loss, evals

    def evaluate(self, _: Any, t: Any, __: Any) -> tuple[float, _Gradient]:
        if self.last is not None and self.last.kept and self.last.flat is None:
            self.last.flat = self.empty()
            _C.lbfgs_gather(self.params, self.last.flat)
        self.move(float(t), fetch=self.last is None)
        loss = self.minimized(self.closure())
        self.find_grads()
        products = _C.lbfgs_products(self.params, self.flat, None, None, 0.0, [self.direction])
        self.last = _Gradient(products[2], self.flat)
        return loss, self.last

    def store(self, history_size: int) -> None:
        """As torch leaves it; also where the closure has raised, for the params have moved then."""
        if self.direction is None:
            return
        state, gram = self.state, self.history.gram
        with suppress(RuntimeError):
            self.history.recall(self.params, self.dirs, self.stps)
        n = len(gram)
        numbers = [1 / gram.ys(i) for i in range(n)] + [gram.scale] + (self.alpha or [])
        tensors = torch.tensor(numbers, **self.options).unbind()
        if self.alpha is not None:
            state["al"] = [*tensors[n + 1 :], *[None] * (history_size - len(self.alpha))]
        state["d"] = self.direction
        state["t"] = self.t
        state["old_dirs"] = self.dirs
        state["old_stps"] = self.stps
        state["ro"] = list(tensors[:n])
        state["H_diag"] = tensors[n] if n else 1
        state["prev_flat_grad"] = self.previous
        state["prev_loss"] = self.prev_loss
