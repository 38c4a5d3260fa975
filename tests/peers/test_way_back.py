"""Training begun with ours goes on with another package's optimizer as it would have gone on here."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from support import save_and_load
from torch import Tensor
from torch.nn import Parameter

import fusedopt
from fusedopt import convert
from fusedopt._peers.registry import PEERS, name_of

SHAPES = ((7,), (64, 33), (8, 4, 3, 3), (5000,), (64, 64))
STEPS = 5


@dataclass(frozen=True)
class Run:
    """One of ours, the class of another package that goes on, and how far from ours it may end."""

    ours: str
    kwargs: dict[str, Any]
    path: str
    # As their constructor is given, and by the names of its attributes.
    given: dict[str, Any] = field(default_factory=dict)
    told: dict[str, Any] = field(default_factory=dict)
    close: float = 1e-5
    dtype: torch.dtype = torch.float32

    def __str__(self) -> str:
        return f"{self.ours}({','.join(self.kwargs)})-{name_of(self.path)}-{str(self.dtype).removeprefix('torch.')}"

    def params(self) -> list[Parameter]:
        generator = torch.Generator().manual_seed(0)
        return [Parameter(torch.randn(shape, generator=generator).to(self.dtype)) for shape in SHAPES]

    def make(self, params: list[Parameter]) -> Any:
        return getattr(fusedopt, self.ours)(params, **{"lr": 0.01, **self.kwargs})

    def theirs(self, params: list[Parameter]) -> Any:
        module, _, name = self.path.rpartition(".")
        return getattr(importlib.import_module(module), name)(params, **{"lr": 1.0, **self.given})


WD = {"weight_decay": 0.1}
BF16 = torch.bfloat16
# bfloat16 params are held to one of their last places, element by element.
PLACES = 1.0
ADAM = "deepspeed.ops.adam.DeepSpeedCPUAdam"
RUNS = [
    Run("AdamW", WD, "bitsandbytes.optim.AdamW"),
    Run("AdamW", {**WD, "state_dtype": "float32"}, "bitsandbytes.optim.AdamW", close=PLACES, dtype=BF16),
    Run("AdamW", {**WD, "state_dtype": "float32"}, "bitsandbytes.optim.PagedAdamW32bit", close=PLACES, dtype=BF16),
    Run("AdamW", WD, "bitsandbytes.optim.Adam"),
    Run("AdEMAMix", {**WD, "t_alpha": 8, "t_beta3": 8}, "bitsandbytes.optim.AdEMAMix"),
    Run("Lion", WD, "bitsandbytes.optim.Lion"),
    Run("SGD", {"momentum": 0.9, **WD}, "bitsandbytes.optim.SGD", {"momentum": 0.5}),
    Run("RMSprop", {"alpha": 0.9, **WD}, "bitsandbytes.optim.RMSprop"),
    Run("Adagrad", WD, "bitsandbytes.optim.Adagrad"),
    Run("AdamW", WD, ADAM, close=5e-5),
    Run("AdamW", {**WD, "state_dtype": "float32"}, ADAM, close=PLACES, dtype=BF16),
    Run("Adam", WD, ADAM, {"adamw_mode": False}, {"adam_w_mode": False}, 5e-5),
    Run("Adagrad", WD, "deepspeed.ops.adagrad.DeepSpeedCPUAdagrad", close=5e-5),
    Run("Lion", WD, "lion_pytorch.Lion"),
    Run(
        "Lion",
        WD,
        "lion_pytorch.Lion",
        {"lr": 0.02, "decoupled_weight_decay": True},
        {"decoupled_wd": True, "_init_lr": 0.02},
    ),
    Run("Lion", {**WD, "caution": True}, "timm.optim.lion.Lion"),
    Run("AdamW", {**WD, "amsgrad": True}, "timm.optim.adamw.AdamWLegacy"),
    Run("AdamW", {**WD, "caution": True}, "timm.optim.adamw.AdamWLegacy"),
    Run("LAMB", {**WD, "max_grad_norm": 1.0, "decoupled_decay": True}, "timm.optim.lamb.Lamb", close=2e-5),
    Run("LAMB", {**WD, "caution": True}, "timm.optim.lamb.Lamb", {"max_grad_norm": None}, close=2e-5),
]


def _train(optimizer: Any, params: list[Parameter], first: int) -> None:
    for step in range(first, first + STEPS):
        generator = torch.Generator().manual_seed(100 + step)
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
        optimizer.step()


def _apart(params: list[Parameter], wanted: list[Parameter], start: list[Parameter]) -> float:
    moved = [(q - s).detach().abs().max() for q, s in zip(wanted, start, strict=True)]
    return max(((p - q).detach().abs().max() / its).item() for p, q, its in zip(params, wanted, moved, strict=True))


def _places(params: list[Parameter], wanted: list[Parameter], start: list[Parameter]) -> float:
    """The largest difference in last places of the largest that an element has been."""

    def worst(p: Tensor, q: Tensor, s: Tensor) -> float:
        largest = torch.maximum(torch.maximum(p.abs(), q.abs()), s.abs())
        place = torch.exp2(torch.frexp(largest).exponent.float() - 8)  # of a mantissa of 8 bits
        return ((p - q).abs() / place).max().item()

    every = zip(params, wanted, start, strict=True)
    return max(worst(*(its.detach().float() for its in three)) for three in every)


@pytest.mark.parametrize("on_disk", [False, True], ids=["call", "command"])
@pytest.mark.parametrize("run", RUNS, ids=str)
def test_training_goes_on_there(run: Run, on_disk: bool, tmp_path: Path) -> None:
    start, params, wanted, anew = (run.params() for _ in range(4))
    here = run.make(wanted)
    _train(here, wanted, 0)
    _train(here, wanted, STEPS)
    ours = run.make(params)
    _train(ours, params, 0)
    if on_disk:
        torch.save(ours.state_dict(), tmp_path / "ours.pt")
        told = [argument for key, value in run.told.items() for argument in ("--set", f"{key}={value}")]
        names = ["--from", f"fusedopt.{run.ours}", "--to", name_of(run.path), "--out", str(tmp_path / "theirs.pt")]
        assert convert.main([str(tmp_path / "ours.pt"), *names, *told]) == 0
        file = torch.load(tmp_path / "theirs.pt", weights_only=True)
    else:
        file = save_and_load(fusedopt.foreign_state_dict(ours, run.path, **run.told))
    theirs = run.theirs(params)
    theirs.load_state_dict(file)
    if run.dtype == BF16 and "bitsandbytes" not in run.path:
        # Theirs has rounded them, as a warning says.
        for at, p in enumerate(params):
            theirs.state[p].update({key: file["state"][at][key].clone() for key in ("exp_avg", "exp_avg_sq")})
    _train(theirs, params, STEPS)
    apart = _apart(params, wanted, start)
    assert (apart if run.dtype == torch.float32 else _places(params, wanted, start)) <= run.close
    # Without the states theirs ends elsewhere.
    _train(run.make(anew), anew, 0)
    fresh = run.theirs(anew)
    fresh.load_state_dict({**file, "state": {}})
    _train(fresh, anew, STEPS)
    assert _apart(anew, wanted, start) > 2 * max(apart, 1e-4)


def test_every_way_back_is_run() -> None:
    """8 and 32 bits and pages of bitsandbytes are one line of its table."""
    ways = {name for name, peer in PEERS.items() if peer.back is not None}
    ways = {name for name in ways if not name.startswith("bitsandbytes") or not ("Paged" in name or "32bit" in name)}
    assert ways <= {name_of(run.path) for run in RUNS}


@pytest.mark.parametrize("run", RUNS, ids=str)
def test_groups_have_their_keys(run: Run) -> None:
    back = PEERS[name_of(run.path)].back
    assert back is not None
    assert back.group.keys() == run.theirs(run.params()).param_groups[0].keys() - {"params", "step"}


def test_a_checkpoint_on_disk_moves_from_torchao(tmp_path: Path) -> None:
    """Whose tensors are of classes of its own, which are read as plain data all the same."""
    from torchao.optim import AdamW8bit

    params = [Parameter(torch.randn(64, 64)), Parameter(torch.randn(7))]
    theirs = AdamW8bit(params)
    _train(theirs, params, 0)
    torch.save(theirs.state_dict(), tmp_path / "theirs.pt")
    for name in ("theirs.torch.pt", "theirs.torch.safetensors"):
        names = ["--from", "torchao.AdamW8bit", "--to", "torch", "--out", str(tmp_path / name)]
        assert convert.main([str(tmp_path / "theirs.pt"), *names]) == 0
    made = torch.load(tmp_path / "theirs.torch.pt", weights_only=True)
    torch.testing.assert_close(made["state"][0]["exp_avg"], theirs.state[params[0]]["exp_avg"].dequantize())
    torch.optim.AdamW(params).load_state_dict(made)
