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

import fusedopt

from .reference import Reference, multiplier
from .setups import ParamSpec, Setup


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
    def draws(self) -> bool:
        """Whether anything is rounded by chance."""
        storages = [self.setup.state_storage(key, p).chance for p in self.params for key in self.case.states]
        return self.setup.chance or any(storages)

    def add_group(self, specs: Sequence[ParamSpec], seed: int, **hypers: Any) -> None:
        self.optimizer.add_param_group({"params": self._make(specs, seed), **hypers})
        self._note_group(len(specs))

    def set_hyper(self, group: int, key: str, value: Any) -> None:
        """A tensor for a number is the number in what is expected."""
        self.optimizer.param_groups[group][key] = value
        self.hypers[group][key] = float(value) if isinstance(value, Tensor) else value

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

    def step(self, grads: Sequence[Tensor | None], how: str = "", scaler: Any = None) -> None:
        """Give gradients, step as `how` has it, compare with the reference."""
        given = [_as_numbers(g) for g in grads]
        present = [g for g in grads if g is not None]
        divisor = float(scaler.get_scale()) if scaler else 1.0
        factor = multiplier(present, divisor, self.options.get("max_grad_norm"))
        for p, g in zip(self.params, grads, strict=True):
            give(p, None if how in ("closure", "backward") else g)
        if scaler:
            scaler.step(self.optimizer)
        elif how == "closure" or self.case.optimizer == "LBFGS":
            self.optimizer.step(lambda: self._loss(grads))
        elif how == "backward":
            # Of products with constants, the gradients are these to the bit.
            with fusedopt.step_in_backward(self.model, self.optimizer):
                pairs = [(p, g) for p, g in zip(self.params, grads, strict=True) if g is not None]
                torch.stack([(p * g).sum().double() for p, g in pairs]).sum().backward()
        else:
            self.optimizer.step(**({"zero_grad": True} if how == "zero_grad" else {}))
        left = [i for i, p in enumerate(self.params) if p.grad is not None and p.grad.to_dense().count_nonzero()]
        assert how not in ("zero_grad", "backward") or not left, f"gradients of params {left} are not zero after it"
        if self.reference:
            self._compare(self.reference, given, *factor)

    def _loss(self, grads: Sequence[Tensor | None]) -> Tensor:
        """Sets the gradients; LBFGS gets those of a quadratic."""
        bends = self.case.optimizer == "LBFGS"
        loss = torch.zeros(())
        for p, g in zip(self.params, grads, strict=True):
            give(p, g + p.detach() if bends and g is not None else g)
            if bends and g is not None:
                loss = loss + float((g * p + p * p / 2).sum())
        return loss

    def _compare(self, reference: Reference, grads: Sequence[Tensor | None], factor: float, rough: float) -> None:
        states = self.states()
        for hypers, group, members in zip(self.hypers, self.optimizer.param_groups, self.groups, strict=True):
            lost = [key for key, value in hypers.items() if key not in group or not _equal(group[key], value)]
            assert not lost, f"the group has lost {lost}: {[group.get(key) for key in lost]}"
            for i in members:
                grad, param = grads[i], self.params[i]
                if grad is None:
                    reference.unchanged(i, param, states[i])
                    continue
                reference.step(i, grad, hypers, factor, rough, param)
                reference.check(i, param, states[i], self.options.get("ema_decay"))
                self._check_copy(i)

    def _check_copy(self, index: int) -> None:
        if index not in self.copies:
            return
        copy, param = self.copies[index], self.params[index].detach()
        unit = torch.finfo(copy.dtype).eps * param.abs() * (1.0 if self.setup.chance else 0.5) + 6e-8
        # Beyond the largest number of the copy's dtype lies infinity.
        near = ((copy.float() - param).abs() <= unit) | (copy == param.to(copy.dtype))
        assert near.all(), f"the copy of param {index} is not its rounded value"

    def unchanged(self) -> None:
        """After what must not have changed any number."""
        if self.reference:
            states = self.states()
            for i, p in enumerate(self.params):
                self.reference.unchanged(i, p, states[i])

    def gradients(self, random: Random, plain: bool = False) -> list[Tensor | None]:
        """One for each param, of any kind that a backward may leave."""
        grads: list[Tensor | None] = []
        kinds = [kind for kind in KINDS if kind not in self.setup.without]
        for p in self.params:
            kind = random.choice(["plain", "none"] if plain else kinds)
            seed = random.getrandbits(32)
            if kind == "none" or not p.requires_grad:
                grads.append(None)
            else:
                before = next((g for g in reversed(grads) if g is not None), None)
                dense = _gradient(kind, p, seed, self.scale, before)
                grads.append(_some_rows(dense, random) if self.case.optimizer == "SparseAdam" else dense)
        return grads


def _equal(found: Any, value: Any) -> bool:
    return bool(float(found) == value if isinstance(found, Tensor) else found == value)


def _as_numbers(grad: Tensor | None) -> Tensor | None:
    """In float64; rows that a sparse gradient does not hold are NaN."""
    if grad is None or not grad.is_sparse:
        return None if grad is None else float64(grad)
    whole = torch.full(grad.shape, torch.nan, dtype=torch.float64)
    rows = grad.coalesce().indices()[0]
    whole[rows] = grad.to_dense().double()[rows]
    return whole


def _some_rows(dense: Tensor, random: Random) -> Tensor:
    """A sparse gradient of some rows in any order, of which one may be there twice."""
    rows = [random.randrange(len(dense)) for _ in range(random.randint(1, min(len(dense), 40)))]
    rows = rows if random.random() < 0.3 else random.sample(range(len(dense)), len(set(rows)))
    return torch.sparse_coo_tensor(torch.tensor([rows]), dense[rows].clone(), dense.shape)


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
