"""Checkpoints on disk: torch's files and safetensors, read as they are trusted and written whole or not at all."""

from __future__ import annotations

import json
import os
import pickle
import re
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SAFETENSORS = ".safetensors"
# Where a safetensors file has what is no tensor.
_REST = "fusedopt"


class FileError(Exception):
    """A sentence about a file, and what to do."""


def read(path: Path, weights_only: bool = True) -> Any:
    """What a file holds, with tensors on the CPU."""
    if not path.is_file():
        raise FileError(f"{path} is no file")
    if path.suffix == SAFETENSORS:
        return _read_safetensors(path)
    try:
        # Tensors of torch's own format need not all be in memory.
        return torch.load(path, map_location="cpu", weights_only=weights_only, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found is None or not weights_only:
            raise FileError(f"{path} is no file of torch.save: {_first_line(error)}") from error
        raise FileError(
            f"{path} holds more than tensors and plain data: {found[1]}; if you trust whoever wrote it, give "
            "--no-weights-only, which runs what the file says"
        ) from error
    except (EOFError, RuntimeError, ImportError, AttributeError) as error:
        raise FileError(f"{path} cannot be read: {_first_line(error)}") from error
    except OSError:
        raise
    except Exception as error:  # to an unpickler a text is a program, which fails in any way
        raise FileError(f"{path} is no file of torch.save: {type(error).__name__} as it was read") from error


def write(path: Path, content: Any, overwrite: bool = False) -> None:
    """Write under another name beside it, and rename: whoever looks finds all of it or what was there."""
    refuse_existing(path, overwrite)
    if not path.parent.is_dir():
        raise FileError(f"there is no folder {path.parent}")
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    try:
        if path.suffix == SAFETENSORS:
            _write_safetensors(Path(name), content)
        else:
            torch.save(content, name)
        with open(name, "rb") as file:
            os.fsync(file.fileno())
        # As any new file of this user; mkstemp's are for nobody else.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(name, 0o666 & ~mask)
        refuse_existing(path, overwrite)
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def refuse_existing(path: Path, overwrite: bool) -> None:
    if path.exists() and not (overwrite and path.is_file()):
        raise FileError(f"{path} exists; give --force to write over it, or another name by --out")


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


# safetensors holds a flat dict of tensors, and text. Tensors are under the keys that lead to them, joined by dots; the
# text is JSON of the whole, with those names in their places.


def _safetensors(path: Path) -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise FileError(
            f"{path}: files of this kind take the package safetensors, which is not installed: pip install safetensors"
        ) from error
    return safetensors


def _read_safetensors(path: Path) -> Any:
    package = _safetensors(path)
    try:
        with package.safe_open(path, "pt") as file:
            rest = (file.metadata() or {}).get(_REST)
            if rest is None:
                raise FileError(
                    f"{path} has tensors and no param_groups: its metadata lack {_REST!r}, under which this command "
                    "writes what is no tensor; give the file that they come from"
                )
            return _decoded(json.loads(rest), {key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118
    except package.SafetensorError as error:
        raise FileError(f"{path} cannot be read: {_first_line(error)}") from error


def _write_safetensors(path: Path, content: Any) -> None:
    package = _safetensors(path)
    tensors: dict[str, Tensor] = {}
    rest = json.dumps(_encoded(content, "", tensors))
    package.torch.save_file(tensors, path, {"format": "pt", _REST: rest})


def _encoded(value: Any, at: str, tensors: dict[str, Tensor]) -> Any:
    """JSON of a value, whose tensors go into `tensors` under their names. Lists are as they are."""
    if isinstance(value, Tensor):
        if type(value) not in (Tensor, torch.nn.Parameter):
            raise FileError(f"{at or 'the file'} is a {type(value).__name__}, which safetensors cannot hold")
        # Keys may have dots of their own, or be 0 beside "0".
        name = at
        while name in tensors:
            name += "'"
        # None may share memory with another.
        tensors[name] = value.detach().clone(memory_format=torch.contiguous_format)
        return {"tensor": name}
    if isinstance(value, Mapping):
        inner = [[key, _encoded(its, f"{at}.{key}" if at else str(key), tensors)] for key, its in value.items()]
        if all(isinstance(key, (str, int)) for key, _ in inner):
            return {"dict": inner}
    if isinstance(value, (list, tuple)):
        inner = [_encoded(its, f"{at}.{i}" if at else str(i), tensors) for i, its in enumerate(value)]
        return {"tuple": inner} if isinstance(value, tuple) else inner
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise FileError(f"{at} is a {type(value).__name__}, which safetensors cannot hold; use another suffix by --out")


def _decoded(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_decoded(its, tensors) for its in value]
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = value.items()
    if kind == "tensor":
        return tensors[inner]
    if kind == "tuple":
        return tuple(_decoded(its, tensors) for its in inner)
    return {key: _decoded(its, tensors) for key, its in inner}
