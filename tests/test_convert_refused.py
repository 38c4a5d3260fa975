"""What python -m fusedopt.convert refuses, by a sentence and before anything is written."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest
from converting import file_fixture, load, run, save, trained  # noqa: F401
from foreign import FORMS


class Object:
    """What plain data is not."""


def test_no_code_is_run_unless_one_says_so(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = save(tmp_path / "odd.pt", {"optimizer": load(file), "config": Object()})
    told = (odd, "--key", "optimizer", "--from", "torch.AdamW", "--to", "torch", "--out", tmp_path / "o.pt")
    assert run(*told) == 1
    match = (
        r"holds more than tensors and plain data: \S*test_convert_refused\.Object; if you trust whoever wrote it, give "
    )
    assert re.search(match + "--no-", capsys.readouterr().err)
    assert run(*told, "--no-weights-only") == 0


STATUS = {"refused": 1, "not understood": 2}
# The command line, its exit status and what it says.
WRONG: dict[str, tuple[str, str, str]] = {
    "no file": ("none.pt --from torch.AdamW --to torch", "refused", "none.pt is no file"),
    "no checkpoint": (
        "text.pt --from torch.AdamW --to torch",
        "refused",
        "text.pt (cannot be read|is no file of torch)",
    ),
    "a text": ("hello.pt --from torch.AdamW --to torch", "refused", "hello.pt is no file of torch.save: KeyError"),
    "a folder": (". --from torch.AdamW --to torch", "refused", r"^\. is no file"),
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
    "told in words": (
        "file.pt --from deepspeed.DeepSpeedCPUAdam --to torch --set adam_w_mode=no",
        "not understood",
        "--set adam_w_mode: adam_w_mode is 'no'; give True or False",
    ),
    "told no number": (
        "file.pt --from lion_pytorch.Lion --to torch --set _init_lr=True",
        "not understood",
        "--set _init_lr: _init_lr is True; give a number",
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
    adamw = trained().state_dict()
    save(tmp_path / "file.pt", adamw)
    save(tmp_path / "nested.pt", {"optimizers": [adamw], "last": adamw, "epoch": 3})
    save(tmp_path / "lion.pt", trained("Lion").state_dict())
    save(tmp_path / "beyond.pt", trained(caution=True).state_dict())
    dampened = next(form for form in FORMS if form.source == "optimi.SGD")
    group = {"lr": 1.0, "momentum": 0.75, "weight_decay": 0.0, **dampened.group, "params": [0]}
    save(tmp_path / "shapeless.pt", {"state": {}, "param_groups": [group]})
    (tmp_path / "text.pt").write_text("no checkpoint at all")
    (tmp_path / "hello.pt").write_text("hello")
    before = sorted(tmp_path.iterdir())
    assert run(*shlex.split(line)) == STATUS[status]
    written = capsys.readouterr()
    assert re.search(said, written.err)
    assert len(written.err.splitlines()) == 1
    assert written.out == ""
    assert sorted(tmp_path.iterdir()) == before


def test_torchao_has_to_be_there(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torchao", None)
    assert run(file, "--from", "torchao.AdamW8bit", "--to", "torch") == 1
    assert "torchao's files hold tensors of its own, and it cannot be imported: " in capsys.readouterr().err
