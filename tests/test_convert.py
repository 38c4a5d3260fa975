"""python -m fusedopt.convert: files of other packages, of torch and of ours become each other's, whole or not.

Long, because each sentence of the command line has a case.
"""

from __future__ import annotations

import inspect
import os
import re
import shlex
import stat
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign import FORMS, Form, foreign_params
from support import assert_identical, params_of, train
from torch.nn import Parameter

import fusedopt
from fusedopt import _files, convert
from fusedopt._peers.registry import PEERS


def _trained(name: str = "AdamW", **kwargs: Any) -> Any:
    optimizer = getattr(fusedopt, name)(foreign_params(), **kwargs)
    train(optimizer, 3)
    return optimizer


def _save(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def _run(*arguments: Any) -> int:
    return convert.main([str(argument) for argument in arguments])


def _load(path: Path) -> Any:
    return torch.load(path, weights_only=True)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Of an AdamW, as torch and fusedopt write it."""
    return _save(tmp_path / "file.pt", _trained().state_dict())


# What comes out.


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_file_becomes_what_loading_it_makes(form: Form, tmp_path: Path) -> None:
    theirs = form.make(foreign_params(form.dtype))
    train(theirs, 3)
    given = form.write(theirs)
    source, out = _save(tmp_path / "theirs.pt", given), tmp_path / "ours.pt"
    assert _run(source, "--from", form.source, "--to", "fusedopt", "--out", out, *_told(form)) == 0
    ours = getattr(fusedopt, form.ours)(foreign_params(form.dtype), **form.options)
    fusedopt.load_foreign(ours, given, form.source, **form.told)
    assert_identical(_load(out), ours.state_dict())
    # That is, what goes on from there.
    ours.load_state_dict(_load(out))
    train(ours, 1, first=3)


@pytest.mark.parametrize("name", ["AdamW", "SGD", "RMSprop", "Adagrad", "Adamax", "Adafactor", "RAdam", "NAdam"])
def test_torch_goes_on_with_a_file_for_torch(name: str, tmp_path: Path) -> None:
    form = next(form for form in FORMS if form.ours == name and not form.kwargs.keys() & _beyond(form))
    ours = form.make(foreign_params())
    train(ours, 3)
    file = _save(tmp_path / "theirs.pt", form.write(ours))
    assert _run(file, "--from", form.source, "--to", "torch", *_told(form)) == 0
    made = _load(tmp_path / "theirs.torch.pt")
    theirs = getattr(torch.optim, name)([Parameter(p.detach().clone()) for p in params_of(ours)], lr=1.0)
    assert made["param_groups"][0].keys() == theirs.param_groups[0].keys()
    theirs.load_state_dict(made)
    train(ours, 2, first=3)
    train(theirs, 2, first=3)
    for p, q in zip(params_of(ours), params_of(theirs), strict=True):
        torch.testing.assert_close(p, q)


def _beyond(form: Form) -> set[str]:
    return set(getattr(fusedopt, form.ours)._beyond)


def _told(form: Form) -> list[str]:
    return [argument for key, value in form.told.items() for argument in ("--set", f"{key}={value!r}")]


def test_it_goes_there_and_back(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there, back = tmp_path / "there.pt", tmp_path / "back.pt"
    assert _run(file, "--from", "fusedopt.AdamW", "--to", "bitsandbytes.AdamW", "--out", there) == 0
    said = capsys.readouterr()
    assert said.out == f"written: {there}, of bitsandbytes.AdamW, with states of 3 of 3 params\n"
    assert said.err == ""
    assert _load(there)["state"][0].keys() == {"step", "__bnb_optimizer_quant_state__"}
    assert _run(there, "--from", "bitsandbytes.AdamW", "--to", "torch.AdamW", "--out", back) == 0
    assert_identical(_load(back), _load(file))


def test_from_one_package_to_another(tmp_path: Path) -> None:
    file = _save(tmp_path / "l.pt", fusedopt.foreign_state_dict(_trained("Lion"), "bitsandbytes.Lion"))
    assert _run(file, "--from", "bitsandbytes.Lion", "--to", "lion_pytorch", "--out", tmp_path / "o.pt") == 0
    assert _load(tmp_path / "o.pt")["state"][0].keys() == {"exp_avg"}


def test_what_options_keep_goes_to_ours_and_stays_behind_elsewhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = fusedopt.AdamW(foreign_params(torch.bfloat16), master_weights="float32", ema_decay=0.75, max_grad_norm=2.0)
    train(ours, 2)
    file = _save(tmp_path / "f.pt", ours.state_dict())
    assert _run(file, "--from", "fusedopt.AdamW", "--to", "fusedopt", "--out", tmp_path / "same.pt") == 0
    assert_identical(_load(tmp_path / "same.pt"), ours.state_dict())
    assert capsys.readouterr().err == ""
    for target in ("torch", "deepspeed.DeepSpeedCPUAdam"):
        out = tmp_path / f"{target}.pt"
        assert _run(file, "--from", "fusedopt.AdamW", "--to", target, "--out", out) == 0
        left = re.findall(r"take care: (.*?) of ", capsys.readouterr().err)
        assert sorted(left[0].split(", ")) == ["ema", "ema_decay", "master", "max_grad_norm"]
        assert _load(out)["state"][0].keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert _load(out).keys() == {"state", "param_groups"}


def test_it_is_found_under_a_key_and_the_rest_stays(file: Path, tmp_path: Path) -> None:
    whole = {"epoch": 7, "model": {"w": torch.ones(2)}, "optimizer_states": [{"x": 1}, _load(file)]}
    nested, out = _save(tmp_path / "nested.ckpt", whole), tmp_path / "nested.deepspeed.DeepSpeedCPUAdam.ckpt"
    told = ("--from", "torch.AdamW", "--to", "deepspeed.DeepSpeedCPUAdam")
    assert _run(nested, "--key", "optimizer_states.1", *told) == 0
    made = _load(out)
    assert list(made) == list(whole)
    assert (made["epoch"], made["optimizer_states"][0]) == (7, {"x": 1})
    assert type(made["optimizer_states"][1]["state"][0]["step"]) is int


def test_what_is_ours_already_stays_as_it_was_saved(tmp_path: Path) -> None:
    """With each group's own options, of which the stand-ins for its params know nothing."""
    dtype = torch.bfloat16
    groups: list[dict[str, Any]] = [
        {"master_weights": "float32", "ema_decay": 0.5},
        {"rounding": "kahan"},
        {"rounding": "stochastic", "state_dtype": "int8"},
        {},
    ]
    made = [{"params": [Parameter(torch.randn(4, 3, dtype=dtype))], **own} for own in groups]
    optimizer = fusedopt.AdamW(made, max_grad_norm=2.0)
    for _ in range(2):
        for group in made:
            group["params"][0].grad = torch.randn(4, 3, dtype=dtype)
        optimizer.step()
    path, content = tmp_path / "ours.pt", {"optimizer": optimizer.state_dict()}
    torch.save(content, path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _run(path, "--key", "optimizer", "--from", "fusedopt.AdamW", "--to", "fusedopt") == 0
    assert_identical(_load(tmp_path / "ours.fusedopt.pt"), content)


# safetensors.


@pytest.mark.parametrize("nested", [True, False])
def test_safetensors_hold_the_same(file: Path, tmp_path: Path, nested: bool) -> None:
    safetensors = pytest.importorskip("safetensors")
    content = {"epoch": 7, "parts": [_load(file)]} if nested else _load(file)
    given, key = _save(tmp_path / "given.pt", content), ("--key", "parts.0") if nested else ()
    there, back = tmp_path / "there.safetensors", tmp_path / "back.pt"
    assert _run(given, *key, "--from", "torch.AdamW", "--to", "bitsandbytes.AdamW", "--out", there) == 0
    with safetensors.safe_open(there, "pt") as opened:
        before = "parts.0." if nested else ""
        inside = f"{before}state.{{}}.__bnb_optimizer_quant_state__.state{{}}"
        assert set(opened.keys()) == {inside.format(i, j) for i in (0, 1, 2) for j in (1, 2)}
        assert opened.metadata()["format"] == "pt"
    assert _run(there, *key, "--from", "bitsandbytes.AdamW", "--to", "torch", "--out", back) == 0
    assert_identical(_load(back), content)


def test_safetensors_of_others_have_no_groups(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch_part = pytest.importorskip("safetensors.torch")
    path = tmp_path / "model.safetensors"
    torch_part.save_file({"w": torch.ones(2)}, path)
    assert _run(path, "--from", "torch.AdamW", "--to", "torch") == 1
    assert "has tensors and no param_groups: its metadata lack 'fusedopt'" in capsys.readouterr().err
    path.write_bytes(b"nothing of the kind")
    assert _run(path, "--from", "torch.AdamW", "--to", "torch") == 1
    assert f"{path} cannot be read: " in capsys.readouterr().err


def test_safetensors_keep_tensors_apart_whose_keys_join_to_one_name(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    one, two = torch.ones(2), torch.zeros(3)
    path = tmp_path / "x.safetensors"
    contents: list[dict[Any, Any]] = [
        {"a.b": one, "a": {"b": two}},
        {0: one, "0": two},
        {"": {"x": one}, "x": two, "x'": one},
        {"a": [one], "a.0": two},
    ]
    for content in contents:
        _files.write(path, content, overwrite=True)
        assert_identical(_files.read(path), content)


def test_safetensors_refuse_what_they_cannot_hold(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    for content, what in (({"a": [1j]}, "a.0 is a complex"), ({"a": {(1,): 2}}, "a is a dict")):
        with pytest.raises(_files.FileError, match=f"{what}, which safetensors cannot hold; use another suffix by --o"):
            _files.write(tmp_path / "x.safetensors", content)
    assert list(tmp_path.iterdir()) == []


def test_without_safetensors_a_sentence_says_so(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    assert _run(file, "--from", "torch.AdamW", "--to", "torch", "--out", tmp_path / "o.safetensors") == 1
    assert "take the package safetensors, which is not installed: pip install" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [file]


# Files that are there, and files that are not finished.


def test_nothing_is_written_over_without_force(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = file.read_bytes()
    told = (file, "--from", "torch.AdamW", "--to", "bitsandbytes.AdamW", "--out", file)
    assert _run(*told) == 1
    assert capsys.readouterr().err == f"{file} exists; give --force to write over it, or another name by --out\n"
    assert file.read_bytes() == before
    assert _run(*told, "--force") == 0
    assert "__bnb_optimizer_quant_state__" in _load(file)["state"][0]
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(file.stat().st_mode) == 0o666 & ~mask


def test_a_file_that_comes_meanwhile_stays(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, save = tmp_path / "out.pt", torch.save

    def slow(content: Any, path: Any) -> None:
        save(content, path)
        out.write_text("somebody's")

    monkeypatch.setattr(torch, "save", slow)
    assert _run(file, "--from", "torch.AdamW", "--to", "torch", "--out", out) == 1
    assert out.read_text() == "somebody's"
    assert sorted(tmp_path.iterdir()) == sorted([file, out])


@pytest.mark.parametrize("force", [True, False])
def test_nothing_half_done_is_left(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], force: bool
) -> None:
    def fail(content: Any, path: Any) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    out = tmp_path / "out.pt"
    if force:
        out.write_text("as it was")
    monkeypatch.setattr(torch, "save", fail)
    assert _run(file, "--from", "torch.AdamW", "--to", "torch", "--out", out, *["--force"] * force) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == sorted([file, *[out] * force])
    assert not force or out.read_text() == "as it was"


# What is refused, by a sentence.


class Object:
    """What plain data is not."""


def test_no_code_is_run_unless_one_says_so(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = _save(tmp_path / "odd.pt", {"optimizer": _load(file), "config": Object()})
    told = (odd, "--key", "optimizer", "--from", "torch.AdamW", "--to", "torch", "--out", tmp_path / "o.pt")
    assert _run(*told) == 1
    match = (
        r"holds more than tensors and plain data: \S*test_convert\.Object; if you trust whoever wrote it, give --no-"
    )
    assert re.search(match, capsys.readouterr().err)
    assert _run(*told, "--no-weights-only") == 0


STATUS = {"refused": 1, "not understood": 2}
# The command line, its exit status and what it says.
WRONG: dict[str, tuple[str, str, str]] = {
    "no file": ("none.pt --from torch.AdamW --to torch", "refused", "none.pt is no file"),
    "no checkpoint": (
        "text.pt --from torch.AdamW --to torch",
        "refused",
        "text.pt (cannot be read|is no file of torch)",
    ),
    "no folder": ("file.pt --from torch.AdamW --to torch --out no/x.pt", "refused", "there is no folder no"),
    "not at its top": (
        "nested.pt --from torch.AdamW --to torch",
        "refused",
        r"the file has no optimizer's state dict at its top, that is, .*; give --key optimizers\.0 or last\n",
    ),
    "not under that": (
        "nested.pt --key optimizers --from torch.AdamW --to torch",
        "refused",
        r"no optimizer's state dict under optimizers, .*; give --key optimizers\.0\n",
    ),
    "no such key": (
        "nested.pt --key optimizer --from torch.AdamW --to torch",
        "refused",
        "--key optimizer: there is no 'optimizer'; there is optimizers, last, epoch",
    ),
    "another's file": (
        "file.pt --from bitsandbytes.RMSprop --to fusedopt",
        "refused",
        r"the state of param 0 has \['exp_avg', 'exp_avg_sq'\], which bitsandbytes.RMSprop does not keep, among",
    ),
    "another class's": (
        "file.pt --from torch.SGD --to torch",
        "refused",
        "param_groups.0. of the file is of another opt",
    ),
    "another rule": (
        "file.pt --from torch.AdamW --to bitsandbytes.Lion",
        "refused",
        "steps as fusedopt.Lion does, and th",
    ),
    "no way back": (
        "file.pt --from torch.AdamW --to bitsandbytes.AdamW8bit",
        "refused",
        "nothing is written for bitsandbytes.AdamW8bit; there is a way back to .*bitsandbytes.AdamW, ",
    ),
    "no rule": (
        "file.pt --from torch.AdamW --to bitsandbytes.LAMB",
        "refused",
        "no class with the rule of bitsandbytes.",
    ),
    "unknown there": ("file.pt --from torch.AdamW --to timm.Nada", "refused", "knows no optimizer timm.Nada; it knows"),
    "unknown here": (
        "file.pt --from torch.Nada --to torch",
        "not understood",
        "there is no torch.Nada; give fusedopt. or",
    ),
    "no package": (
        "file.pt --from zoo --to torch",
        "not understood",
        "--from zoo: there is no such package here; there",
    ),
    "no class": (
        "file.pt --from bitsandbytes --to torch",
        "not understood",
        "--from bitsandbytes: a file does not say its class; give one of bitsandbytes.AdEMAMix, bitsandbytes.Ada",
    ),
    "no class of ours": (
        "file.pt --from torch --to torch",
        "not understood",
        "a file does not say its class; give torch",
    ),
    "not the class": (
        "file.pt --from torch.AdamW --to torch.Adam",
        "not understood",
        "the file steps as AdamW does; give",
    ),
    "not in torch": (
        "lion.pt --from fusedopt.Lion --to torch",
        "not understood",
        "torch.optim has no Lion; give --to fus",
    ),
    "beyond torch": (
        "beyond.pt --from fusedopt.AdamW --to torch",
        "not understood",
        r"torch.optim.AdamW has no caution=True, by which param_groups\[0\] steps; give --to fusedopt.AdamW",
    ),
    "told nothing": (
        "file.pt --from torch.AdamW --to torch --set lr",
        "not understood",
        "--set lr: give NAME=VALUE, such",
    ),
    "told too much": (
        "file.pt --from torch.AdamW --to bitsandbytes.AdamW --set adam_w_mode=0",
        "not understood",
        "neither torch.AdamW nor bitsandbytes.AdamW has a 'adam_w_mode' that its groups do not show",
    ),
    "a shape": (
        "shapeless.pt --from optimi.SGD --to fusedopt",
        "not understood",
        "the file has no state of param 0, for wh",
    ),
}


@pytest.mark.parametrize(("line", "status", "said"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_said_in_a_sentence(
    line: str,
    status: str,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    adamw = _trained().state_dict()
    _save(tmp_path / "file.pt", adamw)
    _save(tmp_path / "nested.pt", {"optimizers": [adamw], "last": adamw, "epoch": 3})
    _save(tmp_path / "lion.pt", _trained("Lion").state_dict())
    _save(tmp_path / "beyond.pt", _trained(caution=True).state_dict())
    dampened = next(form for form in FORMS if form.source == "optimi.SGD")
    group = {"lr": 1.0, "momentum": 0.75, "weight_decay": 0.0, **dampened.group, "params": [0]}
    _save(tmp_path / "shapeless.pt", {"state": {}, "param_groups": [group]})
    (tmp_path / "text.pt").write_text("no checkpoint at all")
    before = sorted(tmp_path.iterdir())
    assert _run(*shlex.split(line)) == STATUS[status]
    written = capsys.readouterr()
    assert re.search(said, written.err)
    assert len(written.err.splitlines()) == 1
    assert written.out == ""
    assert sorted(tmp_path.iterdir()) == before


def test_torchao_has_to_be_there(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torchao", None)
    assert _run(file, "--from", "torchao.AdamW8bit", "--to", "torch") == 1
    assert "torchao's files hold tensors of its own, and it cannot be imported: " in capsys.readouterr().err


# The command itself.


def test_the_help_has_everything(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        _run("--help")
    assert exited.value.code == 0
    text = capsys.readouterr().out
    flags = [flag for action in convert.parser()._actions for flag in action.option_strings]
    assert {flag for flag in flags if flag not in text} == set()
    assert all(action.help for action in convert.parser()._actions)
    assert "exit status: 0 written, 1 refused, 2 not understood" in text
    lines = re.findall(r"^  python -m fusedopt\.convert ((?:.*\\\n)*.*)$", text, re.MULTILINE)
    assert len(lines) == 3
    for line in lines:
        options = convert.parser().parse_args(shlex.split(line.replace("\\\n", "")))
        for name in (options.source, options.target):
            assert name in PEERS or name.partition(".")[0] in ("torch", "fusedopt")


def test_a_line_that_is_no_command_is_not_understood() -> None:
    with pytest.raises(SystemExit) as exited:
        _run("file.pt", "--from", "torch.AdamW")
    assert exited.value.code == 2


def test_it_runs_as_a_module(file: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fusedopt.convert", str(file), "--from", "torch.AdamW", "--to", "fusedopt"]
    root = Path(inspect.getfile(fusedopt)).parent.parent
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.startswith(f"written: {tmp_path / 'file.fusedopt.pt'}, of fusedopt.AdamW")
