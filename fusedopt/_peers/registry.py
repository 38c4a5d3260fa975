"""All of the other packages' classes that are known here, by package and class."""

from __future__ import annotations

from . import (
    apex,
    bitsandbytes,
    deepspeed,
    lion_pytorch,
    optimi,
    prodigyopt,
    pytorch_optimizer,
    schedulefree,
    sophia_opt,
    timm,
    torch_optimizer,
    torchao,
    transformer_engine,
    transformers,
)
from .peer import Peer

_PACKAGES = (
    apex,
    bitsandbytes,
    deepspeed,
    lion_pytorch,
    optimi,
    prodigyopt,
    pytorch_optimizer,
    schedulefree,
    sophia_opt,
    timm,
    torch_optimizer,
    torchao,
    transformer_engine,
    transformers,
)


PACKAGES = frozenset(module.__name__.rpartition(".")[2] for module in _PACKAGES)


def _by_name(table: str) -> dict[str, object]:
    found = ((module.__name__.rpartition(".")[2], getattr(module, table)) for module in _PACKAGES)
    return {f"{package}.{cls}": value for package, classes in found for cls, value in classes.items()}


PEERS: dict[str, Peer] = _by_name("PEERS")  # type: ignore[assignment]
# The line of maths of those that ours have no class for.
OTHERS: dict[str, str] = _by_name("OTHERS")  # type: ignore[assignment]


def name_of(cls: type | str) -> str:
    """The package and the class, without the modules between them; TypeError for what names none."""
    if not isinstance(cls, (str, type)) or not cls:
        raise TypeError(f"{cls!r} names no optimizer; give a class, or its name such as 'bitsandbytes.AdamW'")
    path = cls if isinstance(cls, str) else f"{cls.__module__}.{cls.__qualname__}"
    return f"{path.partition('.')[0]}.{path.rpartition('.')[2]}"
