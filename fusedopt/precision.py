"""What an optimizer keeps beside its rule's states, and in which storage: the options, their checks and conversions."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

StateDtype = str | torch.dtype | Mapping[str, str | torch.dtype] | None

_FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_CODES = {"int8": 8, "uint8": 8, "int4": 4, "uint4": 4}  # and their bits
_BYTES = (torch.int8, torch.uint8)
HALVES = (torch.bfloat16, torch.float16)

# Averages of gradients, which come back to what they forget: codes are enough for them. The second lot are never
# negative, so that the code needs no sign.
_SIGNED = {"exp_avg", "momentum_buffer", "grad_avg", "exp_avg_diff", "neg_pre_grad"}
_UNSIGNED = {"exp_avg_sq", "max_exp_avg_sq", "square_avg", "acc_delta", "exp_inf"}

# As csrc/step.h and csrc/bindings/options.h have them.
CODE_BLOCK = 256
LEAST_CODED = 4096

# master_weights and rounding by the key of the tensor that they keep.
_PARTNERS = {"float32": "master", "remainder": "remainder"}
PARTNERS = ("master", "remainder", "compensation")


@dataclass(frozen=True)
class Precision:
    """The options of an optimizer, checked against its rule's states by `of`."""

    states: Mapping[str, str] = field(default_factory=dict)  # storages by the names of states
    partner: str | None = None
    seed: int | None = None  # rounding by chance; None: to the nearest
    average: bool = False

    @classmethod
    def of(
        cls,
        names: Iterable[str],
        state_dtype: StateDtype,
        master_weights: str | None,
        rounding: str,
        rounding_seed: int,
        ema_decay: float | None,
    ) -> Precision:
        if master_weights not in (None, *_PARTNERS):
            raise ValueError(f"Invalid master_weights: {master_weights!r}; use None, 'float32' or 'remainder'")
        if rounding not in ("nearest", "stochastic", "kahan"):
            raise ValueError(f"Invalid rounding: {rounding!r}; use 'nearest', 'stochastic' or 'kahan'")
        if master_weights is not None and rounding == "kahan":
            raise ValueError(
                f"rounding='kahan' keeps what rounding takes from a param, and master_weights={master_weights!r} keeps "
                "the param itself exactly; use one of them"
            )
        check_ema_decay(ema_decay)
        if isinstance(rounding_seed, bool) or not isinstance(rounding_seed, int) or not 0 <= rounding_seed < 2**64:
            raise ValueError(f"Invalid rounding_seed: {rounding_seed!r}; use an integer from 0 to 2**64 - 1")
        partner = "compensation" if rounding == "kahan" else _PARTNERS.get(master_weights or "")
        seed = rounding_seed if rounding == "stochastic" else None
        return cls(_storages(list(names), state_dtype), partner, seed, ema_decay is not None)

    def check_params(self, params: Iterable[Tensor]) -> None:
        """Raise ValueError for options that none of these params can have a use for, or that one cannot have."""
        if self.partner is None:
            return
        option = "rounding='kahan'" if self.partner == "compensation" else f"master_weights={_OPTION[self.partner]!r}"
        dtypes = [p.dtype for p in params]
        if self.partner == "remainder" and torch.float16 in dtypes:
            raise ValueError(
                "master_weights='remainder' keeps the low half of a float32 whose upper half is a bfloat16, and one of "
                "the params is torch.float16; use master_weights='float32'"
            )
        if dtypes and not any(dtype in HALVES for dtype in dtypes):
            raise ValueError(
                f"{option} is for params in 16 bits, and these are {dtypes[0]}; leave it out or convert the model"
            )

    def for_plan(self, copies: bool = False) -> dict[str, Any]:
        """As csrc/bindings/options.h reads them."""
        given: dict[str, Any] = {}
        if self.states:
            given["states"] = dict(self.states)
        if self.partner or copies:
            given["partner"] = self.partner or "copy"
        if self.seed is not None:
            given["seed"] = self.seed
        if self.average:
            given["average"] = True
        return given

    # Conversions of a param's state dict, for what was saved under other options or made by torch.

    def pack(self, state: dict[str, Any], param: Tensor) -> Iterator[str]:
        """Bring states to their storages, in place; say which of them that rounds."""
        for name, storage in self.states.items():
            value = state.get(name)
            if not isinstance(value, Tensor) or value.dtype in _BYTES:
                continue
            if storage in _CODES:
                if param.numel() < LEAST_CODED or value.is_complex():
                    state[name] = value.float() if value.dtype in HALVES else value
                    continue
                model = self._ordered_as(state, param)
                state[name], state[name + "_scale"] = encode(value, storage, model)
                kept = decode(state[name], state[name + "_scale"], model)
            elif value.is_complex():
                continue
            else:
                state[name] = kept = value.to(_FLOATS[storage])
            if not torch.allclose(kept.to(value.dtype), value, rtol=0, atol=0, equal_nan=True):
                yield f"'{name}' is rounded to {storage}"

    def unpack(self, state: Mapping[str, Any], param: Tensor) -> dict[str, Any]:
        """A param's state as torch.optim can load it: codes decoded, and without what only this process can use."""
        made = {}
        for name, value in state.items():
            if name == "copy" or (name.endswith("_scale") and name.removesuffix("_scale") in state):
                continue
            coded = isinstance(value, Tensor) and value.dtype in _BYTES and name + "_scale" in state
            made[name] = decode(value, state[name + "_scale"], self._ordered_as(state, param)) if coded else value
        return made

    def _ordered_as(self, state: Mapping[str, Any], param: Tensor) -> Tensor:
        """The tensor in the order of whose memory a param's codes are."""
        return state.get("master", param) if self.partner == "master" and param.dtype in HALVES else param

    def match_partner(self, state: dict[str, Any], param: Tensor) -> str | None:
        """Make this option's partner of a param out of another's, in place; say what that loses, if anything."""
        found = next((name for name in PARTNERS if name in state), None)
        if found is None or found == self.partner:
            return None
        exact = exact_param(param, found, state.pop(found))
        if self.partner is None or param.dtype not in HALVES:
            return f"the bits that '{found}' has beyond the param are dropped"
        state[self.partner] = _partner_of(exact, param, self.partner)
        same = exact_param(param, self.partner, state[self.partner]).equal(exact)
        return None if same else f"'{self.partner}' holds '{found}' with fewer bits"


