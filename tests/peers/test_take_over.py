"""Training begun with another package's optimizer goes on with ours as it would have gone on there."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from support import save_and_load
from torch import Tensor
from torch.nn import Parameter

import fusedopt
from fusedopt._peers.registry import PEERS, name_of

SHAPES = ((7,), (64, 33), (8, 4, 3, 3), (5000,), (64, 64))
MATRICES = ((64, 33), (40, 40), (64, 64))
STEPS = 5


@dataclass(frozen=True)
class Run:
    """A class of another package, and how far from it ours may end, as a part of the largest movement."""

    path: str
    ours: str
    kwargs: dict[str, Any] = field(default_factory=dict)
    close: float = 1e-5
    shapes: tuple[tuple[int, ...], ...] = SHAPES
    dtype: torch.dtype = torch.float32
    # For a file, as its constructor was given.
    told: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        kwargs = ",".join(f"{key}={value}" for key, value in self.kwargs.items() if key != "lr")
        return f"{name_of(self.path)}({kwargs})" + ("" if self.dtype == torch.float32 else f"-{self.dtype}")

    def cls(self) -> Any:
        module, _, name = self.path.rpartition(".")
        return getattr(importlib.import_module(module), name)

    def params(self) -> list[Parameter]:
        generator = torch.Generator().manual_seed(0)
        return [Parameter(torch.randn(shape, generator=generator).to(self.dtype)) for shape in self.shapes]

    def theirs(self, params: list[Parameter]) -> Any:
        return self.cls()(params, **{"lr": 0.01, **self.kwargs})


def _feed(params: list[Parameter], step: int, zeros: bool) -> None:
    """Every second gradient is tiny, and some elements are zero.

    With those states in codes blow up by themselves: a second moment that is rounded to 0 makes a step by eps alone.
    """
    generator = torch.Generator().manual_seed(100 + step)
    for i, p in enumerate(params):
        grad = torch.randn(p.shape, generator=generator) * (1e-4 if i % 2 else 1)
        if zeros:
            grad[torch.rand(p.shape, generator=generator) < 0.1] = 0
        p.grad = grad.to(p.dtype)


def _train(run: Run, optimizer: Any, params: list[Parameter], first: int) -> None:
    for step in range(first, first + STEPS):
        _feed(params, step, run.close < CODED)
        getattr(optimizer, "train", int)()
        optimizer.step()


BF16 = torch.bfloat16
# Of what bfloat16 params have moved; a last place is several per cent of that.
PLACES = 1e-2
# 8-bit states of theirs are coded anew each step.
CODED = 2e-2

RUNS = [
    Run("bitsandbytes.optim.AdamW", "AdamW", {"weight_decay": 0.1}),
    Run("bitsandbytes.optim.AdamW", "AdamW", {"weight_decay": 0.1}, PLACES, dtype=BF16),
    Run("bitsandbytes.optim.Adam", "AdamW", {"weight_decay": 0.1}),
    Run("bitsandbytes.optim.AdamW8bit", "AdamW", {"weight_decay": 0.1}, CODED),
    Run("bitsandbytes.optim.PagedAdamW8bit", "AdamW", {}, CODED),
    Run("bitsandbytes.optim.AdEMAMix", "AdEMAMix", {"weight_decay": 0.1}),
    Run("bitsandbytes.optim.AdEMAMix", "AdEMAMix", {"alpha": 3.0, "t_alpha": 8, "t_beta3": 8}),
    Run("bitsandbytes.optim.AdEMAMix8bit", "AdEMAMix", {"weight_decay": 0.1}, CODED),
    Run("bitsandbytes.optim.Lion", "Lion", {"weight_decay": 0.1}),
    Run("bitsandbytes.optim.SGD", "SGD", {"momentum": 0.9, "weight_decay": 0.1}),
    Run("bitsandbytes.optim.RMSprop", "RMSprop", {"alpha": 0.9, "weight_decay": 0.1}),
    Run("bitsandbytes.optim.Adagrad", "Adagrad", {"weight_decay": 0.1}),
    Run("deepspeed.ops.adam.DeepSpeedCPUAdam", "AdamW", {"weight_decay": 0.1}, 5e-5),
    Run("deepspeed.ops.adam.DeepSpeedCPUAdam", "AdamW", {"weight_decay": 0.1}, PLACES, dtype=BF16),
    Run(
        "deepspeed.ops.adam.DeepSpeedCPUAdam",
        "Adam",
        {"weight_decay": 0.1, "adamw_mode": False},
        5e-5,
        told={"adam_w_mode": False},
    ),
    Run("deepspeed.ops.adagrad.DeepSpeedCPUAdagrad", "Adagrad", {"weight_decay": 0.1}, 5e-5),
    Run("torchao.optim._AdamW", "AdamW", {"weight_decay": 0.1}, 5e-5),
    Run("torchao.optim.AdamW8bit", "AdamW", {"weight_decay": 0.1}, CODED),
    Run("torchao.optim.Adam8bit", "Adam", {"weight_decay": 0.1}, CODED),
    Run("torchao.optim.AdamW4bit", "AdamW", {"weight_decay": 0.1}, 0.2),
    Run("torchao.optim.AdamWFp8", "AdamW", {"weight_decay": 0.1}, 6e-2),
    Run("optimi.AdamW", "AdamW", {"weight_decay": 0.1}),
    Run("optimi.AdamW", "AdamW", {"weight_decay": 0.0, "kahan_sum": True}, PLACES, dtype=BF16),
    Run("optimi.AdamW", "AdamW", {"weight_decay": 0.01, "decouple_lr": True, "max_lr": 0.02}),
    Run("optimi.Adam", "Adam", {"weight_decay": 0.1}),
    Run("optimi.Adam", "AdamW", {"weight_decay": 0.1, "decouple_wd": True}),
    Run("optimi.SGD", "SGD", {"momentum": 0.9, "weight_decay": 0.1}),
    Run("optimi.SGD", "SGD", {"momentum": 0.9, "dampening": True}),
    Run("optimi.SGD", "SGD", {"momentum": 0.9, "weight_decay": 0.1, "decouple_wd": True}),
    Run("optimi.StableAdamW", "StableAdamW", {"weight_decay": 0.1}, 2e-5),
    Run("optimi.Lion", "Lion", {"weight_decay": 0.1}),
    Run("optimi.Adan", "Adan", {"weight_decay": 0.1}, 5e-5),
    Run("timm.optim.lamb.Lamb", "LAMB", {"weight_decay": 0.1}, 2e-5),
    Run("timm.optim.lamb.Lamb", "LAMB", {"max_grad_norm": None, "trust_clip": True}),
    Run("timm.optim.lars.Lars", "LARS", {"momentum": 0.9, "weight_decay": 0.1}, 1e-4),
    Run("timm.optim.lion.Lion", "Lion", {"weight_decay": 0.1}),
    Run("timm.optim.adan.Adan", "Adan", {"weight_decay": 0.1}, 5e-5),
    Run("timm.optim.adan.Adan", "Adan", {"weight_decay": 0.1, "no_prox": True}, 5e-5),
    Run("timm.optim.adamw.AdamWLegacy", "AdamW", {"weight_decay": 0.1, "amsgrad": True}),
    Run("timm.optim.nadam.NAdamLegacy", "NAdam", {"weight_decay": 0.1}),
    Run("timm.optim.radam.RAdamLegacy", "RAdam", {"weight_decay": 0.1}, 1e-4),
    Run("timm.optim.sgdw.SGDW", "SGD", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    Run("timm.optim.rmsprop_tf.RMSpropTF", "RMSprop", {"momentum": 0.9, "weight_decay": 0.1, "decoupled_decay": True}),
    Run("timm.optim.adamw.AdamWLegacy", "AdamW", {"weight_decay": 0.1, "caution": True}),
    Run("timm.optim.lion.Lion", "Lion", {"weight_decay": 0.1, "caution": True}),
    Run("timm.optim.adan.Adan", "Adan", {"weight_decay": 0.1, "caution": True}, 5e-5),
    Run("timm.optim.lamb.Lamb", "LAMB", {"weight_decay": 0.1, "decoupled_decay": True}, 2e-5),
    Run("timm.optim.lamb.Lamb", "LAMB", {"weight_decay": 0.1, "caution": True}, 2e-5),
    Run("timm.optim.mars.Mars", "MARS", {"weight_decay": 0.1, "optimize_1d": True}),
    Run("timm.optim.nvnovograd.NvNovoGrad", "NovoGrad", {"weight_decay": 0.1}),
    Run("prodigyopt.Prodigy", "Prodigy", {"weight_decay": 0.1}, 5e-5),
    Run("pytorch_optimizer.NovoGrad", "NovoGrad", {"weight_decay": 0.1}),
    Run("timm.optim.nadamw.NAdamW", "NAdamW", {"weight_decay": 0.1}),
    Run("timm.optim.laprop.LaProp", "LaProp", {"weight_decay": 0.1}, 5e-5),
    Run("timm.optim.adabelief.AdaBelief", "AdaBelief", {"weight_decay": 0.1}, 1e-4),
    Run("timm.optim.adafactor.Adafactor", "Adafactor", {"weight_decay": 0.1}, shapes=(*MATRICES, (7,))),
    Run("timm.optim.adafactor.Adafactor", "Adafactor", {"lr": None}, shapes=(*MATRICES, (7,))),
    Run("lion_pytorch.Lion", "Lion", {"weight_decay": 0.1}),
    Run(
        "lion_pytorch.Lion",
        "Lion",
        {"weight_decay": 0.001, "decoupled_weight_decay": True},
        told={"decoupled_wd": True, "_init_lr": 0.01},
    ),
    Run("pytorch_optimizer.Lion", "Lion", {"weight_decay": 0.1}),
    Run("pytorch_optimizer.AdaMax", "Adamax", {"weight_decay": 0.1}),
    Run("pytorch_optimizer.AdaMax", "Adamax", {"maximize": True}, told={"maximize": True}),
    Run(
        "pytorch_optimizer.RAdam",
        "RAdam",
        {"weight_decay": 0.1, "degenerated_to_sgd": True},
        1e-4,
        told={"degenerated_to_sgd": True},
    ),
    Run("pytorch_optimizer.Adan", "Adan", {"weight_decay": 0.1}, 5e-5),
    Run("pytorch_optimizer.Adan", "Adan", {"weight_decay": 0.1, "weight_decouple": True, "max_grad_norm": 1.0}, 5e-5),
    Run("pytorch_optimizer.LARS", "LARS", {"weight_decay": 0.1}, 1e-4, shapes=MATRICES),
    Run("transformers.optimization.Adafactor", "Adafactor", {"lr": None}),
    Run("transformers.optimization.Adafactor", "Adafactor", {"lr": None, "warmup_init": True}, PLACES),
    Run("transformers.optimization.Adafactor", "Adafactor", {"scale_parameter": False, "relative_step": False}),
    Run("schedulefree.AdamWScheduleFree", "AdamWScheduleFree", {"weight_decay": 0.1, "warmup_steps": 4}),
    Run("schedulefree.RAdamScheduleFree", "RAdamScheduleFree", {"weight_decay": 0.1, "betas": (0.9, 0.99)}, 1e-4),
    Run("schedulefree.SGDScheduleFree", "SGDScheduleFree", {"weight_decay": 0.1, "r": 1.0}),
    Run("sophia_opt.SophiaG", "SophiaG", {"weight_decay": 0.1}),
    Run(
        "torch_optimizer.Lamb",
        "LAMB",
        {"weight_decay": 0.1, "clamp_value": 2.0},
        5e-5,  # of steps that are a few of the params' last places
        told={"clamp_value": 2.0},
    ),
    Run("torch_optimizer.LARS", "LARS", {"momentum": 0.9, "weight_decay": 0.1}, 1e-4),
    Run("torch_optimizer.RAdam", "RAdam", {"weight_decay": 0.1}, 1e-4),
    Run("torch_optimizer.Adafactor", "Adafactor", {"lr": None}, shapes=(*MATRICES, (7,))),
]
# No build of theirs steps on a CPU; tests/test_foreign.py has their files.
BY_FILES = {"apex", "transformer_engine"}


def _exact(params: list[Parameter], optimizer: Any) -> list[Tensor]:
    """With what rounding has taken from them."""

    def lost(p: Parameter) -> Any:
        state = optimizer.state.get(p, {})
        kept = state.get("compensation", state.get("kahan_comp"))
        return 0.0 if kept is None else kept.float()

    return [p.detach().float() + lost(p) for p in params]


def _apart(params: list[Tensor], wanted: list[Tensor], start: list[Parameter]) -> float:
    """The largest difference as a part of the largest movement."""

    def worst(p: Tensor, q: Tensor, s: Tensor) -> float:
        moved = (q - s).detach().abs().max().item()
        apart = (p - q).detach().abs().max().item()
        return apart / moved if apart else 0.0

    return max(map(worst, params, wanted, start))


def _by_replacing(run: Run, optimizer: Any, params: list[Parameter]) -> Any:
    return fusedopt.replace(optimizer)


def _by_file(run: Run, optimizer: Any, params: list[Parameter]) -> Any:
    file = save_and_load(optimizer.state_dict())
    halves = run.dtype == BF16 and "kahan_sum" in run.kwargs
    ours = getattr(fusedopt, run.ours)(params, **({"rounding": "kahan"} if halves else {}))
    fusedopt.load_foreign(ours, file, run.cls(), **run.told)
    return ours


@pytest.mark.parametrize("move", [_by_replacing, _by_file], ids=["live", "file"])
@pytest.mark.parametrize("run", RUNS, ids=str)
def test_training_goes_on(run: Run, move: Callable[[Run, Any, list[Parameter]], Any]) -> None:
    start, params, wanted = run.params(), run.params(), run.params()
    there = run.theirs(wanted)
    _train(run, there, wanted, 0)
    _train(run, there, wanted, STEPS)
    theirs = run.theirs(params)
    _train(run, theirs, params, 0)
    ours = move(run, theirs, params)
    assert type(ours) is getattr(fusedopt, run.ours)
    cls = getattr(fusedopt, run.ours)
    plain = cls([Parameter(torch.zeros(2, 2))])
    beyond = {key for key in cls._beyond if ours.param_groups[0].get(key, cls._beyond[key]) != cls._beyond[key]}
    assert ours.param_groups[0].keys() == {*plain.param_groups[0], *beyond}
    assert {key for state in ours.state.values() for key in state} <= {*_states(run), "compensation"}
    _train(run, ours, params, STEPS)
    reached = _exact(wanted, there)
    apart = _apart(_exact(params, ours), reached, start)

    assert apart <= run.close
    # Without the states that were taken over, ours end elsewhere.
    anew = run.params()
    _train(run, run.theirs(anew), anew, 0)
    fresh = getattr(fusedopt, run.ours)(anew)
    fresh.load_state_dict({**ours.state_dict(), "state": fresh.state_dict()["state"]})
    _train(run, fresh, anew, STEPS)
    assert _apart(_exact(anew, fresh), reached, start) > 2 * max(apart, 1e-4)


def _states(run: Run) -> set[str]:
    from fusedopt._core.origin import kind_of

    return set(kind_of(getattr(fusedopt, run.ours)).state.known)


def test_every_class_is_run() -> None:
    """8 and 32 bits and pages of bitsandbytes are one line of its table."""
    runs = {name_of(run.path) for run in RUNS}
    plain = {name for name in PEERS if name.partition(".")[0] not in BY_FILES}
    for bits in ("8bit", "32bit"):
        plain = {name for name in plain if not (name.startswith("bitsandbytes") and name.endswith(bits))}
    plain = {name for name in plain if ".Paged" not in name}
    others = {"deepspeed.FusedAdam", "torchao.Adam4bit", "torchao.AdamFp8"}
    assert plain - runs == others
