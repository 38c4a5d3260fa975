"""What torch makes of a loaded state, undone: all that is in it in the dtype of its param, and of text another text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def differs(saved: Any, loaded: Any) -> bool:
    """Whether torch has made something else of what was saved: all numbers in the param's dtype, and of text."""
    if isinstance(saved, Tensor):
        return bool(saved.dtype != loaded.dtype)
    if isinstance(saved, (str, bytes)):
        return bool(saved != loaded)
    if isinstance(saved, Mapping):
        return any(differs(saved[key], loaded[key]) for key in saved)
    return isinstance(saved, (list, tuple)) and any(map(differs, saved, loaded))


def restored(saved: Any, loaded: Any, fresh: Any, always: bool) -> Any:
    """What was saved, its tensors where torch has put them and of the dtypes that new ones have."""
    if isinstance(saved, Tensor):
        if not (always or saved.dtype != loaded.dtype):
            return loaded
        return saved.to(loaded.device, fresh.dtype if isinstance(fresh, Tensor) else saved.dtype)
    if isinstance(saved, Mapping):
        by_key = fresh if isinstance(fresh, Mapping) else {}
        return {key: restored(value, loaded[key], by_key.get(key), always) for key, value in saved.items()}
    if isinstance(saved, (list, tuple)):
        new = fresh if isinstance(fresh, (list, tuple)) and len(fresh) == len(saved) else [None] * len(saved)
        return type(saved)(restored(*those, always) for those in zip(saved, loaded, new, strict=True))
    return saved if isinstance(saved, (str, bytes)) else loaded
