"""The table of docs/moving-in.md: what a call of theirs is with us, and what has our name and another rule."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch.nn import Parameter

import fusedopt

SHAPES = ((7,), (64, 33), (8, 4, 3, 3), (5000,), (40, 40))
MATRICES = ((64, 33), (40, 40), (24, 48))
STEPS = 12


@dataclass(frozen=True)
class Call:
    theirs: str
    given: dict[str, Any]
    ours: str
    called: dict[str, Any]
    # How far apart the two may end, as a part of the largest movement; at least, where the rules differ.
    bound: float = 1e-5
    shapes: tuple[tuple[int, ...], ...] = field(default=SHAPES)

    def __str__(self) -> str:
        kwargs = [f"{key}={value}" for key, value in self.given.items() if key != "lr"]
        return f"{self.theirs}({','.join(kwargs)})-{self.ours}"

    def apart(self) -> float:
        module, _, name = self.theirs.rpartition(".")
        start, params, wanted = (self._params() for _ in range(3))
        theirs = getattr(importlib.import_module(module), name)(wanted, **{"lr": 0.01, **self.given})
        ours = getattr(fusedopt, self.ours)(params, **{"lr": 0.01, **self.called})
        getattr(theirs, "train", int)()  # Schedule-Free ones begin elsewhere
        generator = torch.Generator().manual_seed(1)
        for _ in range(STEPS):
            for p, q in zip(params, wanted, strict=True):
                grad = torch.randn(p.shape, generator=generator)
                p.grad, q.grad = grad.clone(), grad.clone()
            theirs.step()
            ours.step()
        moved = [(q - s).detach().abs().max() for q, s in zip(wanted, start, strict=True)]
        found = [(p - q).detach().abs().max() / m for p, q, m in zip(params, wanted, moved, strict=True)]
        return max(found).item()

    def _params(self) -> list[Parameter]:
        generator = torch.Generator().manual_seed(0)
        return [Parameter(torch.randn(shape, generator=generator)) for shape in self.shapes]


WD = {"weight_decay": 0.1}
MIX = {"alpha": 3.0, "t_alpha": 8, "t_beta3": 8}
# With less, params move by their last places.
LARS = {"lr": 1.0, "momentum": 0.9, **WD}
CAUTION = {"caution": True}
DECOUPLED = {"decoupled_decay": True}
FACTORED = {"eps": (1e-30, 1e-3)}
GIVEN = {"scale_parameter": False, "relative_step": False}
WARM = {"warmup_init": True}
# Of what twelve such steps move a param: the first is of a millionth.
PLACES = 1e-2
TF = {"eps_in_sqrt": True, "lr_in_momentum": True, "initial_accumulator_value": 1.0, "momentum": 0.9, "alpha": 0.9}
APART = {"decoupled_weight_decay": True}
UNCORRECTED = {"bias_correction": False, "weight_decay": 0.0}
SAME = [
    Call("bitsandbytes.optim.AdamW", WD, "AdamW", WD),
    Call("bitsandbytes.optim.Adam", WD, "AdamW", WD),
    Call("bitsandbytes.optim.AdEMAMix", WD, "AdEMAMix", WD),
    Call("bitsandbytes.optim.AdEMAMix", MIX, "AdEMAMix", MIX),
    Call("bitsandbytes.optim.Lion", WD, "Lion", WD),
    Call("bitsandbytes.optim.SGD", {"momentum": 0.9}, "SGD", {"momentum": 0.9}),
    Call("bitsandbytes.optim.RMSprop", WD, "RMSprop", WD),
    Call("bitsandbytes.optim.Adagrad", WD, "Adagrad", WD),
    Call("bitsandbytes.optim.AdamW8bit", WD, "AdamW", {**WD, "state_dtype": "int8"}, 0.1),
    Call("deepspeed.ops.adam.DeepSpeedCPUAdam", WD, "AdamW", WD, 2e-5),
    Call("deepspeed.ops.adam.DeepSpeedCPUAdam", {**WD, "adamw_mode": False}, "Adam", WD, 2e-5),
    Call("deepspeed.ops.adagrad.DeepSpeedCPUAdagrad", {}, "Adagrad", {}),
    Call("deepspeed.ops.adam.DeepSpeedCPUAdam", {"bias_correction": False}, "AdamW", {**UNCORRECTED}, 2e-5),
    Call("torchao.optim._AdamW", WD, "AdamW", WD, 2e-5),
    Call("optimi.AdamW", WD, "AdamW", {**WD, "betas": (0.9, 0.99), "eps": 1e-6}),
    Call("optimi.Adam", WD, "Adam", {**WD, "betas": (0.9, 0.99), "eps": 1e-6}),
    Call("optimi.SGD", {"momentum": 0.9}, "SGD", {"momentum": 0.9}),
    Call("optimi.SGD", {"momentum": 0.9, "dampening": True}, "SGD", {"momentum": 0.9, "lr": 0.001}),
    Call("optimi.SGD", {"momentum": 0.9, "decouple_wd": True, **WD}, "SGD", {"momentum": 0.9, **APART, **WD}),
    Call("optimi.StableAdamW", WD, "StableAdamW", WD),
    Call("optimi.Lion", WD, "Lion", WD),
    Call("optimi.Adan", WD, "Adan", {**WD, "eps": 1e-6}, 5e-5),
    Call("timm.optim.lamb.Lamb", WD, "LAMB", {**WD, "max_grad_norm": 1.0}),
    Call("timm.optim.lars.Lars", LARS, "LARS", LARS),
    Call("timm.optim.lion.Lion", WD, "Lion", WD),
    Call("timm.optim.adan.Adan", WD, "Adan", WD, 5e-5),
    Call("timm.optim.adamw.AdamWLegacy", WD, "AdamW", WD),
    Call("timm.optim.nadam.NAdamLegacy", {}, "NAdam", {}),
    Call("timm.optim.radam.RAdamLegacy", WD, "RAdam", {**WD, "decoupled_weight_decay": True}, 1e-4),
    Call("timm.optim.adafactor.Adafactor", {"lr": None}, "Adafactor", FACTORED, shapes=MATRICES),
    Call("timm.optim.adafactor.Adafactor", {**WD}, "Adafactor", {**FACTORED, **GIVEN, **WD}, shapes=MATRICES),
    Call("timm.optim.adamw.AdamWLegacy", {**WD, **CAUTION}, "AdamW", {**WD, **CAUTION}),
    Call("timm.optim.lion.Lion", {**WD, **CAUTION}, "Lion", {**WD, **CAUTION}),
    Call("timm.optim.adan.Adan", {**WD, **CAUTION}, "Adan", {**WD, **CAUTION}, 5e-5),
    Call("timm.optim.lamb.Lamb", {**WD, **DECOUPLED}, "LAMB", {**WD, **DECOUPLED, "max_grad_norm": 1.0}),
    Call("timm.optim.lamb.Lamb", {**WD, **CAUTION}, "LAMB", {**WD, **CAUTION, "max_grad_norm": 1.0}),
    Call(
        "timm.optim.lamb.Lamb",
        {**WD, **CAUTION, **DECOUPLED, "max_grad_norm": None},
        "LAMB",
        {**WD, **CAUTION, **DECOUPLED},
    ),
    Call(
        "timm.optim.lamb.Lamb",
        {**CAUTION, "weight_decay": 0.0, "always_adapt": True, "trust_clip": True, "max_grad_norm": None},
        "LAMB",
        {**CAUTION, "weight_decay": 0.0, "always_adapt": True, "trust_clip": True},
    ),
    Call("timm.optim.mars.Mars", {**WD, "optimize_1d": True}, "MARS", WD, 5e-5),
    Call("timm.optim.nvnovograd.NvNovoGrad", WD, "NovoGrad", WD),
    Call("timm.optim.nadamw.NAdamW", WD, "NAdamW", WD),
    Call("timm.optim.laprop.LaProp", WD, "LaProp", WD, 5e-5),
    Call("timm.optim.adabelief.AdaBelief", WD, "AdaBelief", WD, 1e-4),
    Call(
        "timm.optim.rmsprop_tf.RMSpropTF",
        {"momentum": 0.9},
        "RMSprop",
        {**TF, "eps": 1e-10},
    ),
    Call("timm.optim.sgdw.SGDW", {"momentum": 0.9, **WD}, "SGD", {"momentum": 0.9, **APART, **WD}),
    Call("lion_pytorch.Lion", WD, "Lion", WD),
    Call("lion_pytorch.Lion", {"weight_decay": 1e-3, "decoupled_weight_decay": True}, "Lion", WD),
    Call("pytorch_optimizer.Lion", WD, "Lion", WD),
    Call("pytorch_optimizer.AdaMax", WD, "Adamax", WD),
    Call("pytorch_optimizer.RAdam", {"degenerated_to_sgd": True}, "RAdam", {}, 1e-4),
    Call("pytorch_optimizer.Adan", {"weight_decouple": True, **WD}, "Adan", {"no_prox": True, **WD}, 5e-5),
    Call("pytorch_optimizer.NovoGrad", WD, "NovoGrad", WD),
    Call("prodigyopt.Prodigy", WD, "Prodigy", WD),
    Call("pytorch_optimizer.LARS", LARS, "LARS", {**LARS, "eps": 0}, shapes=MATRICES),
    Call("transformers.optimization.Adafactor", {"lr": None}, "Adafactor", FACTORED),
    Call("transformers.optimization.Adafactor", {**GIVEN, **WD}, "Adafactor", {**FACTORED, **GIVEN, **WD}, 5e-5),
    Call("transformers.optimization.Adafactor", {"lr": None, **WARM}, "Adafactor", {**FACTORED, **WARM}, PLACES),
    Call("schedulefree.AdamWScheduleFree", WD, "AdamWScheduleFree", WD),
    Call("schedulefree.RAdamScheduleFree", WD, "RAdamScheduleFree", WD, 1e-4),
    Call("schedulefree.SGDScheduleFree", WD, "SGDScheduleFree", WD),
    Call("sophia_opt.SophiaG", WD, "SophiaG", WD),
    Call("torch_optimizer.Lamb", WD, "LAMB", {"bias_correction": False, "clamp_value": 10.0, **WD}),
    # What eps as a floor is where no root is below it.
    Call("heavyball.AdamW", {}, "AdamW", {"weight_decay": 0, "betas": (0.9, 0.99), "eps": 1e-30}),
    Call("torch_optimizer.LARS", LARS, "LARS", {**LARS, "trust_coeff": 0.01}),
    Call("torch_optimizer.RAdam", {}, "RAdam", {}, 1e-4),
]
OTHER = [
    Call("bitsandbytes.optim.Adam", WD, "Adam", WD, 1e-2),
    Call("bitsandbytes.optim.LAMB", WD, "LAMB", WD, 1e-2),
    Call("bitsandbytes.optim.LARS", LARS, "LARS", LARS, 1e-2),
    Call("optimi.RAdam", {"eps": 1e-2}, "RAdam", {"betas": (0.9, 0.99), "eps": 1e-2}, 1e-3),
    Call("timm.optim.lamb.Lamb", WD, "LAMB", WD, 1e-2),
    Call("timm.optim.nadamw.NAdamW", WD, "NAdam", {"decoupled_weight_decay": True, **WD}, 1e-2),
    Call("timm.optim.rmsprop_tf.RMSpropTF", {"momentum": 0.9}, "RMSprop", {"alpha": 0.9, "momentum": 0.9}, 1e-2),
    Call("timm.optim.sgdw.SGDW", {"momentum": 0.9, **WD}, "SGD", {"momentum": 0.9, **WD}, 1e-2),
    Call("pytorch_optimizer.Lamb", WD, "LAMB", WD, 1e-2),
    Call("pytorch_optimizer.RAdam", {}, "RAdam", {}, 1e-2),
    Call("torch_optimizer.Lamb", WD, "LAMB", WD, 1e-2),
    Call("transformers.optimization.Adafactor", {"lr": None, **WD}, "Adafactor", {**FACTORED, **WD}, 1e-3),
    Call("transformers.optimization.Adafactor", GIVEN, "Adafactor", FACTORED, 1e-2),
    Call("heavyball.AdamW", {"eps": 1e-2}, "AdamW", {"weight_decay": 0, "betas": (0.9, 0.99), "eps": 1e-2}, 1e-3),
]


@pytest.mark.parametrize("call", SAME, ids=str)
def test_calls_that_are_the_same(call: Call) -> None:
    assert call.apart() <= call.bound


@pytest.mark.parametrize("call", OTHER, ids=str)
def test_calls_of_the_same_name_and_another_rule(call: Call) -> None:
    assert call.apart() >= call.bound


@pytest.mark.parametrize("scale", [0.1, 1.0, 100.0])
@pytest.mark.parametrize("decay", [0.0, 1.0])
def test_bitsandbytes_lamb_is_this(decay: float, scale: float) -> None:
    """By what stands in docs/moving-in.md, in float64, and on a CPU."""
    from bitsandbytes.optim import LAMB

    generator = torch.Generator().manual_seed(0)
    start = torch.randn(64, 33, generator=generator) * scale
    param, p = Parameter(start.clone()), start.double()
    theirs = LAMB([param], lr=0.01, weight_decay=decay)
    m, v = torch.zeros_like(p), torch.zeros_like(p)
    for t in range(1, STEPS + 1):
        param.grad = torch.randn(p.shape, generator=generator)
        theirs.step()
        g = param.grad.double()
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        u = m / (1 - 0.9**t) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
        uncorrected = u * (1 - 0.9**t) / (1 - 0.999**t) ** 0.5
        ratio = min(1.0, (p.norm() / uncorrected.norm()).item())
        p = p * (1 - 0.01 * decay) - 0.01 * ratio * u
    moved = (p - start).abs().max()
    assert ((param - p).abs().max() / moved).item() <= (1e-3 if scale == 100 and not decay else 5e-5)


@pytest.mark.parametrize("name", ["sophia_opt.SophiaG", "pytorch_optimizer.SophiaH"])
def test_steps_by_estimates_of_the_hessian_are_the_same(name: str) -> None:
    """SophiaH is given squares for Hutchinson's estimate, and clips at p where ours clips at 1."""
    module, _, cls = name.partition(".")
    of_p, generator = 0.25 if cls == "SophiaH" else 1.0, torch.Generator().manual_seed(0)
    params, wanted = ([Parameter(torch.randn(64, 33, generator=torch.Generator().manual_seed(1)))] for _ in range(2))
    theirs = getattr(importlib.import_module(module), cls)(
        wanted, lr=0.04, betas=(0.9, 0.8), weight_decay=0.1, **({"p": of_p} if cls == "SophiaH" else {"rho": 0.5})
    )
    ours = fusedopt.SophiaG(
        params,
        lr=0.04 * of_p,
        betas=(0.9, 0.8),
        rho=of_p if cls == "SophiaH" else 0.5,
        weight_decay=0.1 / of_p,
        bs=1,
    )
    start = wanted[0].detach().clone()
    clipped = []
    for step in range(STEPS):
        grad, sampled = (torch.randn(64, 33, generator=generator) for _ in range(2))
        estimates = step % 3 == 0
        for p, optimizer in ((params[0], ours), (wanted[0], theirs)):
            if estimates and hasattr(optimizer, "update_hessian"):
                p.grad = sampled.clone()
                optimizer.update_hessian()
            p.grad = grad.clone()
            given = {} if optimizer is ours else {"bs": 1} if cls == "SophiaG" else {"hessian": [sampled**2]}
            # Without an estimate SophiaH makes one of its own, every tenth step.
            if cls == "SophiaH" and optimizer is theirs and not estimates:
                theirs.update_period, given = 10**6, {}
            optimizer.step(**given)
        state = ours.state[params[0]]
        clipped.append((state["exp_avg"].abs() > (of_p if cls == "SophiaH" else 0.5) * state["hessian"]).float().mean())
    assert 0.05 < sum(clipped[3:]) / len(clipped[3:]) < 0.95
    assert ((params[0] - wanted[0]).abs().max() / (wanted[0] - start).abs().max()).item() <= 1e-5


def test_an_update_of_0_moves_deepspeeds_lion() -> None:
    from deepspeed.ops.lion import DeepSpeedCPULion

    params = [Parameter(torch.ones(8)), Parameter(torch.ones(8))]
    for p, optimizer in zip(
        params, (DeepSpeedCPULion(params[:1], lr=0.1), fusedopt.Lion(params[1:], lr=0.1)), strict=True
    ):
        p.grad = torch.zeros(8)
        optimizer.step()
    assert (params[0] != 1).all()
    assert (params[1] == 1).all()
