"""Names that an older torch leaves out of a module, and what is said of them."""

from __future__ import annotations

from collections.abc import Callable

import torch


def refusal(module: str, name: str, reason: str) -> Callable[[str], object]:
    """A module's __getattr__, which says why it has no such name."""

    def refuse(asked: str) -> object:
        if asked == name:
            raise AttributeError(f"{module}.{name} is for a newer torch: {reason}, and this is {torch.__version__}")
        raise AttributeError(f"module {module!r} has no attribute {asked!r}")

    return refuse
