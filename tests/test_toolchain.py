"""What is built, with which flags, and that objects are made once."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fusedopt import _toolchain
from fusedopt._toolchain import Tree

ROOT = Path(__file__).parent.parent
only_x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="about x86's instruction sets")


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    (tmp_path / "one.cpp").write_text('#include "one.h"\nint one() { return ONE; }\n')
    (tmp_path / "one.h").write_text("#define ONE 1\n")
    return Tree(tmp_path)


def stamp(path: Path) -> int:
    return path.stat().st_mtime_ns


def test_an_object_is_made_once_for_each_command(tree: Tree) -> None:
    plain, other = _toolchain.cpp_command(Path("one.cpp")), _toolchain.cpp_command(Path("one.cpp"), ["-DX"])
    (first,) = tree.make([plain])
    before = stamp(first)
    again, different = tree.make([plain, other])
    assert (again, stamp(again)) == (first, before)
    assert different != first


@pytest.mark.parametrize("change", ["edited", "removed"])
def test_a_changed_header_makes_the_object_anew(tree: Tree, change: str) -> None:
    command = _toolchain.cpp_command(Path("one.cpp"))
    (made,) = tree.make([command])
    before = stamp(made)
    header = tree.root / "one.h"
    if change == "edited":
        os.utime(header, (time.time() + 1,) * 2)
        tree.make([command])
        assert stamp(made) > before
    else:
        header.unlink()
        with pytest.raises(SystemExit, match=r"a source does not compile, as said above$"):
            tree.make([command])


def test_what_does_not_compile_leaves_no_object(tree: Tree) -> None:
    (tree.root / "one.cpp").write_text("int one( {")
    for _ in range(2):
        with pytest.raises(SystemExit, match=r"a source does not compile"):
            tree.make([_toolchain.cpp_command(Path("one.cpp"))])
    assert not list(tree.folder.glob("*.o"))


def test_kernels_that_do_not_compile_can_be_left_out(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    (tree.root / "one.cu").write_text("int one( {")
    command = [_toolchain.compiler(), "-x", "c++", "-c", "one.cu"]
    with pytest.raises(SystemExit, match=r"as said above; FUSEDOPT_CUDA=0 builds without the CUDA engine"):
        tree.make([command])


@only_x86
@pytest.mark.parametrize(
    ("asked", "built"),
    [
        ("", ["generic", "avx2", "avx512"]),
        ("avx2", ["generic", "avx2"]),
        ("avx512, generic", ["generic", "avx512"]),
        ("generic", ["generic"]),
    ],
)
def test_instruction_sets_are_those_asked_for(asked: str, built: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSEDOPT_ISAS", asked)
    assert _toolchain.isas() == built


@only_x86
def test_native_is_the_widest_that_the_machine_has(monkeypatch: pytest.MonkeyPatch) -> None:
    from fusedopt import _C

    if _C.built_isas() != _toolchain.ISAS:
        pytest.skip("built for less than all instruction sets")
    monkeypatch.setenv("FUSEDOPT_ISAS", "native")
    assert _toolchain.isas()[-1] == _C.supported_isas()[-1]
    assert len(_toolchain.isas()) <= 2


def test_an_unknown_instruction_set_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSEDOPT_ISAS", "sse9")
    with pytest.raises(SystemExit, match="FUSEDOPT_ISAS has 'sse9'; write native, or some of generic"):
        _toolchain.isas()


@only_x86
def test_what_is_not_built_is_not_compiled_nor_named() -> None:
    tree = Tree(Path(__file__).parent.parent)
    every, fewer = tree.cpu_commands(_toolchain.ISAS), tree.cpu_commands(["generic", "avx512"])
    names = [{Path(command[-1]).name for command in commands} for commands in (every, fewer)]
    assert names[0] - names[1] == {"isa_avx2.cpp"}
    # One file knows which there are; all other objects serve any build.
    assert [command for command in fewer if command not in every] == [
        _toolchain.cpp_command(Path("csrc/cpu/engine.cpp"), ["-DFUSEDOPT_NO_AVX2"])
    ]


def test_cuda_is_built_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSEDOPT_CUDA", "0")
    assert (_toolchain.Cuda().nvcc, _toolchain.Cuda().missing) == (None, "FUSEDOPT_CUDA=0")
    monkeypatch.setattr(_toolchain.os.path, "exists", lambda _: False)
    monkeypatch.setenv("FUSEDOPT_CUDA", "gpu")
    assert (_toolchain.Cuda().nvcc, _toolchain.Cuda().missing) == (None, "FUSEDOPT_CUDA=gpu and there is none")


@pytest.mark.parametrize(("release", "served"), [("11.8", False), ("12.0", False), ("12.1", True), ("13.0", True)])
def test_a_toolkit_that_cannot_compile_the_kernels_is_none(
    release: str, served: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {release}, V{release}.99'\n")
    nvcc.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.delenv("FUSEDOPT_CUDA")
    cuda = _toolchain.Cuda()
    assert cuda.nvcc == (str(nvcc) if served else None)
    if not served:
        assert cuda.missing == f"{nvcc} is of CUDA {release}, and the kernels need CUDA 12.1 or newer"
    # Asked for, it is not left out in silence.
    command = [sys.executable, "setup.py", "-q", "build_ext", f"--build-lib={tmp_path}", f"--build-temp={tmp_path}"]
    environment = {**os.environ, "FUSEDOPT_CUDA": "1"}
    if not served:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode != 0
        assert f"FUSEDOPT_CUDA=1 asks for the CUDA engine, and {cuda.missing}; set CUDA_HOME or" in done.stderr
