"""What an optimizer keeps beside its rule's states, and in which storage: the options, their checks and conversions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from .. import _C
from .callers import warn

StateDtype = str | torch.dtype | Mapping[str, str | torch.dtype] | None
MasterWeights = Literal["float32", "remainder"]
Rounding = Literal["nearest", "stochastic", "kahan"]
Offload = Literal["cpu"]

# Bytes of pinned memory that gradients and params travel in, twice: long enough for a copy to reach the bus's speed.
OFFLOAD_BYTES = 32 << 20

# Storages as csrc/host/options.h names them. In float16 squares of ordinary gradients would be 0, and their roots
# are not; a code of what is never negative needs no sign.
_FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_ROOT = "float16_root"
_TENSORS = {**_FLOATS, _ROOT: torch.float16}
_CODES = ("int8", "uint8", "int4", "uint4")
_BYTES = (torch.int8, torch.uint8)
HALVES = (torch.bfloat16, torch.float16)

# Kinds of numbers that states are: csrc/rules/rule.h.
_FORGETS = ("average", "magnitude")
_NEVER_NEGATIVE = ("magnitude", "total")

# The key of the order in which a param's states in codes lie.
_ORDER = "code_order"

# master_weights and rounding by the key of the tensor that they keep.
_PARTNERS = {"float32": "master", "remainder": "remainder"}
PARTNERS = ("master", "remainder", "compensation")
# What options keep in a param's state, beside the scales of states in codes.
KEPT_BESIDE = (*PARTNERS, "ema", _ORDER)


@dataclass(frozen=True)
class Precision:
    """The options of an optimizer, checked against its rule's states by `of`."""

    names: tuple[str, ...] = ()  # of all states
    states: Mapping[str, str] = field(default_factory=dict)  # storages of those that the user has named
    partner: str | None = None
    stochastic: bool = False
    seed: int = 0  # of what is rounded by chance
    average: bool = False
    offload: bool = False  # states of params on a device are on the host
    factors: bool = field(default=False, compare=False)  # some states are those of csrc/rules/rule.h's kind factor

    @classmethod
    def of(
        cls,
        kinds: Mapping[str, str],
        state_dtype: StateDtype,
        master_weights: str | None,
        rounding: str,
        rounding_seed: int,
        ema_decay: float | None,
        offload: str | None = None,
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
        if offload not in (None, "cpu"):
            raise ValueError(f"Invalid offload: {offload!r}; use None or 'cpu'")
        if isinstance(rounding_seed, bool) or not isinstance(rounding_seed, int) or not 0 <= rounding_seed < 2**64:
            raise ValueError(f"Invalid rounding_seed: {rounding_seed!r}; use an integer from 0 to 2**64 - 1")
        partner = "compensation" if rounding == "kahan" else _PARTNERS.get(master_weights or "")
        storages, stochastic = _storages(kinds, state_dtype), rounding == "stochastic"
        made = cls((), storages, partner, stochastic, 0, ema_decay is not None, offload is not None)
        # So that options which change nothing are none.
        seed, factors = rounding_seed if made.draws else 0, "factor" in kinds.values()
        return made if made == cls() else replace(made, names=tuple(kinds), seed=seed, factors=factors)

    @property
    def draws(self) -> bool:
        """Whether something is rounded by chance.

        To the nearest 16 bits a slow average stands still: one step of beta2 = 0.999 is less than half of a bfloat16's
        last bit. So a state that the user wants in 16 bits is rounded by chance, whatever params are.
        """
        return self.stochastic or any(_TENSORS.get(storage) in HALVES for storage in self.states.values())

    @property
    def new_states(self) -> dict[str, str]:
        """What states of params in 16 bits are stored in that the user has not named.

        Who asks for a remedy wants no average that stands still, nor squares that are 0 in float16. Stochastic rounding
        is one for bfloat16 itself, but of factors, which are few, and which nothing rounds by chance.
        """
        every = self.partner or (self.stochastic and self.factors)
        remedied = ["bfloat16", "float16"] if every else ["float16"] if self.stochastic else []
        return dict.fromkeys(remedied, "float32")

    def rounds(self, name: str, param: Tensor) -> bool:
        """Whether a state of a param is in fewer bits than float32 for the sake of an option."""
        if name in self.states:
            return self.states[name] != "float32"
        return self.stochastic and param.dtype in HALVES and _name(param.dtype) not in self.new_states

    @property
    def converts(self) -> bool:
        """Whether states can be in other storages than torch would have them in."""
        return bool(self.states or self.new_states)

    @property
    def master_weights(self) -> str | None:
        return _OPTION.get(self.partner or "")

    @property
    def rounding(self) -> str:
        return "kahan" if self.partner == "compensation" else "stochastic" if self.stochastic else "nearest"

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

    def for_plan(self, copies: Mapping[Tensor, Tensor] | None = None) -> dict[str, Any]:
        """As csrc/host/options.h reads them."""
        given: dict[str, Any] = {
            "states": dict(self.states),
            "new_states": self.new_states,
            "partner": self.partner,
            "copies": copies,
            "stochastic": self.stochastic,
            "seed": self.seed,
            "average": self.average,
            "offload": OFFLOAD_BYTES if self.offload else None,
        }
        return {key: value for key, value in given.items() if value}

    def home_of(self, param: Tensor) -> torch.device:
        """The device of a param's states."""
        return torch.device("cpu") if self.offload else param.device

    # Conversions of a param's state dict, for what was saved under other options or made by torch.

    def pack(self, state: dict[str, Any], param: Tensor, sharded: bool = False) -> Iterator[str]:
        """Bring states that are numbers, none of them roots, to their storages in place; say which that rounds."""
        unnamed = self.new_states.get(_name(param.dtype))
        for name in self.names:
            storage, value = self.states.get(name, unnamed), state.get(name)
            if storage is None or not isinstance(value, Tensor) or value.dtype in _BYTES:
                continue
            # There is no complex bfloat16, and complex states have no codes.
            if value.is_complex() and _TENSORS.get(storage) != torch.float16:
                continue
            if storage in _CODES and param.numel() < _C.LEAST_CODED:
                state[name] = kept = value.float() if value.dtype in HALVES else value
            elif storage in _CODES:
                model = self._ordered_as(state, param)
                state[name], state[name + "_scale"] = _C.encode(value, storage, model)
                state[_ORDER] = _C.memory_order(model)
                kept = _C.decode(state[name], state[name + "_scale"], model)
            elif storage == _ROOT:
                state[name] = to_root(value)
                kept = from_root(state[name])
            else:
                state[name] = kept = value.to(torch.complex32 if value.is_complex() else _TENSORS[storage])
            if not torch.allclose(kept.to(value.dtype), value, rtol=0, atol=0, equal_nan=True):
                loss = f"'{name}' is rounded to {storage.removesuffix('_root')}"
                yield Recoded(loss) if sharded and storage in _CODES else loss

    def unpack(self, state: Mapping[str, Any], param: Tensor) -> dict[str, Any]:
        """A param's state as torch.optim can load it: the numbers that codes and roots stand for."""
        coded = _coded(state)
        left_out = {_ORDER, *(name + "_scale" for name in coded)} if coded else ()
        made = {name: value for name, value in state.items() if name not in left_out}
        for name in coded:
            model = self._ordered_as(state, param)
            made[name] = _C.decode(state[name], state[name + "_scale"], model, state[_ORDER])
        for name in [name for name, storage in self.states.items() if storage == _ROOT and name in made]:
            if made[name].dtype in (torch.float16, torch.complex32):
                made[name] = from_root(made[name])
        return made

    def _ordered_as(self, state: Mapping[str, Any], param: Tensor) -> Tensor:
        """The tensor in the order of whose memory a param's codes are."""
        return state.get("master", param) if self.partner == "master" and param.dtype in HALVES else param

    def match_partner(self, state: dict[str, Any], param: Tensor) -> str | None:
        """Make this option's partner of a param out of another's, in place; say what that loses, if anything."""
        found = next((name for name in PARTNERS if name in state), None)
        if found is None or (found == self.partner and param.dtype in HALVES):
            return None
        kept = state.pop(found)
        if param.dtype not in HALVES:
            return OfHalves(f"the bits that '{found}' has beyond them are dropped")
        if self.partner is None:
            return f"the bits that '{found}' has beyond the param are dropped"
        exact = exact_param(param, found, kept)
        state[self.partner] = partner_of(exact, param, self.partner)
        same = exact_param(param, self.partner, state[self.partner]).equal(exact)
        return None if same else f"'{self.partner}' holds '{found}' with fewer bits"


def at_home(value: Tensor, param: Tensor) -> Tensor:
    """A state on the host, in the order of its param's memory."""
    here = value.detach().cpu()
    if here.dtype in _BYTES or here.shape != param.shape or here.stride() == param.stride() or param.is_sparse:
        return here
    return torch.empty_like(param, dtype=here.dtype, device="cpu", requires_grad=False).copy_(here)


_OPTION = {partner: option for option, partner in _PARTNERS.items()}


def check_ema_decay(ema_decay: float | None) -> None:
    text = f"Invalid ema_decay: {ema_decay!r}; use a number from 0 to 1, or None to keep no average"
    if isinstance(ema_decay, (str, list, tuple)):
        raise TypeError(text)
    if ema_decay is not None and not 0.0 <= ema_decay <= 1.0:
        raise ValueError(text)


def _name(dtype: str | torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _storages(kinds: Mapping[str, str], state_dtype: StateDtype) -> dict[str, str]:
    if state_dtype is None:
        return {}
    if isinstance(state_dtype, Mapping):
        unknown = [name for name in state_dtype if name not in kinds]
        if unknown:
            raise ValueError(f"Invalid state_dtype: there is no state {unknown[0]!r}; the states are {list(kinds)}")
        wanted = dict(state_dtype)
    else:
        wanted = dict.fromkeys(kinds, state_dtype)
    return {name: _storage(name, dtype, kinds) for name, dtype in wanted.items()}


def _storage(name: str, dtype: str | torch.dtype, kinds: Mapping[str, str]) -> str:
    text = _name(dtype)
    if text not in (*_FLOATS, *_CODES):
        raise ValueError(f"Invalid state_dtype: {dtype!r}; use one of {', '.join([*_FLOATS, *_CODES])}")
    never_negative = kinds[name] in _NEVER_NEGATIVE
    if text in _FLOATS:
        return _ROOT if text == "float16" and never_negative else text
    if kinds[name] not in _FORGETS:
        others = {other: text for other, kind in kinds.items() if kind in _FORGETS}
        remedy = f"give those that are by name, as in state_dtype={others}" if others else "use 'bfloat16' or 'float32'"
        raise ValueError(
            f"Invalid state_dtype: {name!r} is no average that forgets, and in {text} it would stand still; {remedy}"
        )
    return f"{'u' if never_negative else ''}{text.removeprefix('u')}"


def exact_param(param: Tensor, partner: str, tensor: Tensor) -> Tensor:
    """The float32 that a 16-bit param and its partner stand for; of a param edited since, the param where it was."""
    _check_partner(partner)
    param = param.detach().to(tensor.device)
    value = param.float()
    if partner == "master":
        return torch.where(tensor.to(param.dtype) == param, tensor, value)
    if partner == "compensation":
        nearest = (value + tensor.float() * (1 - 2**-11)).to(param.dtype)
        return torch.where(nearest == param, value + tensor.float(), value)
    beyond = ((value == 0) & (tensor < 0)) | (value.isinf() & (tensor > 0))
    return (value.view(torch.int32) + tensor.to(torch.int32).masked_fill(beyond, 0)).view(torch.float32)


def _check_partner(partner: str) -> None:
    if partner not in PARTNERS:
        raise ValueError(f"a param has no partner {partner!r}; its partners are {', '.join(PARTNERS)}")


def partner_of(exact: Tensor, param: Tensor, partner: str) -> Tensor:
    _check_partner(partner)
    param = param.detach().to(exact.device)
    value = param.float()
    if partner == "master":
        # The others round half a unit in another way; a master whose copy is not the param would be taken for edited.
        return torch.where(exact.to(param.dtype) == param, exact, torch.nextafter(exact, value))
    if partner == "compensation":
        return (exact - value).to(param.dtype)
    # Half a unit above an even param is one more than the lower half holds.
    return (exact.view(torch.int32) - value.view(torch.int32)).clamp(-(2**15), 2**15 - 1).to(torch.int16)


def _coded(state: Mapping[str, Any]) -> list[str]:
    return [name for name, value in state.items() if name + "_scale" in state and value.dtype in _BYTES]


def to_root(value: Tensor) -> Tensor:
    """The square root in float16, rounded to nearest, but to 0 only for 0."""
    if value.is_complex():
        return torch.view_as_complex(to_root(torch.view_as_real(value)))
    root = value.float().sqrt().half()
    return torch.where((root == 0) & (value > 0), root.new_tensor(2.0**-24), root)


def from_root(root: Tensor) -> Tensor:
    if root.is_complex():
        return torch.view_as_complex(from_root(torch.view_as_real(root)))
    return root.float().square()


class Recoded(str):
    """A loss that other blocks of codes suffice for: those of another number of processes."""

    __slots__ = ()


class OfHalves(str):
    """A loss of params that are wider than those that were saved."""

    __slots__ = ()


def warn_of_losses(losses: Iterable[str | None]) -> None:
    for loss in dict.fromkeys(losses):
        if isinstance(loss, OfHalves):
            warn(
                f"the state was saved beside params in 16 bits: {loss}; load it beside such params, with the options "
                "it was saved with, to keep all"
            )
        elif isinstance(loss, Recoded):
            warn(
                f"the state was saved by another number of processes, or not in codes: {loss} once more, in blocks of "
                "what this process has of it now; as many processes as saved it would have its codes"
            )
        elif loss:
            warn(f"the state was saved under other options: {loss}; give the options it was saved with to keep all")
