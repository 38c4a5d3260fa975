"""The slow reference: the formulas in float64, from the stored numbers of the step before, and what may be between.

It keeps its own record of every param and state. Nothing is read from the optimizer before a step, so whatever changed
between two steps without a reason shows in the second. After a step the record takes over the stored numbers, so
that one step's rounding is all that has to be allowed for. Roundings by chance must be right in the mean as well: their
sum is a martingale, whose bound grows with the root of the number of draws.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from formulas import RULES
from oracle import float64
from support import COUNTERS
from torch import Tensor

from .others import RULES as OTHER_RULES
from .setups import HALVES, NEVER_NEGATIVE, Setup
from .storages import Storage, spacing

PARTNERS = ("master", "remainder", "compensation")
Values = dict[str, Any]


@dataclass
class Record:
    """What a param is known to hold, in float64, and how much of it is not known."""

    values: Values  # "param", and the states by their keys
    bits: Tensor  # the param as it is stored
    stepped: tuple[Tensor, Tensor]  # what the last step left: the param as it is stored, and what it stands for
    slack: dict[str, Tensor] = field(default_factory=dict)
    ema: Tensor | None = None


class Mismatch(AssertionError):
    """A number is not what the formulas make of the numbers before it."""


class Reference:
    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.rule = {**RULES, **OTHER_RULES}[setup.of.optimizer]
        self.by_norms = setup.of.optimizer in ("LAMB", "LARS", "Adafactor")
        self.records: list[Record] = []
        self.drawn: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])

    def add(self, param: Tensor) -> None:
        value = float64(param)
        self.records.append(Record({"param": value}, value, (value, value)))

    def edited(self, index: int, param: Tensor) -> None:
        """The user has written the param: what changed is now the param, what did not keeps what is beside it."""
        record, new = self.records[index], float64(param)
        stored, exact = record.stepped
        changed = new != stored
        record.values["param"] = torch.where(changed, new, exact)
        if str(param.dtype).removeprefix("torch.") in HALVES and self.setup.partner:
            # From half of the number nobody can tell which elements an edit has changed, nor, from any, whether one has
            # come back to what it was.
            came_back = (record.bits != stored) & ~changed | (new.signbit() != stored.signbit()) & ~changed
            unknown = came_back | changed if self.setup.partner != "master" else came_back
            half = spacing(new, param.dtype) / 2
            record.slack["param"] = torch.where(unknown, half, record.slack.get("param", 0.0))
        record.bits = new

    def coded_anew(self, index: int, param: Tensor) -> None:
        """Codes have been made for another order of memory: once more rounded."""
        record = self.records[index]
        for key in record.values.keys() - COUNTERS - {"param"}:
            storage = self.setup.state_storage(key, param)
            if storage.coded:
                once = Storage(storage.name).rounding(record.values[key], param)
                record.slack[key] = record.slack.get(key, 0.0) + once

    def step(
        self, index: int, grad: Tensor, hypers: Mapping[str, Any], factor: float, rough: float, param: Tensor
    ) -> None:
        """Expect a step; `check` compares. `rough`: by how much, relatively, the factor may be off."""
        record = self.records[index]
        self._begin(record, param, hypers)
        g = grad * factor * (-1 if hypers.get("maximize") else 1)
        # Eight units in the last place of whatever goes into the formula, one after the other; float64, in which the
        # formula is no more exact than what it is compared with, gets some more.
        delta = 2.0**-47 if param.dtype == torch.float64 else 2.0**-20
        decoupled = self.setup.of.optimizer == "AdamW"
        hypers = {"decoupled_weight_decay": decoupled, "dtype_eps": torch.finfo(param.dtype).eps, **hypers}
        inputs = {**record.values, "grad": g}

        def formula(values: Values) -> Values:
            state = {k: v for k, v in values.items() if k not in ("param", "grad")}
            made = self.rule(values["param"], values["grad"], state, hypers)
            return {**state, "param": made}

        self.expected = formula(inputs)
        self.spread = {k: delta * abs(v) for k, v in self.expected.items()}
        for key, value in inputs.items():
            if key == "step":
                continue
            # Counters are in float32 in any case.
            part = delta if isinstance(value, Tensor) else 2.0**-20
            for grows in self._directions(value):
                wiggle = (part + (rough if key == "grad" else 0.0)) * abs(value) + record.slack.get(key, 0.0)
                wiggle = wiggle * grows
                ends = [value - wiggle, value + wiggle]
                if key in NEVER_NEGATIVE:
                    ends = [end.clamp_min(0) for end in ends]
                ends = [formula({**inputs, key: end}) for end in ends]
                for name, exact in self.expected.items():
                    away = [abs(end[name] - exact) for end in ends]
                    largest = torch.maximum(*away) if isinstance(exact, Tensor) else max(away)
                    # What is not known may be no small change, and is half of what several together are.
                    self.spread[name] = self.spread[name] + largest * (2 if key in record.slack else 1)
        if self.setup.of.optimizer == "Adafactor":
            # Whose averages are stored before they are used.
            moved = (self.expected["param"] - record.values["param"]).abs()
            self.spread["param"] = self.spread["param"] + torch.finfo(param.dtype).eps * moved

    def _directions(self, value: Any) -> list[Any]:
        """The signs of errors: of elements that grow in proportion, and change norms, and of others, that hardly do."""
        if not self.by_norms or not isinstance(value, Tensor):
            return [1]
        alternating = torch.arange(value.numel(), dtype=torch.float64).view(value.shape) % 2 * 2 - 1
        return [1, value.sign(), alternating]

    def _begin(self, record: Record, param: Tensor, hypers: Mapping[str, Any]) -> None:
        """States that begin as a learning rate are stored before they are first read."""
        rate = float(hypers["lr"])
        name = self.setup.of.optimizer
        if name == "ASGD":
            record.values.setdefault("eta", rate)
        elif name == "Rprop" and "step_size" not in record.values:
            size = record.values["step_size"] = torch.full_like(record.values["param"], rate)
            record.slack["step_size"] = self.setup.state_storage("step_size", param).rounding(size, param)

    def check(self, index: int, param: Tensor, state: Mapping[str, Any], ema_decay: float | None) -> None:
        """Compare what a step left, and go on from there."""
        dtype = str(param.dtype).removeprefix("torch.")
        partner = self.setup.partner if dtype in HALVES else None
        found = {k: v for k, v in state.items() if v is not None}
        # A master has an order of its own, which codes then have as well.
        order = found["master"] if partner == "master" else param.detach()
        expected_keys = {*self.expected, *([partner] if partner else []), *(["ema"] if ema_decay is not None else [])}
        if set(found) != expected_keys - {"param"}:
            raise Mismatch(f"param {index} has the states {sorted(found)}, not {sorted(expected_keys - {'param'})}")
        exact = _exact(param, partner, found)
        if not (float64(param) - exact).abs().le(spacing(exact, param.dtype) * 0.5001).all() and partner:
            raise Mismatch(f"param {index} is not the rounded value of itself and its {partner}")
        actual = {**{k: v for k, v in found.items() if k in self.expected}, "param": exact}
        for key, wanted in self.expected.items():
            if key in COUNTERS:
                if abs(float(actual[key]) - wanted) > 1e-6 * abs(wanted) + float(self.spread[key]):
                    raise Mismatch(f"'{key}' of param {index} is {float(actual[key])}, not {wanted}")
                actual[key] = float(actual[key])
                continue
            storage = self.setup.param_storage(dtype) if key == "param" else self.setup.state_storage(key, param)
            actual[key] = float64(actual[key]) if key != "param" else exact
            self._near(f"'{key}' of param {index} ({dtype})", key, actual[key], storage, order)
        record = self.records[index]
        if ema_decay is not None:
            # It may see what rounding takes from a compensation.
            unseen = self.setup.param_storage(dtype).rounding(exact, order) if partner == "compensation" else 0.0
            record.ema = self._average(index, float64(found["ema"]), exact, ema_decay, unseen)
        record.values, record.bits, record.slack = actual, float64(param), {}
        record.stepped = record.bits, exact

    def unchanged(self, index: int, param: Tensor, state: Mapping[str, Any]) -> None:
        """No step was made: the bits are those of the record."""
        record = self.records[index]
        if not float64(param).equal(record.bits):
            raise Mismatch(f"param {index} has changed without a step")
        for key, value in record.values.items():
            if key == "param":
                continue
            if key in COUNTERS:
                same = float(state[key]) == value
            else:
                same = bool((float64(state[key]) - value).abs().le(record.slack.get(key, 0.0)).all())
            if not same:
                raise Mismatch(f"'{key}' of param {index} has changed without a step")

    def _near(self, name: str, key: str, actual: Tensor, storage: Storage, order: Tensor) -> None:
        expected, spread = self.expected[key], self.spread[key]
        real = torch.view_as_real(order) if order.is_complex() else order
        largest = expected.abs() + spread
        rounding = storage.rounding(largest, real)
        if storage.name.startswith("root"):
            low, high = storage.rooted(expected - spread), storage.rooted(expected + spread)
            expected, actual, spread = storage.rooted(expected), storage.rooted(actual), high - low
        error = (actual - expected).abs()
        allowed = spread + rounding
        wrong = ~(error <= allowed)
        if wrong.any():
            worst = torch.where(wrong, (error / allowed.clamp_min(1e-300)).nan_to_num(torch.inf), 0.0).argmax()
            at = [t.reshape(-1)[worst].item() for t in (actual, expected, allowed)]
            raise Mismatch(
                f"{name}, stored as {storage.name}: {int(wrong.sum())} of {wrong.numel()} elements are wrong; element "
                f"{int(worst)} is {at[0]!r} instead of {at[1]!r} within {at[2]:.2g}"
            )
        if storage.chance and not storage.name.startswith("u"):
            self._in_the_mean(key, storage, actual - expected, expected, spread, storage.unit(expected, real))

    def _in_the_mean(
        self, key: str, storage: Storage, error: Tensor, expected: Tensor, spread: Tensor, unit: Tensor
    ) -> None:
        """The sum of all errors in units of the storage stays within 7 standard deviations of fair draws."""
        # Where the arithmetic is much finer than the storage, and what is not 0 need not be kept from it.
        fine = (spread < unit / 16) & ((expected.abs() >= unit) | (expected == 0))
        sums = self.drawn[f"{key} in {storage.name}"]
        sums[0] += float((error / unit)[fine].sum())
        sums[1] += int(fine.sum())
        sums[2] += float((spread / unit)[fine].sum())
        if abs(sums[0]) > 3.5 * sums[1] ** 0.5 + sums[2]:
            raise Mismatch(
                f"{key} in {storage.name} is off by {sums[0] / sums[1]:.3f} units in the mean of {sums[1]:.0f} "
                "roundings"
            )

    def _average(self, index: int, actual: Tensor, exact: Tensor, decay: float, unseen: Any) -> Tensor:
        before = self.records[index].ema
        expected = exact if before is None else decay * before + (1 - decay) * exact
        size = torch.maximum(exact.abs(), exact.abs() if before is None else before.abs())
        if not (actual - expected).abs().le(2.0**-21 * size + unseen + 1e-38).all():
            raise Mismatch(f"'ema' of param {index} is not the average of its values")
        return actual


def _exact(param: Tensor, partner: str | None, state: Mapping[str, Any]) -> Tensor:
    """The number that a param and its partner stand for."""
    value = float64(param)
    if partner is None:
        return value
    kept = state[partner]
    if partner == "compensation":
        return value + kept.double()
    if partner == "master":
        return kept.double()
    return (param.detach().float().view(torch.int32) + kept.to(torch.int32)).view(torch.float32).double()


def multiplier(grads: Sequence[Tensor], divisor: float, max_norm: float | None) -> tuple[float, float]:
    """The unscaling and the clipping of all gradients together, and how far it may be off, relatively."""
    if max_norm is None:
        return 1 / divisor, 0.0
    norm = sum(float(float64(g.to_dense()).square().sum()) for g in grads) ** 0.5 / divisor
    # torch's norm is of the gradients' dtype.
    rough = 0.0 if any(g.dtype == torch.float64 for g in grads) else 2.0**-20
    return min(1.0, max_norm / (norm + 1e-6)) / divisor, rough
