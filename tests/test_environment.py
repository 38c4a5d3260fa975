"""What environment variables ask for is done, or refused in a sentence that names them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fusedopt
from fusedopt import _compiled, _extension, _toolchain
from fusedopt._toolchain import Tree

ROOT = Path(__file__).parent.parent
RULE = """
struct Plain : RuleDefaults {
  struct Hypers { double lr; };
  static constexpr const char* hyper_names[] = {"lr"};
  static constexpr const char* state_names[] = {"last"};
  static constexpr int counters = 0;
  template <class T> struct Scalars { T lr; };
  FUSEDOPT_HD static Scalars<double> prepare(const Hypers& h, double*, bool) { return {h.lr}; }
  template <int, class T> FUSEDOPT_HD static void update(T& p, T g, T (&s)[1], const Scalars<T>& c) {
    s[0] = g;
    p = p - c.lr * g;
  }
};
"""


def setup(command: str, **environment: str) -> str:
    """What setup.py says as it fails."""
    said = [sys.executable, "setup.py", "-q", command]
    done = subprocess.run(said, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode != 0
    return done.stderr


@pytest.fixture
def launcher(tmp_path: Path) -> Path:
    """As ccache is: it notes what it was called with, and runs it."""
    file = tmp_path / "launcher"
    file.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\nexec "$@"\n')
    file.chmod(0o755)
    return file


def test_the_compiler_may_have_a_launcher_and_flags(
    launcher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gxx = shutil.which(_toolchain.compiler()[0])
    monkeypatch.setenv("CXX", f"{launcher} {gxx} -DSAID=1")
    assert _toolchain.compiler() == [str(launcher), gxx, "-DSAID=1"]
    (tmp_path / "one.cpp").write_text("int one() { return SAID; }\n")
    tree = Tree(tmp_path)
    (made,) = tree.make([_toolchain.cpp_command(Path("one.cpp"))])
    _toolchain.link_engines([made], tmp_path / "one.so")
    calls = (tmp_path / "calls").read_text().splitlines()
    assert all(call.startswith(f"{gxx} -DSAID=1 ") for call in calls)
    assert [sum(word in call for call in calls) for word in (" one.cpp ", " -shared ")] == [1, 1]
    # The object is known by the compiler's version, and not by the launcher's.
    assert calls[0] == f"{gxx} -DSAID=1 --version"


def test_an_empty_name_of_a_compiler_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "")
    assert _toolchain.compiler() == ["g++"]


@pytest.mark.parametrize("name", ["no-such-compiler", "false", "env no-such-compiler"])
@pytest.mark.parametrize("command", ["build_ext", "ahead"])
def test_a_build_without_a_compiler_names_it(command: str, name: str) -> None:
    said = setup(command, CXX=name)
    assert f"there is no C++ compiler '{name}' that runs; install g++ 10 or newer, or set CXX to another" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("MAX_JOBS", "0", "MAX_JOBS is '0'; give how many compilers may run at a time, at least 1"),
        ("MAX_JOBS", "two", "MAX_JOBS is 'two'; give how many compilers"),
        ("FUSEDOPT_CUDA", "yes", "FUSEDOPT_CUDA is 'yes'; use 0 for no CUDA engine"),
        ("FUSEDOPT_ISAS", "avx", "FUSEDOPT_ISAS has 'avx'; write supported, native, or some of "),
        ("FUSEDOPT_TORCHES", "/no/torch", "FUSEDOPT_TORCHES has '/no/torch', which has no version.py; give folders"),
    ],
)
def test_a_build_refuses_what_cannot_be_in_a_sentence(name: str, value: str, said: str) -> None:
    told = setup("ahead", **{"FUSEDOPT_CUDA": "0", name: value})
    assert said in told
    assert "Traceback" not in told


@pytest.mark.parametrize("asked", ["90", "Hopper"])
def test_a_rule_is_refused_an_architecture_and_the_program_goes_on(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by SystemExit, which ends whatever imports this package."""
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", asked)
    with pytest.raises(ValueError, match=f"TORCH_CUDA_ARCH_LIST has '{asked}'; write architectures as 9.0 or 12.0"):
        _toolchain.Cuda().architectures()


def test_a_rule_is_refused_jobs_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSEDOPT_CACHE", str(tmp_path))
    monkeypatch.setenv("MAX_JOBS", "0")
    with pytest.raises(ValueError, match=r"MAX_JOBS is '0'; give how many compilers may run at a time"):
        fusedopt.compile_rule(RULE, name="Plain")


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FUSEDOPT_CACHE", str(tmp_path / "file" / "cache"))
    said = rf"what is compiled cannot be kept in {tmp_path}/file/cache/\S+: Not a directory; set FUSEDOPT_CACHE to a"
    with pytest.raises(RuntimeError, match=said):
        fusedopt.compile_rule(RULE, name="Plain")
    package = tmp_path / "fusedopt"
    (package / "csrc").mkdir(parents=True)
    (package / _toolchain.ENGINES).touch()
    monkeypatch.delenv("FUSEDOPT_COMPILE", raising=False)
    with pytest.raises(RuntimeError, match=said):
        _extension.compiled(package)


def test_a_cache_of_the_user_that_is_relative_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the specification of XDG_CACHE_HOME; compilers, which run elsewhere, would not find it."""
    monkeypatch.delenv("FUSEDOPT_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert _toolchain.cache_folder() == Path.home() / ".cache/fusedopt"
    monkeypatch.setenv("XDG_CACHE_HOME", "/absolute")
    assert _toolchain.cache_folder() == Path("/absolute/fusedopt")


@pytest.mark.parametrize("name", ["class", "", "a b", None, 1])
def test_a_name_that_no_class_can_have_is_refused(name: object) -> None:
    with pytest.raises(ValueError, match="give a Python identifier, which becomes the name of the class"):
        _compiled.compile_rule(RULE, name=name)  # type: ignore[arg-type]
