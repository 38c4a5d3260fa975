"""The libraries that pictures and tables are made with, which training does not need and an installation may lack."""

from __future__ import annotations

import importlib.util

from .report import BenchError

EXTRAS = {"rich": "the tables and the progress bar", "matplotlib": "the plots"}


def missing(*modules: str) -> list[str]:
    return [m for m in modules if importlib.util.find_spec(m) is None]


def require(*modules: str) -> None:
    """Raise BenchError, with what to install, unless all are there."""
    if absent := missing(*modules):
        needs = " and ".join(f"{EXTRAS[m]} need {m}" for m in absent)
        raise BenchError(f"{needs}, which is not installed: python -m pip install {' '.join(absent)}")
