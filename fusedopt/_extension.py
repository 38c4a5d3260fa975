"""The compiled half, or a sentence on what to do where it cannot be loaded."""

from __future__ import annotations

import re
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch

PACKAGE = Path(__file__).parent
# As csrc/host/module.cpp has it, so that it can be read off a file which does not load.
_BUILT_FOR = re.compile(rb"fusedopt is built for torch ([\w.+]+)")


def _minor(version: str) -> list[str]:
    return version.split(".")[:2]


def _remedy(package: Path) -> str:
    root = package.parent
    here = (root / "pyproject.toml").exists()
    return f"run, in {root if here else 'a clone'}: python -m pip install --no-build-isolation {'-e ' * here}."


def wrong_torch(built_for: str, package: Path = PACKAGE) -> str | None:
    """What to say of an extension that was built for another minor version of torch; None if it was not.

    Within a minor version torch's C++ stays as it is. Across them nobody promises that, whether or not the file loads.
    """
    if _minor(built_for) == _minor(torch.__version__):
        return None
    return f"fusedopt is built for torch {built_for}, and this is torch {torch.__version__}; {_remedy(package)}"


def why_not_loaded(error: ImportError, package: Path = PACKAGE) -> str:
    """What keeps the extension of a package from being loaded, and what to do."""
    root = package.parent
    files = [path.name for path in package.glob("_C.*") if path.suffix != ".pyi"]
    if not files and (root / "pyproject.toml").exists():
        return (
            f"fusedopt is not built in {root}; run there: make build, or, to have it in this environment: python -m "
            "pip install --no-build-isolation -e . (an installed copy is found from any other folder)"
        )
    loadable = [name for name in files if name in {f"_C{suffix}" for suffix in EXTENSION_SUFFIXES}]
    if not loadable:
        others = f"is built for another Python ({', '.join(files)})" if files else f"has no compiled half in {package}"
        return f"fusedopt {others}, and this Python loads _C{EXTENSION_SUFFIXES[0]}; {_remedy(package)}"
    found = _BUILT_FOR.search((package / loadable[0]).read_bytes())
    said = wrong_torch(found[1].decode(), package) if found else None
    return said or f"fusedopt's compiled half does not load: {error}; {_remedy(package)}"


try:
    from . import _C
except ImportError as error:
    raise ImportError(why_not_loaded(error)) from error
if not hasattr(_C, "built_for"):
    raise ImportError(f"fusedopt's compiled half is older than its sources; {_remedy(PACKAGE)}")
if (_said := wrong_torch(_C.built_for.rpartition(" ")[2])) is not None:
    raise ImportError(_said)
