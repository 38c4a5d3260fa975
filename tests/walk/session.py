"""A model, an optimizer and a user: what operations act on."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import torch
from oracle import float64
from runs import give
from torch import Tensor
from torch.nn import Parameter

from .reference import Reference, coefficient
from .setups import HALVES, ParamSpec, Setup


def normal(shape: Sequence[int], dtype: torch.dtype, seed: int, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    return (torch.randn(tuple(shape), generator=generator, dtype=wide) * scale).to(dtype)


class Session:
    """`reference` follows it where one is wanted; two sessions given the same operations are equal to the bit."""

    def __init__(self, setup: Setup, reference: bool) -> None:
        self.setup = setup
        self.case = setup.of
        self.reference = Reference(setup) if reference else None
        self.model = torch.nn.ParameterList()
        # What the user has set; equal to what the optimizer has, or something is lost.
        self.hypers: list[dict[str, Any]] = []
        self.options = dict(setup.options)
        self.groups: list[list[int]] = []
        self.copies: dict[int, Tensor] = {}
        self.scale = 1.0
        params = self._make(setup.params, setup.seed)
        self.optimizer: Any = self.case.ours(params, **self.options)
        self._note_group(len(params))

    def _make(self, specs: Sequence[ParamSpec], seed: int) -> list[Parameter]:
        made = []
        for i, spec in enumerate(specs):
            made.append(spec.make(normal(spec.shape, getattr(torch, spec.dtype), seed + i, 0.5)))
            if self.reference:
                self.reference.add(made[-1])
        self.model.extend(made)
        return made

    def _note_group(self, count: int) -> None:
        first = sum(map(len, self.groups))
        self.groups.append(list(range(first, first + count)))
        self.hypers.append({k: v for k, v in self.optimizer.param_groups[-1].items() if k != "params"})

    @property
    def params(self) -> list[Any]:
        return list(self.model)

    @property
    def coded(self) -> bool:
        """Whether any state is in codes."""
        storages = [self.setup.state_storage(key, p).coded for p in self.params for key in self.case.states]
        return any(storages)

    @property
    def halves(self) -> bool:
        return any(str(p.dtype).removeprefix("torch.") in HALVES for p in self.params)

    def add_group(self, specs: Sequence[ParamSpec], seed: int, **hypers: Any) -> None:
        self.optimizer.add_param_group({"params": self._make(specs, seed), **hypers})
        self._note_group(len(specs))

    def set_hyper(self, group: int, key: str, value: Any) -> None:
        self.hypers[group][key] = self.optimizer.param_groups[group][key] = value

    def fresh(self, params: Sequence[Parameter], make: Any = None) -> Any:
        """An optimizer of the same class, arguments and groups over other params, without state."""
        make = make or self.case.ours
        groups = [{"params": [params[i] for i in members]} for members in self.groups]
        return make(groups, **self.options)

    def adopt(self, params: Sequence[Parameter], optimizer: Any) -> None:
        """Go on with these."""
        if [id(p) for p in params] != [id(p) for p in self.model]:
            for old, new in zip(self.params, params, strict=True):
                new.requires_grad_(old.requires_grad)
            self.model = torch.nn.ParameterList(params)
        self.optimizer = optimizer

    def copy_again(self) -> None:
        """Tell a new optimizer of the copies that the old one wrote."""
        if self.copies:
            self.optimizer.copy_params_to({self.params[i]: copy for i, copy in self.copies.items()})

    def states(self) -> list[dict[str, Any]]:
        """As a checkpoint has them: codes and roots as the numbers that they stand for."""
        saved = self.optimizer.state_dict()["state"]
        return [saved.get(i, {}) for i in range(len(self.model))]

    def edited(self, index: int) -> None:
        if self.reference:
            self.reference.edited(index, self.params[index])

    def step(self, grads: Sequence[Tensor | None], zero_grad: bool = False, scaler: Any = None) -> None:
        """Give gradients, step, compare with the reference."""
        given = [None if g is None else float64(g) for g in grads]
        for p, g in zip(self.params, grads, strict=True):
            give(p, g)
        if scaler:
            scaler.step(self.optimizer)
        else:
            self.optimizer.step(**({"zero_grad": True} if zero_grad else {}))
        if zero_grad:
            left = [i for i, g in enumerate(grads) if g is not None and g.count_nonzero()]
            assert not left, f"gradients of params {left} are not zero after step(zero_grad=True)"
        if self.reference:
            self._compare(self.reference, given, float(scaler.get_scale()) if scaler else 1.0)

    def _compare(self, reference: Reference, grads: Sequence[Tensor | None], divisor: float) -> None:
        present = [g for g in grads if g is not None]
        multiplier = coefficient(present, divisor, self.options.get("max_grad_norm"))
        states = self.states()
        for hypers, group, members in zip(self.hypers, self.optimizer.param_groups, self.groups, strict=True):
            lost = [key for key, value in hypers.items() if key not in group or group[key] != value]
            assert not lost, f"the group has lost {lost}: {[group.get(key) for key in lost]}"
            for i in members:
                grad, param = grads[i], self.params[i]
                if grad is None:
                    reference.unchanged(i, param, states[i])
                    continue
                reference.step(i, grad, hypers, multiplier, param)
                reference.check(i, param, states[i], self.options.get("ema_decay"))
                self._check_copy(i)

    def _check_copy(self, index: int) -> None:
        if index not in self.copies:
            return
        copy, param = self.copies[index], self.params[index].detach()
        off = (copy.float() - param).abs()
        unit = torch.finfo(copy.dtype).eps * param.abs() * (1.0 if self.setup.chance else 0.5)
        assert (off <= unit + 6e-8).all(), f"the copy of param {index} is not its rounded value"

    def skipped(self) -> None:
        """After a step that an overflow has skipped."""
        if self.reference:
            states = self.states()
            for i, p in enumerate(self.params):
                self.reference.unchanged(i, p, states[i])

    def gradients(self, random: Random, plain: bool = False) -> list[Tensor | None]:
        """One for each param, of any kind that a backward may leave."""
        grads: list[Tensor | None] = []
        for p in self.params:
            kind = random.choice(["plain", "none"] if plain else KINDS)
            seed = random.getrandbits(32)
            if kind == "none" or not p.requires_grad:
                grads.append(None)
            else:
                before = next((g for g in reversed(grads) if g is not None), None)
                grads.append(_gradient(kind, p, seed, self.scale, before))
        return grads


KINDS = ("plain", "plain", "plain", "plain", "none", "zeros", "expanded", "transposed", "gaps", "wide", "shared")


def _gradient(kind: str, p: Tensor, seed: int, scale: float, before: Tensor | None) -> Tensor:
    dtype = p.dtype
    if kind == "wide" and not dtype.is_complex:
        dtype = torch.float64 if dtype == torch.float32 else torch.float32
    grad = normal(p.shape, dtype, seed, scale)
    if kind == "zeros":
        grad[grad.abs() < scale] = 0
    elif kind == "expanded" and p.ndim:
        return grad.narrow(0, 0, min(1, p.shape[0])).expand(p.shape)
    elif kind == "transposed" and p.ndim > 1:
        return grad.mT.contiguous().mT
    elif kind == "gaps" and p.ndim:
        return torch.stack([grad, grad], -1)[..., 0]
    elif kind == "shared" and before is not None and before.dtype == dtype:
        if before.shape == p.shape:
            return before
        # The end of another's memory.
        if before.is_contiguous() and before.numel() > p.numel() > 0:
            return before.view(-1)[before.numel() - p.numel() :].view(p.shape)
    return grad
