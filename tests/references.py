"""Stand-ins for what torch.optim does not have: the formulas behind an interface like that of torch's classes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, ClassVar

import torch
from formulas import RULES
from formulas_joint import JOINT, Part
from torch import Tensor
from torch.nn import Parameter
from torch.optim.optimizer import Optimizer, ParamsT

import fusedopt


class Reference(Optimizer):
    """The formula on each param, in the param's dtype; states are kept as torch.optim's classes keep theirs."""

    arguments: ClassVar[dict[str, Any]]
    # States that the reference implementation clones from the gradient; the others lie as the param.
    like_grad: ClassVar[tuple[str, ...]] = ()
    # What ours takes beside the arguments of torch's class of this name, as by torch's rule.
    beyond: ClassVar[dict[str, Any]] = {}

    def __init__(self, params: ParamsT, *, foreach: Any = None, fused: Any = None, **kwargs: Any) -> None:
        # torch's own arguments have what all classes have.
        common = {"maximize": False, "capturable": False, "differentiable": False}
        defaults = {**({} if "foreach" in self.arguments else common), **self.arguments, **self.beyond}
        unknown = kwargs.keys() - defaults.keys()
        if unknown:
            raise TypeError(f"unexpected arguments: {sorted(unknown)}")
        own = {**defaults, **kwargs}
        super().__init__(params, {k: v for k, v in own.items() if k not in self.beyond or v != self.beyond[k]})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # torch's SGD looks for buffers before it updates any param, so that one listed twice begins twice.
        new = {p for group in self.param_groups for p in group["params"] if not self.state.get(p)}
        parts = [
            (p, self._part(p, p.grad, group, () if p not in new else self.like_grad))
            for group in self.param_groups
            for p in group["params"]
            if p.grad is not None
        ]
        if (joint := JOINT.get(type(self).__name__)) is not None:
            results = joint([part for _, part in parts], self.param_groups) if parts else []
            for (p, part), result in zip(parts, results, strict=True):
                self._keep(p, part, result)
            return loss
        for p, part in parts:
            # One that is listed twice goes on from where its first step has left it.
            here = self._part(p, p.grad, part.h, () if p not in new else self.like_grad)
            self._keep(p, here, RULES[type(self).__name__](*here))
        return loss

    def _part(self, p: Tensor, g: Tensor, group: dict[str, Any], begins: tuple[str, ...]) -> Part:
        # The formula replaces values by others; they go back into the tensors that there are.
        state = self.state.get(p, {})
        values = {k: _real(v) for k, v in state.items() if isinstance(v, Tensor) and k not in begins}
        return Part(_real(p), _real(-g if group["maximize"] else g), values, group)

    def _keep(self, p: Tensor, part: Part, result: Tensor) -> None:
        state, values, group = dict(self.state.get(p, {})), part.s, part.h
        for key, value in values.items():
            if key not in state:
                state[key] = self._like_grad_or_param(key, p) if isinstance(value, Tensor) else _counter(p, group)
            _real(state[key]).copy_(torch.as_tensor(value))
        if state:
            self.state[p].update(state)
        _real(p).copy_(result)

    def _like_grad_or_param(self, key: str, p: Tensor) -> Tensor:
        return torch.empty_like(p.grad if key in self.like_grad else p, dtype=p.dtype)


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _counter(p: Tensor, group: dict[str, Any]) -> Tensor:
    wide = torch.get_default_dtype() == torch.float64
    device = p.device if group.get("capturable") else "cpu"
    return torch.zeros((), dtype=torch.float64 if wide else torch.float32, device=device)


# Their arguments are those of these implementations in their order, less those that clip all gradients, make other
# methods or choose an implementation: google/automl's Lion, sail-sg/Adan's Adan, timm's Lamb and Lars, bitsandbytes'
# AdEMAMix, the authors' ADOPT with timm's exponent in the place of a function, lucidrains' AdamAtan2, timm's NAdamW,
# LaProp, AdaBelief, Mars and NvNovoGrad, optimi's StableAdamW, schedulefree's three, prodigyopt's Prodigy, the authors'
# SophiaG. `beyond` is what ours take by name alone: timm's `caution` and `decoupled_decay`, torch_optimizer's
# `clamp_value`, and what SophiaG's authors give to its step.
class Lion(Reference):
    arguments: ClassVar = {"lr": 1e-4, "betas": (0.9, 0.99), "weight_decay": 0.0}
    beyond: ClassVar = {"caution": False}


class Adan(Reference):
    arguments: ClassVar = {"lr": 1e-3, "betas": (0.98, 0.92, 0.99), "eps": 1e-8, "weight_decay": 0.0, "no_prox": False}
    beyond: ClassVar = {"caution": False}


class AdEMAMix(Reference):
    arguments: ClassVar = {
        "lr": 1e-3,
        "betas": (0.9, 0.999, 0.9999),
        "alpha": 5.0,
        "t_alpha": None,
        "t_beta3": None,
        "eps": 1e-8,
        "weight_decay": 1e-2,
    }


class ADOPT(Reference):
    arguments: ClassVar = {
        "lr": 1e-3,
        "betas": (0.9, 0.9999),
        "eps": 1e-6,
        "clip_exp": 0.25,
        "weight_decay": 0.0,
        "decouple": False,
    }


class AdamAtan2(Reference):
    arguments: ClassVar = {"lr": 1e-4, "betas": (0.9, 0.99), "weight_decay": 0.0, "a": 1.27, "b": 1.0}


class LAMB(Reference):
    arguments: ClassVar = {
        "lr": 1e-3,
        "bias_correction": True,
        "betas": (0.9, 0.999),
        "eps": 1e-6,
        "weight_decay": 0.01,
        "grad_averaging": True,
        "trust_clip": False,
        "always_adapt": False,
    }
    beyond: ClassVar = {"decoupled_decay": False, "clamp_value": None, "caution": False}


class MARS(Reference):
    arguments: ClassVar = {"lr": 3e-3, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.0, "gamma": 0.025}


class NovoGrad(Reference):
    arguments: ClassVar = {
        "lr": 1e-3,
        "betas": (0.95, 0.98),
        "eps": 1e-8,
        "weight_decay": 0.0,
        "grad_averaging": False,
        "decoupled_decay": False,
    }


class Prodigy(Reference):
    arguments: ClassVar = {
        "lr": 1.0,
        "betas": (0.9, 0.999),
        "beta3": None,
        "eps": 1e-8,
        "weight_decay": 0.0,
        "decouple": True,
        "use_bias_correction": False,
        "safeguard_warmup": False,
        "d0": 1e-6,
        "d_coef": 1.0,
        "growth_rate": math.inf,
    }

    def __init__(self, params: ParamsT, **kwargs: Any) -> None:
        super().__init__(params, **kwargs)
        for group in self.param_groups:
            group.update({"d": group["d0"], "d_max": group["d0"], "d_numerator": 0.0, "k": 0})


class LARS(Reference):
    arguments: ClassVar = {
        "lr": 1.0,
        "momentum": 0.0,
        "dampening": 0.0,
        "weight_decay": 0.0,
        "nesterov": False,
        "trust_coeff": 0.001,
        "eps": 1e-8,
        "trust_clip": False,
        "always_adapt": False,
    }
    like_grad = ("momentum_buffer",)


class NAdamW(Reference):
    arguments: ClassVar = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2}


class LaProp(Reference):
    arguments: ClassVar = {"lr": 4e-4, "betas": (0.9, 0.999), "eps": 1e-15, "weight_decay": 0.0}


class AdaBelief(Reference):
    arguments: ClassVar = {
        "lr": 1e-3,
        "betas": (0.9, 0.999),
        "eps": 1e-16,
        "weight_decay": 0.0,
        "amsgrad": False,
        "decoupled_decay": True,
        "fixed_decay": False,
        "rectify": True,
        "degenerated_to_sgd": True,
    }


class SophiaG(Reference):
    arguments: ClassVar = {"lr": 1e-4, "betas": (0.965, 0.99), "rho": 0.04, "weight_decay": 0.1}
    beyond: ClassVar = {"bs": 5120}


class StableAdamW(Reference):
    arguments: ClassVar = {"lr": 1e-3, "betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 1e-2}


_AVERAGING: dict[str, Any] = {"r": 0.0, "weight_lr_power": 2.0, "train_mode": True}
_ADAPTIVE: dict[str, Any] = {"lr": 0.0025, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}


class AdamWScheduleFree(Reference):
    arguments: ClassVar = {**_ADAPTIVE, "warmup_steps": 0, **_AVERAGING}


class RAdamScheduleFree(Reference):
    arguments: ClassVar = {**_ADAPTIVE, **_AVERAGING, "silent_sgd_phase": True}


class SGDScheduleFree(Reference):
    arguments: ClassVar = {"lr": 1.0, "momentum": 0.9, "weight_decay": 0.0, "warmup_steps": 0, **_AVERAGING}


def twin(optimizer: str, arguments: Iterable[str] = ()) -> Any:
    """torch's class of this name, or what stands in for it, if torch has none or not with these arguments."""
    theirs = getattr(torch.optim, optimizer, None)
    if theirs is None:
        return globals()[optimizer]
    beyond = getattr(getattr(fusedopt, optimizer), "_beyond", {})
    if beyond.keys() & set(arguments):
        return _beyond(optimizer)
    return Adagrad if theirs is torch.optim.Adagrad and not _begins_what_is_added() else theirs


