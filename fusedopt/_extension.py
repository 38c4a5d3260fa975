"""The compiled half: the bindings for the installed torch, or a sentence on what to do where there are none.

The engines are one shared object for any torch. Bindings are a module for each minor version of torch beside it; where
an installed package has none for this one, they are compiled from the sources that it brings.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import re
import shlex
import sys
import tempfile
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader
from pathlib import Path

import torch

from . import _toolchain

PACKAGE = Path(__file__).parent
NAME = f"{__package__}._C"
# As csrc/host/module.cpp has it.
_BUILT_FOR = re.compile(rb"fusedopt is built for torch ([\w.+]+)")


def _remedy(package: Path) -> str:
    root = package.parent
    here = (root / "pyproject.toml").exists()
    return f"run, in {root if here else 'a clone'}: python -m pip install --no-build-isolation {'-e ' * here}."


def bindings(package: Path = PACKAGE) -> Path | None:
    """The file of those that a package has for this torch and this Python."""
    name = _toolchain.binding(torch.__version__)
    files = (package / f"{name}{suffix}" for suffix in EXTENSION_SUFFIXES)
    return next((file for file in files if file.exists()), None)


def why_none(package: Path = PACKAGE) -> str:
    """What keeps a package from having bindings for this torch, and what to do."""
    root = package.parent
    files = sorted(path for path in package.glob("_C_torch*.so"))
    if not files and (root / "pyproject.toml").exists():
        return (
            f"fusedopt is not built in {root}; run there: make build, or, to have it in this environment: python -m "
            "pip install --no-build-isolation -e . (an installed copy is found from any other folder)"
        )
    here = [path for path in files if path.name.partition(".")[2] in {suffix[1:] for suffix in EXTENSION_SUFFIXES}]
    if here:
        found = [_BUILT_FOR.search(path.read_bytes()) for path in here]
        versions = ", ".join(said[1].decode() for said in found if said)
        return f"fusedopt is built for torch {versions}, and this is torch {torch.__version__}; {_remedy(package)}"
    names = ", ".join(path.name for path in files)
    others = f"is built for another Python ({names})" if files else f"has no compiled half in {package}"
    return f"fusedopt {others}, and this Python loads {EXTENSION_SUFFIXES[0]}; {_remedy(package)}"


def compiled(package: Path = PACKAGE) -> Path | None:
    """Bindings for this torch out of the user's cache, compiled if they are not there; None for a source tree.

    Raises:
        RuntimeError: they cannot be compiled, with the reason and what to do.
    """
    engines = package / _toolchain.ENGINES
    if not ((package / "csrc").is_dir() and engines.exists()):
        return None
    digest = hashlib.sha256(f"{package}\0{torch.__version__}\0{EXTENSION_SUFFIXES[0]}".encode())
    for path in sorted(path for path in (package / "csrc").rglob("*") if path.is_file()):
        digest.update(path.read_bytes() + b"\0")
    name = _toolchain.binding(torch.__version__)
    folder = _toolchain.cache_folder() / f"{name}-{digest.hexdigest()[:16]}"
    target = folder / f"{name}{EXTENSION_SUFFIXES[0]}"
    if target.exists():
        return target
    if os.environ.get("FUSEDOPT_COMPILE") == "0":
        raise RuntimeError("FUSEDOPT_COMPILE=0 keeps them from being compiled here; set it to 1, or leave it out")
    if not _toolchain.has_compiler():
        name = shlex.join(_toolchain.compiler())
        raise RuntimeError(f"there is no {name!r} to compile them with; install g++, or set CXX")
    _toolchain.make_in_cache(folder)
    with open(folder / "lock", "w") as lock:
        # Of several processes that are started at once, one compiles.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            print(
                f"fusedopt compiles its bindings for torch {torch.__version__}, once; it takes a minute or two, and "
                f"they are kept in {folder} (FUSEDOPT_COMPILE=0 keeps it from that)",
                file=sys.stderr,
                flush=True,
            )
            _compile(package, target)
    return target


def _compile(package: Path, target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as name:
        folder = Path(name)
        header = folder / "torch.h"
        try:
            _toolchain.run([*_toolchain.torch_header_command(), "-o", f"{header}.gch"], package)
            commands = _toolchain.Tree(package).host_commands(header=header)
            objects = _toolchain.run_all(commands, folder, package)
        except RuntimeError as error:
            said = "they do not compile; g++ 10 or newer and Python's headers are needed"
            raise RuntimeError(f"{said}:\n{error}") from None
        engines = package / _toolchain.ENGINES
        _toolchain.link_bindings(objects, target, _toolchain.beside(engines, rpath=str(package)))


def load() -> None:
    """Make `fusedopt._C` of the bindings for this torch.

    Raises:
        ImportError: there are none, or they do not load, with the reason and what to do.
    """
    file = bindings()
    if file is None:
        try:
            file = compiled()
        except RuntimeError as error:
            raise ImportError(f"{why_none()}\nOr have the bindings compiled at import: {error}") from None
    if file is None:
        raise ImportError(why_none())
    loader = ExtensionFileLoader(NAME, str(file))
    spec = importlib.util.spec_from_loader(NAME, loader)
    assert spec is not None
    try:
        module = importlib.util.module_from_spec(spec)
        loader.exec_module(module)
    except ImportError as error:
        raise ImportError(f"fusedopt's compiled half does not load: {error}; {_remedy(PACKAGE)}") from error
    sys.modules[NAME] = module


# A test may have put another engine there.
if NAME not in sys.modules:
    load()