_OPTION = {partner: option for option, partner in _PARTNERS.items()}


def check_ema_decay(ema_decay: float | None) -> None:
    if ema_decay is not None and not 0.0 <= ema_decay <= 1.0:
        raise ValueError(f"Invalid ema_decay: {ema_decay}; use a number from 0 to 1, or None to keep no average")


def _storages(names: list[str], state_dtype: StateDtype) -> dict[str, str]:
    if state_dtype is None:
        return {}
    if isinstance(state_dtype, Mapping):
        unknown = [name for name in state_dtype if name not in names]
        if unknown:
            raise ValueError(f"Invalid state_dtype: there is no state {unknown[0]!r}; the states are {names}")
        wanted = dict(state_dtype)
    else:
        wanted = dict.fromkeys(names, state_dtype)
    return {name: _storage(name, dtype) for name, dtype in wanted.items()}


def _storage(name: str, dtype: str | torch.dtype) -> str:
    text = str(dtype).removeprefix("torch.")
    if text not in {**_FLOATS, **_CODES}:
        raise ValueError(f"Invalid state_dtype: {dtype!r}; use one of {', '.join([*_FLOATS, *_CODES])}")
    if text in _FLOATS:
        return text
    if name not in _SIGNED | _UNSIGNED:
        raise ValueError(
            f"Invalid state_dtype: {name!r} is no average that forgets, and in {text} it would stand still; give the "
            "states that are by name, as in state_dtype={'exp_avg': 'int8'}"
        )
    return f"{'u' if name in _UNSIGNED else ''}int{_CODES[text]}"


def exact_param(param: Tensor, partner: str, tensor: Tensor) -> Tensor:
    """The float32 that a 16-bit param and its partner stand for."""
    if partner == "master":
        return tensor
    value = param.detach().float()
    if partner == "compensation":
        return value + tensor.float()
    return (value.view(torch.int32) + tensor.to(torch.int32)).view(torch.float32)


def _partner_of(exact: Tensor, param: Tensor, partner: str) -> Tensor:
    if partner == "master":
        return exact
    value = param.detach().float()
    if partner == "compensation":
        return (exact - value).to(param.dtype)
    # Half a unit above an even param is one more than the lower half holds.
    return (exact.view(torch.int32) - value.view(torch.int32)).clamp(-(2**15), 2**15 - 1).to(torch.int16)


# The codes of csrc/precision.h, in torch's operations, for checkpoints.

_ONE = 0x3F800000


def _order(tensor: Tensor) -> list[int]:
    """The dimensions of a tensor, that of neighbours in memory last."""
    return sorted(range(tensor.ndim), key=tensor.stride, reverse=True)


def _shift(bits: int) -> int:
    return 20 if bits == 8 else 22


def _units_and_one(codes: Tensor, bits: int) -> Tensor:
    return (_ONE + (codes << _shift(bits))).view(torch.float32)


