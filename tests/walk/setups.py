"""What a walk begins with: an optimizer, its arguments and options, and the params it is given."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import cache
from random import Random
from typing import Any

import torch
from cases import APART, CASES, Case
from torch import Tensor
from torch.nn import Parameter

from fusedopt import _C

from .others import OTHERS, Other, Shapes
from .storages import Storage

HALVES = ("bfloat16", "float16")
DTYPES = ("float32", "float32", "bfloat16", "bfloat16", "float16", "float64", "complex64")
# Large enough for codes.
LARGE: Shapes = ((4096,), (3, 1700), (4, 8, 12, 11), (5000,))
SHAPES: Shapes = ((), (1,), (0, 3), (7,), (67,), (5, 7), (600,), (4, 3, 5, 6), (2, 3, 4, 5), *LARGE)
CODED = 4096
# What is never negative, which float16 holds as its root and codes without a sign.
NEVER_NEGATIVE = {
    name for rule in _C.rules().values() for name, kind in rule["kinds"].items() if kind in ("magnitude", "total")
}


def named(name: str) -> Case:
    return next(case for case in (*CASES, *OTHERS) if case.name == name)


@dataclass
class ParamSpec:
    """A param: the name of its dtype, its shape and how it lies in memory."""

    dtype: str
    shape: tuple[int, ...]
    layout: str = "contiguous"

    def make(self, values: Tensor) -> Parameter:
        return Parameter(lay_out(values.to(getattr(torch, self.dtype)), self.layout))

    @classmethod
    def drawn(cls, random: Random, dtype: str, case: Case, shapes: Shapes = SHAPES) -> ParamSpec:
        shape = random.choice(case.shapes if isinstance(case, Other) else shapes)
        layout = random.choice(layouts_of(shape)) if random.random() < 0.4 else "contiguous"
        return cls(dtype, shape, layout if not isinstance(case, Other) or layout in case.layouts else "contiguous")


def layouts_of(shape: tuple[int, ...]) -> list[str]:
    names = ["contiguous", *(["gaps"] if shape else []), *(["transposed"] if len(shape) > 1 else [])]
    return [*names, *(["channels_last"] if len(shape) == 4 else [])]


def lay_out(values: Tensor, layout: str) -> Tensor:
    """A copy of the values that lies so."""
    if layout == "channels_last":
        return values.clone(memory_format=torch.channels_last)
    made = torch.empty(values.shape, dtype=values.dtype)
    if layout == "transposed":
        made = torch.empty(values.mT.shape, dtype=values.dtype).mT
    elif layout == "gaps":
        made = torch.empty((*values.shape[:-1], 2 * values.shape[-1]), dtype=values.dtype)[..., ::2]
    return made.copy_(values)


@dataclass
class Setup:
    """Plain data, so that it can be printed and read again; `seed` draws the params' values."""

    case: str
    params: list[ParamSpec]
    options: dict[str, Any] = field(default_factory=dict)
    seed: int = 0

    @property
    def of(self) -> Case:
        return named(self.case)

    @property
    def without(self) -> tuple[str, ...]:
        """Operations and kinds of gradients that are not for this optimizer."""
        case = self.of
        return case.without if isinstance(case, Other) else ()

    @property
    def chance(self) -> bool:
        return self.options.get("rounding") == "stochastic"

    @property
    def partner(self) -> str | None:
        return {"float32": "master", "remainder": "remainder"}.get(
            self.options.get("master_weights", ""), "compensation" if self.options.get("rounding") == "kahan" else None
        )

    def param_storage(self, dtype: str) -> Storage:
        """Of the number that a param stands for, together with what is kept beside it."""
        if dtype not in HALVES or self.partner is None:
            real = {"complex64": "float32"}.get(dtype, dtype)
            return Storage(real, self.chance and dtype in HALVES)
        return Storage(f"compensated-{dtype}" if self.partner == "compensation" else "float32")

    def state_storage(self, key: str, param: Tensor) -> Storage:
        """Of a state: as it is named, in float32 with any remedy for a param in 16 bits, else as the param."""
        dtype = str(param.dtype).removeprefix("torch.")
        wanted = self.options.get("state_dtype")
        wanted = wanted.get(key) if isinstance(wanted, dict) else wanted
        if dtype == "complex64" and wanted != "float16":
            # There are complex numbers of two float16s, and of nothing else in fewer bits.
            return Storage("float32")
        if wanted in ("int8", "int4"):
            if param.numel() < CODED:
                return Storage("float64" if dtype == "float64" else "float32")
            return Storage(("u" if key in NEVER_NEGATIVE else "") + wanted, self.chance)
        if wanted is None:
            remedy = self.partner is not None or (self.chance and dtype == "float16")
            wanted = "float32" if remedy and dtype in HALVES else dtype
            if wanted in HALVES:
                return Storage(wanted, self.chance)
        if wanted == "float16" and key in NEVER_NEGATIVE:
            return Storage("root-float16", True)
        return Storage(wanted, wanted in HALVES)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, read: dict[str, Any]) -> Setup:
        specs = [ParamSpec(s["dtype"], tuple(s["shape"]), s["layout"]) for s in read["params"]]
        return cls(read["case"], specs, read["options"], read["seed"])

    def __str__(self) -> str:
        options = "".join(f", {key}={value!r}" for key, value in {**self.of.kwargs, **self.options}.items())
        params = ", ".join(f"{spec.dtype}{list(spec.shape)} {spec.layout}" for spec in self.params)
        return f"{self.of.optimizer}([{params}]{options})"


