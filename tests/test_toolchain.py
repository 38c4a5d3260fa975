"""What is built, with which flags, and that objects are made once."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from build import engine_commands

from fusedopt import _toolchain
from fusedopt._toolchain import Rule, Tree

PACKAGE = Tree(Path(__file__).parent.parent)

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
    command = [*_toolchain.compiler(), "-x", "c++", "-c", "one.cu"]
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
def test_of_words_instruction_sets_are_those_that_the_machine_has(monkeypatch: pytest.MonkeyPatch) -> None:
    from fusedopt import _C

    monkeypatch.setenv("FUSEDOPT_ISAS", "supported")
    supported = _toolchain.isas()
    monkeypatch.setenv("FUSEDOPT_ISAS", "native")
    assert _toolchain.isas() == supported[-1:]
    # A processor may have what this build lacks.
    assert [isa for isa in supported if isa in _C.built_isas()] == _C.supported_isas()


@pytest.mark.parametrize("asked", ["", "supported", "native", "generic"])
def test_where_there_is_one_instruction_set_it_is_built(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    monkeypatch.setenv("FUSEDOPT_ISAS", asked)
    assert _toolchain.isas() == ["generic"]


def test_an_unknown_instruction_set_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSEDOPT_ISAS", "sse9")
    with pytest.raises(
        _toolchain.SettingError, match="FUSEDOPT_ISAS has 'sse9'; write supported, native, or some of generic"
    ):
        _toolchain.isas()


def test_only_gcc_builds_more_than_the_baseline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_toolchain, "_version_of", lambda _: "Debian clang version 14.0.6")
    assert _toolchain.isas() == ["generic"]


@only_x86
def test_what_is_not_built_is_not_compiled_nor_named() -> None:
    every, fewer = (PACKAGE.cpu_commands(isas, cuda=False) for isas in (_toolchain.ISAS, ["generic", "avx512"]))
    assert not [command for command in fewer if "-DFUSEDOPT_ISA_AVX2" in command]
    assert len([command for command in every if "-DFUSEDOPT_ISA_AVX2" in command]) == 4 + len(PACKAGE.rules())
    # Two files know which there are; all other objects serve any build.
    named = [command for command in fewer if command not in every]
    assert [command[-1] for command in named] == ["csrc/registry.cpp", "csrc/cpu/engine.cpp"]
    assert not [flag for command in named for flag in command if "avx2" in flag]


def test_a_rule_is_a_struct_that_a_header_has(tree: Tree) -> None:
    folder = tree.root / "csrc" / "rules"
    folder.mkdir(parents=True)
    (folder / "rule.h").write_text("struct RuleDefaults {};\n")
    (folder / "two.h").write_text(
        "struct A : RuleDefaults {};\nstruct Helper {};\nstruct B final: public RuleDefaults {};"
    )
    assert tree.rules() == [Rule("A", "two.h"), Rule("B", "two.h")]
    (registry,) = [c for c in tree.cpu_commands(["generic", "avx2"], cuda=True) if c[-1] == "csrc/registry.cpp"]
    assert "-DFUSEDOPT_CPU_RULES(do)=do(generic, A) do(generic, B) do(avx2, A) do(avx2, B)" in registry
    assert "-DFUSEDOPT_CUDA_RULES(do)=do(A) do(B)" in registry


def test_kernels_are_compiled_three_rules_at_a_time() -> None:
    rules = [Rule(name, f"{name.lower()}.h") for name in "ABCD"]
    first, last = _toolchain.in_threes(rules)
    assert _toolchain.kernel_flags(first)[2:] == [
        "-DFUSEDOPT_RULES(do)=do(A) do(B) do(C)",
        *(word for name in "abc" for word in ("-include", f"{name}.h")),
    ]
    assert _toolchain.kernel_flags(last)[2:] == ["-DFUSEDOPT_RULES(do)=do(D)", "-include", "d.h"]


@pytest.mark.parametrize(
    ("asked", "alike", "wide"),
    [
        ("9.0", "90:90", "90:90"),
        ("8.0 9.0 10.0 12.0", "80:80,90,100,120", "80:80,90 100:100,120"),
        ("9.0 8.0 12.0 10.0+PTX", "80:80,90,100,120,ptx", "80:80,90 100:100,120,ptx"),
        ("8.0+PTX", "80:80,ptx", "80:80,ptx"),
        ("10.0", "100:100", "100:100"),
        ("9.0a 12.0", "120:120 90a:90a", "120:120 90a:90a"),
    ],
)
def test_wide_accesses_have_a_ptx_of_their_own(
    asked: str, alike: str, wide: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FUSEDOPT_CUDA", "0")
    cuda = _toolchain.Cuda()
    for expected, is_wide in ((alike, False), (wide, True)):
        flags, names = cuda.codes(asked.split(), is_wide)
        found = []
        for flag in flags:
            ptx, kinds = re.fullmatch(r"-gencode=arch=compute_(\w+),code=\[(.*)\]", flag).groups()  # type: ignore[union-attr]
            found.append(f"{ptx}:{kinds.replace(f'compute_{ptx}', 'ptx').replace('sm_', '')}")
        assert " ".join(found) == expected
        assert names.count("sm_") == len(asked.split())


def test_a_rule_that_is_included_is_no_header_of_torchs(tree: Tree) -> None:
    """Which alone is compiled before what includes it."""
    command = ["g++", *_toolchain.kernel_flags([Rule("A", "a.h"), Rule("B", "a.h")]), "-c", "kernels.cpp"]
    assert command.count("-include") == 1
    assert ".gch" not in tree._recipe([command])


def test_what_includes_torch_is_begun_first() -> None:
    """But for kernels: each of its objects takes as long as ten of the CPU's rules."""
    commands = [*PACKAGE.cpu_commands(["generic"], cuda=False), *PACKAGE.host_commands()]
    know_torch = [command in PACKAGE.host_commands() for command in sorted(commands, key=_toolchain._rank)]
    assert know_torch == sorted(know_torch, reverse=True)


