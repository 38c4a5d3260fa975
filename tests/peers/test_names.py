"""Names in configurations: what Trainer, timm and DeepSpeed make of them, as docs/moving-in.md has it."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path
from typing import Any

import torch

import fusedopt
from fusedopt._peers.registry import OTHERS, PEERS, name_of

PAGE = (Path(__file__).parent.parent.parent / "docs/moving-in.md").read_text()
NONE = "none"


def _rows(heading: str) -> dict[str, tuple[str, str]]:
    """Of each name in the first column the other two."""
    section = PAGE.partition(f"### {heading}\n")[2].partition("\n##")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if line.startswith("| `")]
    return {name: (theirs, ours) for names, theirs, ours in rows for name in re.findall(r"`([^`]+)`", names)}


def _ours(cls: Any) -> str:
    """The class of ours that goes on from one of theirs."""
    name = name_of(cls)
    if name in PEERS:
        rule = PEERS[name].rule
        return rule if isinstance(rule, str) else "AdamW"
    # timm names classes that it has not imported, such as bitsandbytes', in text.
    short = name.partition(".")[2]
    return short if name.startswith("torch.") and hasattr(torch.optim, short) and hasattr(fusedopt, short) else NONE


def _expected(ours: str) -> str:
    return next(iter(re.findall(r"`(\w+)", ours)), NONE)


def test_trainers_names() -> None:
    from transformers.trainer import Trainer
    from transformers.training_args import OptimizerNames

    class Arguments(types.SimpleNamespace):
        def __getattr__(self, name: str) -> None:
            return None

    rows = _rows("`optim=` of Trainer")
    assert rows.keys() == {its.value for its in OptimizerNames}
    numbers = {"learning_rate": 1e-3, "adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8, "weight_decay": 0.1}
    made = 0
    for its in OptimizerNames:
        try:
            cls, _ = Trainer.get_optimizer_cls_and_kwargs(Arguments(optim=its, **numbers))
        except (ImportError, ValueError):
            # What is not installed is told by the page alone, and ours have none of it but AdamW.
            assert _expected(rows[its.value][1]) in (NONE, "AdamW"), its
            continue
        made += 1
        theirs, ours = rows[its.value]
        assert name_of(cls) == theirs.strip("`"), its
        assert _expected(ours) == _ours(cls), its
    assert made >= 25


def test_timms_names() -> None:
    # Its models, which nothing here builds, want torchvision.
    stub: Any = types.ModuleType("timm.optim._param_groups")
    stub.param_groups_layer_decay = stub.param_groups_weight_decay = None
    sys.modules.setdefault("timm.optim._param_groups", stub)
    from timm.optim._optim_factory import get_optimizer_info, list_optimizers

    rows = _rows("`opt=` of timm")
    known = {name: get_optimizer_info(name) for name in list_optimizers()}
    assert rows.keys() == {name for name, info in known.items() if _ours(info.opt_class) != NONE}
    for name, (theirs, ours) in rows.items():
        assert name_of(known[name].opt_class) == theirs.strip("`"), name
        assert _expected(ours) == _ours(known[name].opt_class), name


def test_deepspeeds_names() -> None:
    from deepspeed.runtime.config import ADAM_W_MODE_DEFAULT, DEEPSPEED_OPTIMIZERS

    rows = _rows('`"type"` in the JSON of DeepSpeed')
    assert {name.lower() for name in rows} == set(DEEPSPEED_OPTIMIZERS)
    assert ADAM_W_MODE_DEFAULT
    for theirs, ours in rows.values():
        for name in re.findall(r"`(deepspeed\.\w+)`", theirs):
            if _expected(ours) != NONE:
                assert name in PEERS
            else:
                assert name in OTHERS or name not in PEERS
