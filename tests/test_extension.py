"""What an import says that cannot work: nothing built, or built for another torch or Python."""

from __future__ import annotations

import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch
from projects import copy_sources, run

from fusedopt import _extension

# Less the hook by which an older editable install finds this environment's extension for any copy of the package.
IMPORT = (
    "import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in getattr(f, '__module__', '')]; "
    "import fusedopt"
)


def checkout(folder: Path) -> Path:
    package = folder / "fusedopt"
    package.mkdir()
    (folder / "pyproject.toml").touch()
    return package


def fake_extension(package: Path, version: str, suffix: str = EXTENSION_SUFFIXES[0]) -> None:
    (package / f"_C{suffix}").write_bytes(b"\x7fELF\0fusedopt is built for torch " + version.encode() + b"\0rest")


def test_an_unbuilt_checkout_says_make_build(tmp_path: Path) -> None:
    """By the import itself, from a copy of the sources."""
    copy_sources(tmp_path / "project")
    told = run([sys.executable, "-c", IMPORT], tmp_path / "project")
    last = told.stderr.strip().splitlines()[-1]
    assert last.startswith(f"ImportError: fusedopt is not built in {tmp_path / 'project'}; run there: make build, or")


def test_an_extension_for_another_torch_says_which(tmp_path: Path) -> None:
    """By the import itself, of a file that does not load."""
    copy_sources(tmp_path / "project")
    fake_extension(tmp_path / "project" / "fusedopt", "2.99.0+cu190")
    told = run([sys.executable, "-c", IMPORT], tmp_path / "project")
    assert told.stderr.strip().splitlines()[-1] == (
        f"ImportError: fusedopt is built for torch 2.99.0+cu190, and this is torch {torch.__version__}; run, in "
        f"{tmp_path / 'project'}: python -m pip install --no-build-isolation -e ."
    )


def test_an_extension_for_another_torch_is_not_used_where_it_loads(tmp_path: Path) -> None:
    copy_sources(tmp_path / "project")
    (tmp_path / "project/fusedopt/_C.py").write_text("built_for = 'fusedopt is built for torch 1.2.3'")
    told = run([sys.executable, "-c", IMPORT], tmp_path / "project")
    assert "ImportError: fusedopt is built for torch 1.2.3, and this is torch" in told.stderr


def test_an_extension_older_than_the_sources_says_so(tmp_path: Path) -> None:
    copy_sources(tmp_path / "project")
    (tmp_path / "project/fusedopt/_C.py").touch()
    told = run([sys.executable, "-c", IMPORT], tmp_path / "project")
    assert "ImportError: fusedopt's compiled half is older than its sources; run, in" in told.stderr


def test_what_this_extension_is_built_for_is_in_the_file() -> None:
    package = Path(_extension.__file__).parent
    files = [package / f"_C{suffix}" for suffix in EXTENSION_SUFFIXES if (package / f"_C{suffix}").exists()]
    assert f"fusedopt is built for torch {torch.__version__}\0".encode() in files[0].read_bytes()
    assert _extension.wrong_torch(torch.__version__) is None


def test_patches_and_builds_of_one_torch_share_an_extension() -> None:
    major, minor = torch.__version__.split(".")[:2]
    assert _extension.wrong_torch(f"{major}.{minor}.9+cu999") is None
    assert _extension.wrong_torch(f"{major}.{minor}1.0") is not None


def test_an_extension_for_another_python_says_which(tmp_path: Path) -> None:
    package = checkout(tmp_path)
    fake_extension(package, torch.__version__, ".cpython-399-x86_64-linux-gnu.so")
    said = _extension.why_not_loaded(ImportError("No module named 'fusedopt._C'"), package)
    assert "is built for another Python (_C.cpython-399-x86_64-linux-gnu.so)" in said
    assert f"run, in {tmp_path}: python -m pip install --no-build-isolation -e ." in said


def test_an_installed_package_names_no_checkout(tmp_path: Path) -> None:
    package = tmp_path / "fusedopt"
    package.mkdir()
    said = _extension.why_not_loaded(ImportError("No module named 'fusedopt._C'"), package)
    assert said.endswith("run, in a clone: python -m pip install --no-build-isolation .")


def test_another_reason_is_passed_on(tmp_path: Path) -> None:
    package = checkout(tmp_path)
    fake_extension(package, torch.__version__)
    assert "does not load: file too short" in _extension.why_not_loaded(ImportError("file too short"), package)