def test_an_object_of_many_rules_is_not_named_by_all(tree: Tree) -> None:
    rules = [Rule(f"Rule{n}", f"{n}.h") for n in range(40)]
    commands = [["g++", *_toolchain.kernel_flags(some), "-c", "rule.cu"] for some in (rules[:2], rules)]
    few, many = (tree._object(command).name for command in commands)
    assert few.startswith("rule-Rule0-Rule1-")
    assert many.startswith("rule-40_rules-")


def test_an_edited_rule_makes_its_own_objects_anew() -> None:
    """By the files that the compiler has read for each object of the package's rules."""
    tree = Tree(PACKAGE.root)
    commands = [c for rule in tree.rules() for c in _toolchain.rule_commands(rule, ["generic"])]
    read = {path: Path(f"{path}.d").read_text() for path in tree.make(commands)}
    for rule in tree.rules():
        those = [path.name for path, files in read.items() if f"rules/{rule.header}" in files]
        same_header = sorted(other.struct for other in tree.rules() if other.header == rule.header)
        assert sorted(name.split("-")[1] for name in those) == same_header


def test_an_edit_of_a_rule_without_sums_leaves_what_makes_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels of sums are compiled with the rules that have some, and not at all where none has."""
    assert {rule.struct for rule in PACKAGE.rules() if rule.sums} == {
        *("Adam", "Adan", "LAMB", "LARS", "Lion", "MARS", "NovoGrad", "Prodigy", "StableAdamW"),
    }
    monkeypatch.setenv("FUSEDOPT_CUDA", "0")
    cuda = _toolchain.Cuda()
    monkeypatch.setattr(cuda, "_release", lambda: (13, 0))
    with_sums, without = Rule("A", "a.h", sums=True), Rule("B", "b.h")
    commands = cuda.rule_commands([with_sums, without], ["9.0"])
    told = {Path(command[-1]).stem: re.findall(r"do\((\w)\)", " ".join(command)) for command in commands}
    assert told == {"common": ["A", "B"], "sums": ["A"], "rule": ["A", "B"]}
    assert not any(command[-1].endswith("sums.cu") for command in cuda.rule_commands([without], ["9.0"]))


@pytest.mark.parametrize(
    ("text", "has"),
    [
        ("static constexpr int sums = 2;", True),
        ("static constexpr int sums{1};", True),
        ("enum { sums=3 };", True),
        ("static constexpr int sums = 0;", False),
        ("const double norm = sqrt(sums[0]);", False),
        ("static constexpr int checksums = 2;", False),
    ],
)
def test_sums_are_read_off_a_header(text: str, has: bool) -> None:
    assert _toolchain.have_sums(text) is has


def test_what_the_bindings_call_of_torch_is_included_by_its_name() -> None:
    """Which header brings a function besides its own differs from torch to torch."""
    torch = _toolchain.installed_torch()
    assert torch is not None
    there = {path.stem for path in (torch.folder / "include/ATen/ops").glob("*.h")}
    sources = "".join((ROOT / path).read_text() for path in PACKAGE.sources("csrc/host/*.*", "csrc/*/host*.*"))
    called = {*re.findall(r"\bat::(\w+)\(", sources)} & there
    included = {*re.findall(r"<ATen/ops/(\w+)\.h>", (ROOT / _toolchain.TORCH_HEADER).read_text())}
    assert "empty" in called
    assert called == included


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


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_make_builds_anew_when_there_is_something_new(tmp_path: Path) -> None:
    """With a Python that only notes that it was asked to build."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("csrc/codec.h", "csrc/left.h", "csrc/cpu/tile.h", "csrc/cpu/left.h", "fusedopt/_toolchain.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    python, log = tmp_path / ".venv/bin/python", tmp_path / "log"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\necho "$*" >> {log}\n')
    python.chmod(0o755)
    for name in ("pyproject.toml", "setup.py", ".venv/.made", ".venv/.tools"):
        (tmp_path / name).touch()

    def builds(**told: str) -> int:
        time.sleep(0.02)  # a file system's clock ticks in up to ten milliseconds
        log.write_text("")
        plain = {k: v for k, v in os.environ.items() if not k.startswith(("FUSEDOPT", "TORCH_CUDA", "MAKE", "MFLAGS"))}
        subprocess.run(["make", "-s", "build", "CONSTRAINTS="], cwd=tmp_path, env={**plain, **told}, check=True)
        asked = log.read_text().splitlines()
        # What comes beside pip builds nothing else.
        return len([line for line in asked if not line.endswith(" ahead")])

    def changed(change: object, **told: str) -> None:
        assert builds(**told) == 1, change
        assert builds() == builds(**told) == 0, change

    changed("nothing is there")
    for name in ("csrc/codec.h", "csrc/cpu/tile.h", "fusedopt/_toolchain.py"):
        time.sleep(0.02)
        (tmp_path / name).touch()
        changed(name)
    for name in ("csrc/cpu/left.h", "csrc/left.h"):
        time.sleep(0.02)
        (tmp_path / name).unlink()
        changed(name)
    for name, value in (("FUSEDOPT_ISAS", "native"), ("FUSEDOPT_CUDA", "0"), ("FUSEDOPT_CUDA", "1")):
        changed((name, value), **{name: value})
    changed("architectures", TORCH_CUDA_ARCH_LIST="8.0 9.0")


