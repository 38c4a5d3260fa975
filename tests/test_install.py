"""Building and installing: where Python and type checkers find the package, what is distributed, its version."""

from __future__ import annotations

import re
import shutil
import site
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from projects import ROOT, copy_sources, run
from tiers import slow

import fusedopt

# What is right, and what is not: a checker that does not find the package takes both for Any.
PROGRAM = """import fusedopt
import torch
params = [torch.nn.Parameter(torch.zeros(3))]
fusedopt.AdamW(params, lr=0.1, master_weights="float32")
fusedopt.AdamW(params, learning_rate=0.1)
"""


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


@slow("what a checker finds of it, type checkers are asked from the sources in every run")
@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_a_type_checker_finds_an_editable_install(checker: str, editable: Path, tmp_path: Path) -> None:
    """From another folder, as for anybody who works on a model and on this package."""
    pytest.importorskip(checker, reason=f"needs {checker}, of the test extra")
    (tmp_path / "program.py").write_text(PROGRAM)
    # torch is no part of the question, and takes a checker ten times as long as the package.
    (tmp_path / "mypy.ini").write_text("[mypy]\n[mypy-torch.*]\nfollow_imports = skip\n")
    options = {
        "mypy": ["--config-file=mypy.ini", f"--cache-dir={tmp_path / 'cache'}", "--python-executable", str(editable)],
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


@pytest.fixture(scope="module")
def distribution(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The files of a source distribution, made where there is no torch."""
    folder = tmp_path_factory.mktemp("distribution")
    copy_sources(folder / "project")
    build = f"{WITHOUT_TORCH}; from setuptools.build_meta import build_sdist; build_sdist({str(folder)!r})"
    built = run([sys.executable, "-c", build], folder / "project")
    assert built.returncode == 0, built.stderr
    (file,) = folder.glob("*.tar.gz")
    with tarfile.open(file) as archive:
        return {member.name.partition("/")[2] for member in archive if member.isfile()}


WITHOUT_TORCH = "import sys; sys.modules['torch'] = None"
OF_GIT = {".gitignore", ".ci/run"}


def test_a_source_distribution_holds_all_that_git_does(distribution: set[str]) -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("this is no clone")
    assert set(listed.stdout.splitlines()) - OF_GIT - distribution == set()


def test_a_source_distribution_holds_nothing_that_was_made(distribution: set[str]) -> None:
    assert "tests/conftest.py" in distribution
    assert not [name for name in distribution if name.endswith((".so", ".pyc", ".o"))]


@pytest.mark.parametrize("hook", ["prepare_metadata_for_build_wheel", "prepare_metadata_for_build_editable"])
def test_pip_that_builds_without_torch_is_told_what_to_type(hook: str, tmp_path: Path) -> None:
    """Before it fetches torch, which would be another than the environment's; what comes before this goes through."""
    copy_sources(tmp_path / "project")
    begin = f"{WITHOUT_TORCH}; from setuptools import build_meta; print(build_meta.get_requires_for_build_wheel())"
    asked = run([sys.executable, "-c", begin], tmp_path / "project")
    assert asked.returncode == 0, asked.stderr
    assert "torch" not in asked.stdout
    told = run([sys.executable, "-c", f"{begin}; build_meta.{hook}({str(tmp_path)!r})"], tmp_path / "project")
    assert told.returncode == 1
    assert "in the environment that has torch, run: python -m pip install" in told.stderr.lower()
    assert told.stderr.rstrip().endswith("python -m pip install --no-build-isolation .")
    declared = (ROOT / "pyproject.toml").read_text().split("[project]")[0]
    assert not re.search(r"^requires = .*torch", declared, re.MULTILINE)
