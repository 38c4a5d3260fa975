"""Calls that torch.compile makes as they are: it neither looks into them nor compiles what they call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

# Made when it is first needed: who compiles has imported what it imports, which takes longer than all of this package.
_disabled: list[Callable[..., Any]] = []


def _call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return function(*args, **kwargs)


def untraced(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a function, and have torch.compile break its graph there.

    torch.compiler.disable around a step would be one more frame for every call outside of torch.compile, too.
    """
    if not _disabled:
        _disabled.append(torch.compiler.disable(_call))
    return _disabled[0](function, *args, **kwargs)


# As torch.compiler.disable marks a function.
untraced._torchdynamo_disable = True  # type: ignore[attr-defined]
untraced._torchdynamo_disable_msg = (  # type: ignore[attr-defined]
    "a step of fusedopt is one pass over memory already, and is called as it is: compile without fullgraph=True, or "
    "call step() outside of what is compiled"
)
