"""timm asks for torchvision, whose builds go with other builds of torch; its optimizers do not."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

# The helpers of tests/.
sys.path.insert(0, str(Path(__file__).parent.parent))


def _without_running(name: str, folder: Path) -> None:
    """Have modules of a package found without what the package itself imports."""
    module = ModuleType(name)
    module.__path__ = [str(folder)]
    sys.modules[name] = module


spec = importlib.util.find_spec("timm")
assert spec is not None
assert spec.origin is not None
_without_running("timm", Path(spec.origin).parent)
_without_running("timm.optim", Path(spec.origin).parent / "optim")
