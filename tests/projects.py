"""Copies of the project in other folders, and programs that see nothing of this one."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent


def run(command: Sequence[str | Path], folder: Path) -> subprocess.CompletedProcess[str]:
    # What this process was told of paths would find the package without any install.
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "MYPYPATH")}
    environment |= {"PYRIGHT_PYTHON_IGNORE_WARNINGS": "1", "NO_COLOR": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)


def copy_sources(to: Path) -> None:
    made = shutil.ignore_patterns(".*venv*", ".git", "build", "dist", "*.egg-info", "*.so", "__pycache__", ".*_cache")
    shutil.copytree(ROOT, to, ignore=made, dirs_exist_ok=True)


def renew_sources(to: Path) -> None:
    """The same once more; what was built of them before stays."""
    for path in to.iterdir() if to.exists() else ():
        if path.name != "build":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    copy_sources(to)