def test_what_is_compiled_before_there_is_a_torch_knows_of_none() -> None:
    commands = [*PACKAGE.engine_commands(["generic"], _toolchain.Cuda()), *engine_commands(_toolchain, PACKAGE)]
    assert len(commands) > 50
    of_torch = [word for command in commands for word in command if word.startswith(("-isystem", "-DFUSEDOPT_TORCH"))]
    assert not of_torch


OF_PACKAGE, OF_TESTS = "setup.py -q ahead", "tests/cuda_emulator/build.py --ahead"


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
@pytest.mark.parametrize(
    ("goal", "ahead"),
    [("built", OF_PACKAGE), ("built-for-demo", OF_PACKAGE), ("built-for-test", OF_TESTS), ("tools", None)],
)
def test_make_compiles_beside_pip(tmp_path: Path, goal: str, ahead: str | None) -> None:
    """With the same settings as later, or other objects would be made."""
    for name in ("Makefile", "pyproject.toml", "setup.py", "csrc/step.h", "fusedopt/_toolchain.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    command = ["make", "-n", f".venv/.{goal}", "CONSTRAINTS=", "MAKEFLAGS="]
    told = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True).stdout.splitlines()
    installs = [line for line in told if re.search(r"pip install .*(\btorch\b|-e )", line)]
    assert len(installs) == 1 + (ahead is not None)
    for line in installs:
        begun, waited = f".venv/bin/python {ahead} & ahead=$!; ", "; installed=$?; wait $ahead && exit $installed"
        assert (line.startswith(begun), line.endswith(waited)) == (ahead is not None,) * 2


def test_setup_knows_what_make_asks_of_it() -> None:
    command = [sys.executable, "setup.py", OF_PACKAGE.split()[-1], "--help"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
