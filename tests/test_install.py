"""What an installed package says of itself: where Python and type checkers find it, and its version."""

from __future__ import annotations

import os
import re
import shutil
import site
import subprocess
import sys
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

import fusedopt

ROOT = Path(__file__).parent.parent
# What is right, and what is not: a checker that does not find the package takes both for Any.
PROGRAM = """import fusedopt
import torch
params = [torch.nn.Parameter(torch.zeros(3))]
fusedopt.AdamW(params, lr=0.1, master_weights="float32")
fusedopt.AdamW(params, learning_rate=0.1)
"""


def run(command: Sequence[str | Path], folder: Path) -> subprocess.CompletedProcess[str]:
    # What this process was told of paths would find the package without any install.
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "MYPYPATH")}
    environment |= {"PYRIGHT_PYTHON_IGNORE_WARNINGS": "1", "NO_COLOR": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)


@pytest.fixture(scope="module")
def editable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment that has an editable install of the package, less the extension."""
    folder = tmp_path_factory.mktemp("editable")
    project = folder / "project"
    shutil.copytree(ROOT / "fusedopt", project / "fusedopt", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, project)
    build = f"from setuptools.build_meta import build_editable; build_editable({str(folder)!r})"
    built = run([sys.executable, "-c", build], project)
    assert built.returncode == 0, built.stderr
    venv.create(folder / "venv", symlinks=True)
    python = folder / "venv" / "bin" / "python"
    where = run([python, "-c", "import site; print(site.getsitepackages()[0])"], folder)
    packages = Path(where.stdout.strip())
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(packages)
    # torch and the rest are this environment's. A .pth file in a folder that a .pth file names is not read.
    (packages / "others.pth").write_text("\n".join(site.getsitepackages()))
    return python


def test_an_editable_install_is_the_source(editable: Path, tmp_path: Path) -> None:
    find = "import importlib.util as u; print(u.find_spec('fusedopt').origin)"
    found = run([editable, "-c", find], tmp_path).stdout.strip()
    assert found == str(editable.parents[2] / "project" / "fusedopt" / "__init__.py")


@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_a_type_checker_finds_an_editable_install(checker: str, editable: Path, tmp_path: Path) -> None:
    """From another folder, as for anybody who works on a model and on this package."""
    pytest.importorskip(checker, reason=f"needs {checker}, of the test extra")
    (tmp_path / "program.py").write_text(PROGRAM)
    options = {
        "mypy": ["--config-file=", f"--cache-dir={tmp_path / 'cache'}", "--python-executable", str(editable)],
        "pyright": ["--pythonpath", str(editable)],
    }
    if checker == "pyright" and run([sys.executable, "-m", "pyright", "--version"], tmp_path).returncode:
        pytest.skip("pyright cannot start, for it needs node and cannot fetch it")
    done = run([sys.executable, "-m", checker, *options[checker], "program.py"], tmp_path)
    lines = re.findall(r"program\.py:(\d+)(?::\d+)?(?: -|:) error: (.*)", done.stdout)
    assert [number for number, _ in lines] == ["5"], done.stdout + done.stderr
    assert "learning_rate" in lines[0][1]


def test_the_version_stands_in_one_place() -> None:
    """pyproject.toml reads it off the package, and the changelog's newest heading is its."""
    version = fusedopt.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    assert not re.search(r"^version = \"", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    newest = re.findall(r"^## \[(.*?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[0]
    assert newest == version
    places = [ROOT / "pyproject.toml", ROOT / "setup.py", *ROOT.glob("docs/*.py"), *ROOT.glob("fusedopt/**/*.py")]
    naming = [path.name for path in places if re.search(rf"[\"']{re.escape(version)}[\"']", path.read_text())]
    assert naming == ["__init__.py"]
