"""timm asks for torchvision, whose builds go with other builds of torch; its optimizers do not."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType


def find_alone(package: str, *folders: str) -> None:
    """Have modules of a package, and of folders in it, found without what these themselves import."""
    if package in sys.modules:
        return
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"No module named '{package}'", name=package)
    for name in (package, *(f"{package}.{folder}" for folder in folders)):
        module = ModuleType(name)
        module.__path__ = [str(Path(spec.origin).parent.joinpath(*name.split(".")[1:]))]
        sys.modules[name] = module
