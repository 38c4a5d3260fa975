"""Which bindings an import takes, and what it says where there are none: nothing built, another torch or Python."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest
import torch
from projects import ROOT, copy_sources, run

from fusedopt import _extension, _toolchain

# Less the hook by which an older editable install finds this environment's extension for any copy of the package.
IMPORT = (
    "import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in getattr(f, '__module__', '')]; "
    "import fusedopt"
)
PACKAGE = Path(_extension.__file__).parent


def checkout(folder: Path) -> Path:
    package = folder / "fusedopt"
    package.mkdir()
    (folder / "pyproject.toml").touch()
    return package


def fake_bindings(package: Path, version: str, suffix: str = EXTENSION_SUFFIXES[0]) -> Path:
    path = package / f"{_toolchain.binding(version)}{suffix}"
    path.write_bytes(b"\x7fELF\0fusedopt is built for torch " + version.encode() + b"\0rest")
    return path


def test_an_unbuilt_checkout_says_make_build(tmp_path: Path) -> None:
    """By the import itself, from a copy of the sources."""
    copy_sources(tmp_path / "project")
    told = run([sys.executable, "-c", IMPORT], tmp_path / "project")
    last = told.stderr.strip().splitlines()[-1]
    assert last.startswith(f"ImportError: fusedopt is not built in {tmp_path / 'project'}; run there: make build, or")


def test_what_an_older_layout_has_left_is_no_build(tmp_path: Path) -> None:
    package = checkout(tmp_path)
    (package / f"_C{EXTENSION_SUFFIXES[0]}").write_bytes(b"\x7fELF\0no torch is named here")
    assert _extension.why_none(package).startswith(f"fusedopt is not built in {tmp_path}; run there: make build, or")


def test_a_build_for_another_torch_says_which(tmp_path: Path) -> None:
    """By the import itself."""
    copy_sources(tmp_path / "project")
    for version in ("2.98.0+cu190", "2.99.0"):
        fake_bindings(tmp_path / "project" / "fusedopt", version)
    told = run([sys.executable, "-c", IMPORT], tmp_path / "project")
    assert told.stderr.strip().splitlines()[-1] == (
        f"ImportError: fusedopt is built for torch 2.98.0+cu190, 2.99.0, and this is torch {torch.__version__}; run, "
        f"in {tmp_path / 'project'}: python -m pip install --no-build-isolation -e ."
    )


def test_of_several_torches_the_installed_ones_bindings_are_taken(tmp_path: Path) -> None:
    major, minor = torch.__version__.split(".")[:2]
    assert _extension.bindings(tmp_path) is None
    for other in (f"{major}.{minor}1.0", f"{major}.{int(minor) - 1}.0", f"{major}.1.0"):
        fake_bindings(tmp_path, other)
    fake_bindings(tmp_path, torch.__version__, ".cpython-399-x86_64-linux-gnu.so")
    assert _extension.bindings(tmp_path) is None
    ours = fake_bindings(tmp_path, torch.__version__)
    assert _extension.bindings(tmp_path) == ours


def test_patches_and_builds_of_one_torch_share_bindings() -> None:
    assert _toolchain.binding("2.13.0+cpu") == _toolchain.binding("2.13.9+cu999") == "_C_torch2_13"
    assert _toolchain.binding("2.14.0a0+gitabc") == "_C_torch2_14"
    assert _toolchain.binding("2.1.3") != _toolchain.binding("2.13.0")


def test_what_these_bindings_are_built_for_is_in_the_file() -> None:
    file = _extension.bindings()
    assert file is not None
    assert f"fusedopt is built for torch {torch.__version__}\0".encode() in file.read_bytes()


def needed(library: Path) -> set[str]:
    if shutil.which("readelf") is None:
        pytest.skip("needs readelf")
    listed = subprocess.run(["readelf", "-dW", str(library)], capture_output=True, text=True, check=True).stdout
    return {line.partition("[")[2].rstrip("]") for line in listed.splitlines() if "(NEEDED)" in line}


def test_the_engines_need_neither_torch_nor_python() -> None:
    libraries = needed(PACKAGE / _toolchain.ENGINES)
    assert libraries
    assert not [name for name in libraries if "torch" in name or "c10" in name or "python" in name]
    file = _extension.bindings()
    assert file is not None
    assert {_toolchain.ENGINES, "libtorch_cpu.so", "libc10.so", "libtorch_python.so"} <= needed(file)


def test_bindings_call_engines_by_names_without_strings() -> None:
    """There are two std::string, and a torch may have been compiled with either."""
    if shutil.which("nm") is None:
        pytest.skip("needs nm")
    nm = ["nm", "-DC", "--defined-only", str(PACKAGE / _toolchain.ENGINES)]
    names = subprocess.run(nm, capture_output=True, text=True, check=True).stdout
    called = [line for line in names.splitlines() if " T fusedopt::" in line]
    assert len(called) > 20
    assert not [line for line in called if "basic_string<" in line]
    # What they return is in no name.
    headers = [path for path in ROOT.glob("csrc/**/*.h") if "GCC visibility push(default)" in path.read_text()]
    assert len(headers) == 8
    for header in headers:
        assert "std::string " not in header.read_text().replace("no std::string of", "")


def test_a_build_for_another_python_says_which(tmp_path: Path) -> None:
    package = checkout(tmp_path)
    file = fake_bindings(package, torch.__version__, ".cpython-399-x86_64-linux-gnu.so")
    said = _extension.why_none(package)
    assert f"is built for another Python ({file.name})" in said
    assert f"run, in {tmp_path}: python -m pip install --no-build-isolation -e ." in said


def test_an_installed_package_names_no_checkout(tmp_path: Path) -> None:
    package = tmp_path / "fusedopt"
    package.mkdir()
    said = _extension.why_none(package)
    assert said.endswith("run, in a clone: python -m pip install --no-build-isolation .")


def test_bindings_that_do_not_load_say_why(tmp_path: Path) -> None:
    copy_sources(tmp_path / "project")
    file = fake_bindings(tmp_path / "project/fusedopt", torch.__version__)
    told = run([sys.executable, "-c", IMPORT], tmp_path / "project")
    last = told.stderr.strip().splitlines()[-1]
    assert last.startswith(f"ImportError: fusedopt's compiled half does not load: {file}: ")


# An installed package whose only source exports a module that says where it comes from.
MODULE = """#include <Python.h>
static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C"};
PyMODINIT_FUNC PyInit__C() {
  PyObject* module = PyModule_Create(&definition);
  PyModule_AddStringConstant(module, "built_for", FUSEDOPT_TORCH);
  return module;
}
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    package = tmp_path / "site" / "fusedopt"
    (package / "csrc/host").mkdir(parents=True)
    (package / "csrc/host/module.cpp").write_text(MODULE)
    (package / "csrc/host/device.cpp").touch()
    (package / "csrc/host/torch.h").write_text("#include <Python.h>\n")
    (tmp_path / "empty.cpp").touch()
    (one,) = _toolchain.run_all([_toolchain.cpp_command(tmp_path / "empty.cpp")], tmp_path, tmp_path)
    _toolchain.link_engines([one], package / _toolchain.ENGINES)
    monkeypatch.setenv("FUSEDOPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FUSEDOPT_COMPILE", raising=False)
    return package


