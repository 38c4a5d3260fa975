"""The libraries that pictures and tables are made with, which training does not need and an installation may lack."""

from __future__ import annotations

import importlib.util

from .report import BenchError

EXTRAS = {"rich": "the tables and the progress bar", "matplotlib": "the plots"}


def require(*modules: str) -> None:
    """Raise BenchError, with what to install, unless all are there."""
    missing = [m for m in modules if importlib.util.find_spec(m) is None]
    if missing:
        needs = " and ".join(f"{EXTRAS[m]} need {m}" for m in missing)
        raise BenchError(f"{needs}, which is not installed: python -m pip install {' '.join(missing)}")