def encode(value: Tensor, code: str, model: Tensor) -> tuple[Tensor, Tensor]:
    """The codes of a tensor, rounded to nearest, and their scales, for each 256 elements in the order of the model."""
    bits, signed = _CODES[code], not code.startswith("u")
    flat = value.detach().float().permute(_order(model)).reshape(-1)
    blocks = torch.nn.functional.pad(flat, (0, -flat.numel() % CODE_BLOCK)).view(-1, CODE_BLOCK)
    magnitudes = blocks.abs()
    largest = magnitudes.amax(1, keepdim=True)
    finite = largest.isfinite()
    top = _units_and_one(torch.tensor(2 ** (bits - signed) - 1, dtype=torch.int32, device=value.device), bits)
    units = top - 1
    scales = torch.where(finite, (largest / units * units / units).clamp(min=2.0**-126), torch.nan)
    y = magnitudes * (1 / scales * (1 + 2.0**-20)) + 1
    most = torch.where(finite, top, 1)
    codes = torch.where(y < most, y, most).view(torch.int32) - _ONE + (1 << (_shift(bits) - 1))
    if not signed:
        codes = torch.maximum(codes, magnitudes.view(torch.int32).clamp(max=1 << _shift(bits)))
    codes >>= _shift(bits)
    if signed:
        codes += (blocks.signbit() & finite).int() << (bits - 1)
    # Place k of word w has element w + k * (words of a block); bytes are in the order of little endians.
    places = codes.view(len(codes), 32 // bits, -1).mT
    if bits == 4:
        places = places[..., ::2] + (places[..., 1::2] << 4)
    packed = places.reshape(len(codes), -1).to(torch.uint8)
    return packed.view(torch.int8) if signed else packed, scales[:, 0]


def decode(codes: Tensor, scales: Tensor, model: Tensor) -> Tensor:
    """What codes and scales stand for, in float32, with the shape and strides of the model."""
    bits, signed = 8 * codes.shape[1] // CODE_BLOCK, codes.dtype == torch.int8
    places = codes.view(torch.uint8).int().view(len(codes), -1, 4)
    if bits == 4:
        places = torch.stack([places & 15, places >> 4], -1).flatten(2)
    blocks = places.mT.reshape(len(codes), CODE_BLOCK)
    negative = blocks >> (bits - 1) if signed else torch.zeros_like(blocks)
    magnitudes = _units_and_one(blocks - (negative << (bits - 1)), bits) - 1
    numbers = torch.where(negative != 0, -magnitudes, magnitudes) * scales[:, None]
    made = torch.empty_like(model, dtype=torch.float32)
    order = _order(made)
    made.permute(order).copy_(numbers.view(-1)[: made.numel()].view([made.shape[d] for d in order]))
    return made


def warn_of_losses(losses: Iterable[str | None]) -> None:
    for loss in dict.fromkeys(losses):
        if loss:
            warnings.warn(
                f"the state was saved under other options: {loss}; give the options it was saved with to keep all",
                UserWarning,
                stacklevel=4,
            )


# What every constructor of a plan-stepped optimizer takes beside torch's arguments.
ARGUMENTS = """
max_grad_norm: multiply gradients, inside the update, so that the norm of all of them together is at most this;
    None leaves them alone. `grad_norm` tells the norm.
ema_decay: keep an exponential moving average of the params with this factor, in `ema_parameters()`.
state_dtype: what states are stored in: "float32", "bfloat16", "float16", "int8" or "int4" (blocks of 256 codes
    and a float32 scale; tensors of fewer than 4,096 elements stay in float32), or a dict by the names of states.
master_weights: for params in 16 bits: "float32" keeps a float32 copy to update, "remainder" only the low half
    of it, beside bfloat16 params that are its upper half.
rounding: of params and states in fewer bits than the arithmetic: "nearest"; "stochastic", up or down by
    chance so that the mean is exact; "kahan", to nearest with what that takes from a param kept beside it.
rounding_seed: where the draws of "stochastic" start.
"""


def describe_arguments(doc: str, count: int) -> str:
    """A class's docstring with the first of these arguments at the end of its own."""
    indent = "        "
    chosen = "".join(re.split(r"^(?=\w)", ARGUMENTS, flags=re.MULTILINE)[1 : count + 1])
    text = "".join(f"{indent}{line}\n" for line in chosen.splitlines())
    head, mark, tail = doc.partition("\n\n    Raises:")
    return f"{head}\n{text.rstrip()}{mark}{tail}" if mark else doc


def with_options(signature: inspect.Signature, options: Iterable[inspect.Parameter]) -> inspect.Signature:
    """A signature with the options at its end, in the place of `**options` if it has that."""
    kept = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    return signature.replace(parameters=[*kept, *options])