def test_missing_bindings_are_compiled_once(installed: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Into the user's cache, with a line that says so; several processes at once make one."""
    program = (
        f"from pathlib import Path; from fusedopt import _extension as e; print(e.compiled(Path({str(installed)!r})))"
    )
    both = [subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stderr=2, stdout=subprocess.PIPE) for _ in "ab"]
    paths = {process.communicate()[0] for process in both}
    assert len(paths) == 1
    assert capfd.readouterr().err.count(f"fusedopt compiles its bindings for torch {torch.__version__}, once;") == 1
    file = _extension.compiled(installed)
    assert str(file).encode() == paths.pop().strip()
    assert file is not None
    assert {_toolchain.ENGINES, "libtorch_cpu.so"} <= needed(file)
    assert str(installed).encode() in file.read_bytes()
    assert "fusedopt" not in capfd.readouterr().err
    (installed / "csrc/host/module.cpp").write_text(MODULE + "// of another version\n")
    assert _extension.compiled(installed) != file


def test_missing_bindings_are_not_compiled_against_ones_will(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSEDOPT_COMPILE", "0")
    with pytest.raises(RuntimeError, match="FUSEDOPT_COMPILE=0 keeps them from being compiled here"):
        _extension.compiled(installed)


def test_without_a_compiler_the_sentence_names_it(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(RuntimeError, match=r"no 'no-such-compiler' to compile them with; install g\+\+, or set CXX"):
        _extension.compiled(installed)


def test_sources_that_this_torch_does_not_compile_say_so(installed: Path) -> None:
    (installed / "csrc/host/module.cpp").write_text("int one( {")
    with pytest.raises(RuntimeError, match=r"they do not compile; .*\n.*module\.cpp:1:"):
        _extension.compiled(installed)
    assert not list(installed.parent.parent.glob("cache/*/*.so"))


def test_a_source_tree_is_not_compiled_by_an_import(installed: Path) -> None:
    shutil.rmtree(installed / "csrc")
    assert _extension.compiled(installed) is None