class Adagrad(torch.optim.Adagrad):
    """torch's before 2.12, which makes states in its constructor alone, with those of params that come later."""

    def _init_group(self, group: dict[str, Any], *lists: Any) -> Any:
        new = [p for p in group["params"] if p.grad is not None and not self.state.get(p)]
        if new:
            started = {"initial_accumulator_value": self.defaults["initial_accumulator_value"]}
            self.state.update(torch.optim.Adagrad(new, **started).state)
        return super()._init_group(group, *lists)


@cache
def _begins_what_is_added() -> bool:
    """Whether torch's Adagrad steps a param that it was not made with."""
    optimizer, param = torch.optim.Adagrad([torch.zeros(1)], foreach=False), Parameter(torch.zeros(1))
    optimizer.add_param_group({"params": [param]})
    param.grad = torch.ones(1)
    try:
        optimizer.step()
    except KeyError:
        return False
    return True


@cache
def _beyond(optimizer: str) -> Any:
    """A stand-in for a class of torch's, with what ours has beyond it."""
    ours = getattr(fusedopt, optimizer)
    theirs = getattr(torch.optim, optimizer)([torch.zeros(1)]).defaults
    like_grad = ("momentum_buffer",) if optimizer == "SGD" else ()
    own = {"arguments": theirs, "like_grad": like_grad, "beyond": dict(ours._beyond)}
    return type(optimizer, (Reference,), own)
