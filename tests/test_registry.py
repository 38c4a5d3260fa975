"""A rule is complete when it has its class, cases, docstring and row in the docs; the layers keep to their rooms."""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
from pathlib import Path

import pytest
import torch
from cases import CASES, ONE_PER_OPTIMIZER

import fusedopt
from fusedopt import _C
from fusedopt._core.optimizer import FusedStep
from fusedopt._core.standalone import Standalone

ROOT = Path(__file__).parent.parent
FUSED = [v for v in vars(fusedopt).values() if inspect.isclass(v) and issubclass(v, FusedStep)]
# Those that take any params and dense gradients, which tests/cases.py drives. Adafactor, Muon, SparseAdam and LBFGS
# have tests of their own.
OWN_TESTS = ("Adafactor", "Muon", "SparseAdam")
OPTIMIZERS = [cls for cls in FUSED if hasattr(cls, "_rule") and cls.__name__ not in OWN_TESTS]
PUBLIC = [getattr(fusedopt, name) for name in fusedopt.__all__]


def test_every_rule_has_an_optimizer() -> None:
    used = {cls._rule for cls in FUSED if hasattr(cls, "_rule")} | {"muon_update"}
    assert used == set(_C.rules())


@pytest.mark.parametrize("cls", OPTIMIZERS, ids=lambda cls: cls.__name__)
def test_every_rule_that_a_plan_steps_has_its_cases(cls: type[FusedStep]) -> None:
    assert any(case.optimizer == cls.__name__ for case in CASES)


@pytest.mark.parametrize("cls", FUSED, ids=lambda cls: cls.__name__)
def test_every_optimizer_is_exported_and_has_its_row(cls: type[FusedStep]) -> None:
    assert cls.__name__ in fusedopt.__all__
    assert re.search(rf"^\| `{cls.__name__}` \|", (ROOT / "docs/optimizers.md").read_text(), re.MULTILINE)
    if hasattr(torch.optim, cls.__name__):
        assert issubclass(cls, getattr(torch.optim, cls.__name__))
    else:
        assert issubclass(cls, Standalone)


@pytest.mark.parametrize("cls", OPTIMIZERS, ids=lambda cls: cls.__name__)
def test_every_variant_of_a_rule_has_a_case(cls: type[FusedStep]) -> None:
    """Each state key that the rule can keep is kept by some case."""
    kept = {key for case in CASES if case.cls._rule == cls._rule for key in case.kept}
    rule = _C.rules()[cls._rule]
    assert kept == {*rule["states"], *rule["counters"]}


@pytest.mark.parametrize("cls", OPTIMIZERS, ids=lambda cls: cls.__name__)
def test_every_argument_that_changes_the_maths_has_a_case(cls: type[FusedStep]) -> None:
    """A value other than the default's, for some variant of the rule."""
    defaults = {name: p.default for name, p in inspect.signature(cls).parameters.items()}
    hypers = {name.partition(".")[0] for name in _C.rules()[cls._rule]["hypers"]} | {"maximize"}
    cases = [case for case in CASES if case.cls._rule == cls._rule]
    for name in hypers & defaults.keys():
        assert any(case.kwargs.get(name, defaults[name]) != defaults[name] for case in cases), name


def test_one_case_stands_for_each_optimizer() -> None:
    assert sorted(case.optimizer for case in ONE_PER_OPTIMIZER) == sorted(cls.__name__ for cls in OPTIMIZERS)


@pytest.mark.parametrize("cls", OPTIMIZERS, ids=lambda cls: cls.__name__)
def test_docstrings_name_every_argument(cls: type[FusedStep]) -> None:
    doc = inspect.getdoc(cls) or ""
    for name in inspect.signature(cls).parameters:
        assert re.search(rf"^    {name}: ", doc, re.MULTILINE), name
    for part in (".. math::", "Raises:", "Example:", "Source"):
        assert part in doc


