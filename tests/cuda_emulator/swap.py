"""The emulated engine in the place of `fusedopt._C`, for as long as something is done with it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fusedopt import _C


@contextmanager
def at_work(engine: ModuleType) -> Iterator[None]:
    """All modules of the package that have imported `_C` see `engine` meanwhile."""
    users = [m for name, m in sys.modules.items() if name.startswith("fusedopt") and vars(m).get("_C") is _C]
    for module in users:
        module._C = engine  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for module in users:
            module._C = _C  # type: ignore[attr-defined]


class _Recorded(TorchDispatchMode):
    """torch's operations, which it does and can do again on the same tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, made))
        return made

    def __call__(self) -> None:
        with torch.no_grad():
            for func, args, kwargs, made in self.calls:
                made.copy_(func(*args, **kwargs))


def capturable(products: Any, control: Any) -> Any:
    """A class's products of matrices, which are torch's, as a graph's that is being captured."""
    if products is None:
        return None

    def multiply(group: dict[str, Any], matrices: Tensor) -> tuple[Tensor, float]:
        if not control.capturing():
            return products.multiply(group, matrices)  # type: ignore[no-any-return]
        with _Recorded() as recorded:
            made = products.multiply(group, matrices)
        control.put(recorded)
        return made  # type: ignore[no-any-return]

    return products._replace(multiply=multiply)


def adopt(optimizer: Any, engine: ModuleType, control: Any) -> Any:
    """The optimizer, which `engine` steps and measures from now on."""
    products = optimizer._products
    optimizer._products = lambda: capturable(products(), control)

    def working(method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            with at_work(engine):
                return method(*args, **kwargs)

        return call

    for name in ("_make_plan", "_measure", "_clip"):
        setattr(optimizer, name, working(getattr(optimizer, name)))
    optimizer._plan = optimizer._make_plan()
    return optimizer


class EmulatedGraph:
    """Replays what a capture has recorded; what it holds is given back with this."""

    def __init__(self, control: Any, number: int) -> None:
        self.control, self.number = control, number

    def __call__(self, stream: int = 0) -> None:
        self.control.replay(self.number, stream)

    def __del__(self) -> None:
        self.control.destroy_graph(self.number)
