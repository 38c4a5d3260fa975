"""python -m fusedopt.convert: files of other packages, of torch and of ours become each other's, whole or not."""

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
from converting import file_fixture, load, run, save, trained  # noqa: F401
from foreign import FORMS, Form, foreign_params
from support import assert_identical, params_of, train
from torch.nn import Parameter

import fusedopt
from fusedopt import _files, convert
from fusedopt._peers.registry import PEERS

# What comes out.


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_file_becomes_what_loading_it_makes(form: Form, tmp_path: Path) -> None:
    theirs = form.make(foreign_params(form.dtype))
    train(theirs, 3)
    given = form.write(theirs)
    source, out = save(tmp_path / "theirs.pt", given), tmp_path / "ours.pt"
    assert run(source, "--from", form.source, "--to", "fusedopt", "--out", out, *_told(form)) == 0
    ours = getattr(fusedopt, form.ours)(foreign_params(form.dtype), **form.options)
    fusedopt.load_foreign(ours, given, form.source, **form.told)
    assert_identical(load(out), ours.state_dict())
    # That is, what goes on from there.
    ours.load_state_dict(load(out))
    train(ours, 1, first=3)


@pytest.mark.parametrize("name", ["AdamW", "SGD", "RMSprop", "Adagrad", "Adamax", "Adafactor", "RAdam", "NAdam"])
def test_torch_goes_on_with_a_file_for_torch(name: str, tmp_path: Path) -> None:
    form = next(form for form in FORMS if form.ours == name and not form.kwargs.keys() & _beyond(form))
    ours = form.make(foreign_params())
    train(ours, 3)
    file = save(tmp_path / "theirs.pt", form.write(ours))
    assert run(file, "--from", form.source, "--to", "torch", *_told(form)) == 0
    made = load(tmp_path / "theirs.torch.pt")
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
    assert run(file, "--from", "fusedopt.AdamW", "--to", "bitsandbytes.AdamW", "--out", there) == 0
    said = capsys.readouterr()
    assert said.out == f"written: {there}, of bitsandbytes.AdamW, with states of 3 of 3 params\n"
    assert said.err == ""
    assert load(there)["state"][0].keys() == {"step", "__bnb_optimizer_quant_state__"}
    assert run(there, "--from", "bitsandbytes.AdamW", "--to", "torch.AdamW", "--out", back) == 0
    assert_identical(load(back), load(file))


def test_from_one_package_to_another(tmp_path: Path) -> None:
    file = save(tmp_path / "l.pt", fusedopt.foreign_state_dict(trained("Lion"), "bitsandbytes.Lion"))
    assert run(file, "--from", "bitsandbytes.Lion", "--to", "lion_pytorch", "--out", tmp_path / "o.pt") == 0
    assert load(tmp_path / "o.pt")["state"][0].keys() == {"exp_avg"}


def test_what_options_keep_goes_to_ours_and_stays_behind_elsewhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = fusedopt.AdamW(foreign_params(torch.bfloat16), master_weights="float32", ema_decay=0.75, max_grad_norm=2.0)
    train(ours, 2)
    file = save(tmp_path / "f.pt", ours.state_dict())
    assert run(file, "--from", "fusedopt.AdamW", "--to", "fusedopt", "--out", tmp_path / "same.pt") == 0
    assert_identical(load(tmp_path / "same.pt"), ours.state_dict())
    assert capsys.readouterr().err == ""
    for target in ("torch", "deepspeed.DeepSpeedCPUAdam"):
        out = tmp_path / f"{target}.pt"
        assert run(file, "--from", "fusedopt.AdamW", "--to", target, "--out", out) == 0
        left = re.findall(r"take care: (.*?) of ", capsys.readouterr().err)
        assert sorted(left[0].split(", ")) == ["ema", "ema_decay", "master", "max_grad_norm"]
        assert load(out)["state"][0].keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert load(out).keys() == {"state", "param_groups"}


def test_it_is_found_under_a_key_and_the_rest_stays(file: Path, tmp_path: Path) -> None:
    whole = {"epoch": 7, "model": {"w": torch.ones(2)}, "optimizer_states": [{"x": 1}, load(file)]}
    nested, out = save(tmp_path / "nested.ckpt", whole), tmp_path / "nested.deepspeed.DeepSpeedCPUAdam.ckpt"
    told = ("--from", "torch.AdamW", "--to", "deepspeed.DeepSpeedCPUAdam")
    assert run(nested, "--key", "optimizer_states.1", *told) == 0
    made = load(out)
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
        assert run(path, "--key", "optimizer", "--from", "fusedopt.AdamW", "--to", "fusedopt") == 0
    assert_identical(load(tmp_path / "ours.fusedopt.pt"), content)


# safetensors.


