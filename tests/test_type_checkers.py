"""Type checkers tell right calls of the constructors from wrong ones, and see their signatures as inspect does."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from test_signatures import KEYWORD, OPTIMIZERS, every_optimizer, options_of, parameters, value_of

import fusedopt
from fusedopt._core.arguments import Options

ROOT = Path(__file__).parent.parent

RIGHT = """
import fusedopt
import torch

params = [torch.nn.Parameter(torch.zeros(2, 2))]
fusedopt.WeightDecay(0.1, absolute=True)
fusedopt.GradScaler("cpu", init_scale=2.0)
handle: fusedopt.GradientRelease = fusedopt.step_in_backward(torch.nn.Linear(1, 1), fusedopt.SGD(params))
stored: fusedopt.StateDtype = {"exp_avg": torch.bfloat16}
fusedopt.AdamW(params, state_dtype=stored, master_weights="float32", rounding="stochastic")
fusedopt.AdamW(torch.nn.Linear(1, 1).named_parameters(), lr=torch.tensor(0.1), fused=True)
compiled = fusedopt.compile_rule("", name="Rule")
compiled(params, 0.1, momentum=0.9, ema_decay=0.5, fused=True)
"""
WRONG = """
fusedopt.WeightDecay("0.1")
fusedopt.GradScaler(scale=2.0)
fusedopt.GenericOptimizer(params)
fusedopt.GenericOptimizer(params, {}, fused=True)
fusedopt.AdamW(params, master_weights="bfloat16")
fusedopt.AdamW(params, rounding="up")
fusedopt.AdamW(params, betas=0.9)
fusedopt.compile_rule("", name="Rule")()
fusedopt.compile_rule("", name="Rule")(params, rounding="up")
"""


def typed(name: str, parameter: inspect.Parameter) -> Any:
    return 2 if parameter.annotation in (int, "int") else value_of(name, parameter)


def calls() -> Iterator[tuple[str, bool]]:
    """Lines of a program, and whether a type checker ought to object."""
    for line in RIGHT.split("\n"):
        yield line, False
    for name in OPTIMIZERS:
        own = [p for p in parameters(getattr(fusedopt, name))[1:] if p.name not in Options._fields]
        ordered = ", ".join(repr(typed(name, p)) for p in own if p.kind is not KEYWORD)
        named = ", ".join(f"{p.name}={typed(name, p)!r}" for p in own)
        yield f"fusedopt.{name}(params)", False
        yield f"fusedopt.{name}(params, {ordered})", False
        yield f"fusedopt.{name}(params, {named})", False
        yield f"fusedopt.{name}({{'params': params}} for _ in range(1))", False
        for option, default in options_of(name).items():
            yield f"fusedopt.{name}(params, {option}={default!r})", False
        for option in Options._fields[len(options_of(name)) :]:
            yield f"fusedopt.{name}(params, {option}=None)", True
        yield f"fusedopt.{name}()", True
        yield f"fusedopt.{name}(params, learning_rate=0.1)", True
        yield f"fusedopt.{name}(params, lr='0.1')", True
        yield f"fusedopt.{name}(params, {ordered}, True)", True
        yield f"fusedopt.{name}(0.1)", True
        yield f"fusedopt.{name}(params, fused='yes')", True
    for line in filter(None, WRONG.split("\n")):
        yield line, True
    for name in OPTIMIZERS:
        yield f"reveal_type(fusedopt.{name}.__init__)", False


PROGRAM = list(calls())
# The classes of which calls here can be right or wrong. All that torch imports beside them takes mypy three times as
# long as the rest, and none of it is in a signature of ours.
READ_OF_TORCH = """
[mypy]
[mypy-torch.*]
follow_imports = skip
[mypy-torch,torch._tensor,torch._C.*,torch.types,torch.amp.*,torch.nn,torch.nn.parameter,torch.nn.modules.*,torch.optim.*]
follow_imports = normal
"""
Messages = dict[int, list[tuple[str, str]]]  # by line: severity and text


def run(*command: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"MYPYPATH": str(ROOT), "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1", "NO_COLOR": "1"}
    return subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, env=environment, cwd=ROOT)


@cache
def mypy(folder: Path, cached: Path) -> Messages:
    pytest.importorskip("mypy", reason="needs mypy, of the test extra")
    program = folder / "calls.py"
    program.write_text("\n".join(line for line, _ in PROGRAM))
    config = folder / "mypy.ini"
    config.write_text(READ_OF_TORCH)
    told = [f"--config-file={config}", f"--cache-dir={cached}", "--output=json", "--hide-error-context"]
    done = run("mypy", *told, str(program))
    assert done.returncode in (0, 1), done.stdout + done.stderr
    messages: Messages = {}
    for message in map(json.loads, done.stdout.splitlines()):
        messages.setdefault(message["line"] - 1, []).append((message["severity"], message["message"]))
    return messages


@cache
def pyright(folder: Path, cached: Path) -> Messages:
    pytest.importorskip("pyright", reason="needs pyright, of the test extra")
    started = run("pyright", "--version")
    if started.returncode:
        pytest.skip(f"pyright fetches its program from the npm registry, which fails: {started.stderr[-200:]}")
    (folder / "calls.py").write_text("\n".join(line for line, _ in PROGRAM))
    (folder / "pyrightconfig.json").write_text(json.dumps({"extraPaths": [str(ROOT)]}))
    done = run("pyright", "--outputjson", "--pythonpath", sys.executable, "-p", str(folder))
    messages: Messages = {}
    for message in json.loads(done.stdout)["generalDiagnostics"]:
        line = message["range"]["start"]["line"]
        messages.setdefault(line, []).append((message["severity"], message["message"]))
    return messages


@pytest.fixture(name="messages", scope="module", params=[mypy, pyright], ids=["mypy", "pyright"])
def messages_fixture(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Messages:
    """What a type checker says of the program."""
    checker: Callable[[Path, Path], Messages] = request.param
    return checker(tmp_path_factory.mktemp("calls"), Path(request.config.cache.mkdir("mypy")))


def test_type_checkers_tell_right_calls_from_wrong_ones(messages: Messages) -> None:
    found = [any(severity == "error" for severity, _ in messages.get(i, [])) for i in range(len(PROGRAM))]
    missed = [line for (line, wrong), error in zip(PROGRAM, found, strict=True) if wrong and not error]
    false = [(line, messages[i]) for i, (line, wrong) in enumerate(PROGRAM) if found[i] and not wrong]
    assert (missed, false) == ([], [])


@every_optimizer
def test_type_checkers_see_the_signature_that_inspect_sees(messages: Messages, name: str) -> None:
    line = PROGRAM.index((f"reveal_type(fusedopt.{name}.__init__)", False))
    (_, text), *_ = messages[line]
    text = text[text.index("(self") :]
    # Names at the first level of brackets.
    while (flat := re.sub(r"\[[^\[\]]*\]|(?<!^)\([^()]*\)", "", text)) != text:
        text = flat
    seen, keyword = [], False
    for part in text[1 : text.index(")")].split(", "):
        keyword |= part == "*"
        if part != "*":
            seen.append((part.split(":")[0], keyword, "=" in part))
    own = parameters(getattr(fusedopt, name).__init__)
    assert seen == [(p.name, p.kind is KEYWORD, p.default is not p.empty) for p in own]