@cache
def codable(name: str) -> tuple[str, ...]:
    """The states of a case that may be held in codes."""
    case, found = named(name), []
    for key in case.states:
        try:
            case.ours([Parameter(torch.zeros(1))], state_dtype={key: "int8"})
            found.append(key)
        except ValueError:
            pass
    return tuple(found)


def draw(random: Random) -> Setup:
    """Any setup that the optimizers accept."""
    if random.random() < 0.15:
        return _draw_other(random, random.choice(OTHERS))
    case = random.choice(CASES)
    if case.joint:
        # Its groups agree on their numbers, which the operations of a walk change one by one.
        case = random.choice(APART)
    main = random.choice(DTYPES)
    dtypes = [main if random.random() < 0.85 else random.choice(DTYPES) for _ in range(random.randint(1, 4))]
    setup = Setup(case.name, [ParamSpec.drawn(random, dtype, case) for dtype in dtypes], {}, random.getrandbits(32))
    options = setup.options
    if any(dtype in HALVES for dtype in dtypes) and random.random() < 0.6:
        remedies = [{"master_weights": "float32"}, {"rounding": "kahan"}, {"rounding": "stochastic"}]
        if "float16" not in dtypes:
            remedies.append({"master_weights": "remainder"})
        options.update(random.choice(remedies))
    if "rounding" not in options and random.random() < 0.2:
        options["rounding"] = "stochastic"
    if options.get("rounding") == "stochastic":
        options["rounding_seed"] = random.getrandbits(16)
    if case.states and (case.kwargs.get("centered") or random.random() < 0.6):
        options["state_dtype"] = wanted = _state_dtype(random, case)
        if "int8" in str(wanted) or "int4" in str(wanted):
            setup.params[0] = ParamSpec.drawn(random, dtypes[0], case, LARGE)
    if random.random() < 0.25:
        options["ema_decay"] = random.choice([0.0, 0.5, 0.9, 0.999])
    if random.random() < 0.25:
        options["max_grad_norm"] = random.choice([0.1, 1.0, 100.0])
    flag = random.choice([None, None, "foreach", "fused"])
    if flag and case.takes(flag) and "complex64" not in dtypes:
        options[flag] = random.random() < 0.8
    return setup


def _draw_other(random: Random, case: Other) -> Setup:
    dtype = random.choice(case.dtypes)
    specs = [ParamSpec.drawn(random, dtype, case) for _ in range(random.randint(1, 3))]
    options = {}
    if random.random() < 0.3 and case.takes("max_grad_norm"):
        options["max_grad_norm"] = random.choice([0.1, 1.0, 100.0])
    return Setup(case.name, specs, options, random.getrandbits(32))


def _state_dtype(random: Random, case: Case) -> Any:
    """One storage for all states, or one for each of some."""
    codes = codable(case.name)
    names = ["float32", "bfloat16", "float16"]
    if case.kwargs.get("centered"):  # what is subtracted cannot be rounded
        exact = dict.fromkeys(("square_avg", "grad_avg"), "float32")
        others = [key for key in case.states if key not in exact]
        return {**exact, **{key: random.choice([*names, "int8", "int4"]) for key in others}}
    if random.random() < 0.4:
        return random.choice(names + (["int8", "int4"] if set(codes) == set(case.states) else []))
    chosen = random.sample(case.states, random.randint(1, len(case.states)))
    return {key: random.choice(names + (["int8", "int8", "int4"] if key in codes else [])) for key in chosen}