@pytest.mark.parametrize("nested", [True, False])
def test_safetensors_hold_the_same(file: Path, tmp_path: Path, nested: bool) -> None:
    safetensors = pytest.importorskip("safetensors")
    content = {"epoch": 7, "parts": [load(file)]} if nested else load(file)
    given, key = save(tmp_path / "given.pt", content), ("--key", "parts.0") if nested else ()
    there, back = tmp_path / "there.safetensors", tmp_path / "back.pt"
    assert run(given, *key, "--from", "torch.AdamW", "--to", "bitsandbytes.AdamW", "--out", there) == 0
    with safetensors.safe_open(there, "pt") as opened:
        before = "parts.0." if nested else ""
        inside = f"{before}state.{{}}.__bnb_optimizer_quant_state__.state{{}}"
        assert set(opened.keys()) == {inside.format(i, j) for i in (0, 1, 2) for j in (1, 2)}
        assert opened.metadata()["format"] == "pt"
    assert run(there, *key, "--from", "bitsandbytes.AdamW", "--to", "torch", "--out", back) == 0
    assert_identical(load(back), content)


def test_safetensors_of_others_have_no_groups(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch_part = pytest.importorskip("safetensors.torch")
    path = tmp_path / "model.safetensors"
    torch_part.save_file({"w": torch.ones(2)}, path)
    assert run(path, "--from", "torch.AdamW", "--to", "torch") == 1
    assert "has tensors and no param_groups: its metadata lack 'fusedopt'" in capsys.readouterr().err
    path.write_bytes(b"nothing of the kind")
    assert run(path, "--from", "torch.AdamW", "--to", "torch") == 1
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
    assert run(file, "--from", "torch.AdamW", "--to", "torch", "--out", tmp_path / "o.safetensors") == 1
    assert "take the package safetensors, which is not installed: pip install" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [file]


# Files that are there, and files that are not finished.


def test_nothing_is_written_over_without_force(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = file.read_bytes()
    told = (file, "--from", "torch.AdamW", "--to", "bitsandbytes.AdamW", "--out", file)
    assert run(*told) == 1
    assert capsys.readouterr().err == f"{file} exists; give --force to write over it, or another name by --out\n"
    assert file.read_bytes() == before
    assert run(*told, "--force") == 0
    assert "__bnb_optimizer_quant_state__" in load(file)["state"][0]
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(file.stat().st_mode) == 0o666 & ~mask


def test_a_file_that_comes_meanwhile_stays(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, save = tmp_path / "out.pt", torch.save

    def slow(content: Any, path: Any) -> None:
        save(content, path)
        out.write_text("somebody's")

    monkeypatch.setattr(torch, "save", slow)
    assert run(file, "--from", "torch.AdamW", "--to", "torch", "--out", out) == 1
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
    assert run(file, "--from", "torch.AdamW", "--to", "torch", "--out", out, *["--force"] * force) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == sorted([file, *[out] * force])
    assert not force or out.read_text() == "as it was"


@pytest.mark.parametrize(("said", "rule"), [("False", "Adam"), ("false", "Adam"), ("true", "AdamW"), ("0", "Adam")])
def test_yes_and_no_are_pythons_or_jsons(tmp_path: Path, said: str, rule: str) -> None:
    theirs = trained().state_dict()
    theirs["param_groups"][0].pop("decoupled_weight_decay")  # as DeepSpeed's has none
    file, out = save(tmp_path / "theirs.pt", theirs), tmp_path / "out.pt"
    told = (file, "--from", "deepspeed.DeepSpeedCPUAdam", "--set", f"adam_w_mode={said}", "--out", out)
    assert run(*told, "--to", f"fusedopt.{rule}") == 0
    assert load(out)["param_groups"][0]["decoupled_weight_decay"] == (rule == "AdamW")


@pytest.mark.parametrize("key", ["a.b", 0, "0"])
def test_a_key_may_have_dots_or_be_a_number(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], key: Any
) -> None:
    inner = {"epoch": 3, key: [load(file)]}
    nested, out = save(tmp_path / "nested.pt", {"optimizers": inner}), tmp_path / "out.pt"
    told = (nested, "--from", "torch.AdamW", "--to", "torch", "--out", out)
    assert run(*told) == 1
    assert (found := f"optimizers.{key}.0") in capsys.readouterr().err
    assert run(*told, "--key", f"{found}.1") == 1
    assert "there is no '1'; there is state, param_groups" in capsys.readouterr().err
    assert run(*told, "--key", found) == 0
    assert load(out)["optimizers"]["epoch"] == 3
    assert_identical(load(out)["optimizers"][key][0], load(file))


# The command itself.


def test_the_help_has_everything(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        run("--help")
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
        run("file.pt", "--from", "torch.AdamW")
    assert exited.value.code == 2


def test_it_runs_as_a_module(file: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fusedopt.convert", str(file), "--from", "torch.AdamW", "--to", "fusedopt"]
    root = Path(inspect.getfile(fusedopt)).parent.parent
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.startswith(f"written: {tmp_path / 'file.fusedopt.pt'}, of fusedopt.AdamW")
