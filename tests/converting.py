"""Files to convert, and the command that converts them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from foreign import foreign_params
from support import train

import fusedopt
from fusedopt import convert


def trained(name: str = "AdamW", **kwargs: Any) -> Any:
    optimizer = getattr(fusedopt, name)(foreign_params(), **kwargs)
    train(optimizer, 3)
    return optimizer


def save(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def run(*arguments: Any) -> int:
    return convert.main([str(argument) for argument in arguments])


def load(path: Path) -> Any:
    return torch.load(path, weights_only=True)


@pytest.fixture(name="file")
def file_fixture(tmp_path: Path) -> Path:
    """Of an AdamW, as torch and fusedopt write it."""
    return save(tmp_path / "file.pt", trained().state_dict())