# Methods and properties that every optimizer inherits.
SHARED = {
    name: member
    for cls in FusedStep.__mro__
    if cls.__module__.startswith("fusedopt.")
    for name, member in vars(cls).items()
    if (callable(member) or isinstance(member, property)) and ">>>" in (member.__doc__ or "")
}


@pytest.mark.parametrize(
    ("name", "thing"),
    [
        *((t.__name__, t) for t in PUBLIC if callable(t)),
        *((f"functional.{name}", getattr(fusedopt.functional, name)) for name in fusedopt.functional.__all__),
        *SHARED.items(),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_docstring_examples_run(name: str, thing: object) -> None:
    names = {"torch": torch, "fusedopt": fusedopt}
    finder = doctest.DocTestFinder(recurse=False)
    tests = finder.find(thing, name, module=importlib.import_module("fusedopt"), globs=names)
    examples = [example for test in tests for example in test.examples]
    assert examples, "no example"
    for test in tests:
        assert doctest.DocTestRunner().run(test).failed == 0


# Headers of torch, pybind11 and Python.
TORCH = re.compile(r'#include *[<"](torch|ATen|c10|pybind11)/|#include *[<"](Python|structmember)\.h')


def seen_by(path: Path) -> set[Path]:
    """A file of csrc and all that it includes of csrc."""
    seen: set[Path] = set()
    waiting = [path]
    while waiting:
        one = waiting.pop()
        if one in seen or not one.exists():
            continue
        seen.add(one)
        waiting += [(one.parent / name).resolve() for name in re.findall(r'#include *"([^"]+)"', one.read_text())]
    return seen


def test_bindings_alone_see_torch() -> None:
    """Two headers include it, Python or pybind11, and none but bindings include these: engines and rules know none."""
    files = [path.resolve() for path in (ROOT / "csrc").rglob("*") if path.is_file()]
    including = {path for path in files if TORCH.search(path.read_text())}
    names = {path.relative_to(ROOT / "csrc").as_posix() for path in including}
    assert names == {"host/torch.h", "host/dtensor.h"}, "the latter reads slots of Python's own structs"
    host, rooms = ROOT / "csrc/host", ("adafactor", "clipping", "lbfgs")
    bindings = {*host.iterdir(), *(path for room in rooms for path in (ROOT / "csrc" / room).glob("host*.cpp"))}
    assert {path for path in files if including & seen_by(path)} <= {path.resolve() for path in bindings}


def test_rules_know_only_maths() -> None:
    allowed = {"<cmath>", "<cstdint>", '"rule.h"'}
    for path in (ROOT / "csrc/rules").glob("*.h"):
        included = set(re.findall(r"#include *(\S+)", path.read_text()))
        assert included <= allowed, path.name
        assert not re.search(r"immintrin|__m\d|blockIdx|at::", path.read_text()), path.name


def test_one_openmp_runtime_is_loaded() -> None:
    """Two pools would fight for the cores within a training loop."""
    torch.ones(100_000).add_(1)
    param = torch.nn.Parameter(torch.zeros(100_000))
    param.grad = torch.ones(100_000)
    fusedopt.SGD([param], lr=0.1).step()
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("needs /proc")
    runtimes = {line.split()[-1] for line in maps.read_text().splitlines() if re.search(r"lib(g|i)omp", line)}
    # scikit-learn brings a copy of its own when a test has imported it.
    assert len({r for r in runtimes if "scikit_learn" not in r}) == 1


def test_files_are_one_room_each() -> None:
    """Of 400 lines; one that is longer says in its first comment why it is long."""
    for folder in ("csrc", "fusedopt", "tests", "benchmarks", "examples"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".h", ".cpp", ".cu", ".cuh"):
                text = path.read_text()
                first_comment = text.partition("\n\nfrom ")[0].partition("\n#include")[0]
                assert len(text.splitlines()) <= 400 or re.search(r"\b[Ll]ong\b", first_comment), path
