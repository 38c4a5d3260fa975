"""What constructors and groups are given: numbers where numbers belong, held to what the installed torch accepts."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, required

from .precision import MasterWeights, Offload, Rounding, StateDtype


class Options(NamedTuple):
    """What a plan can do beside its rule, by the names that constructors have for it."""

    max_grad_norm: float | None = None
    ema_decay: float | None = None
    state_dtype: StateDtype = None
    master_weights: MasterWeights | None = None
    rounding: Rounding = "nearest"
    rounding_seed: int = 0
    offload: Offload | None = None


NO_OPTIONS = Options()


def twin_of(cls: type[Optimizer], base: type[Optimizer]) -> Any:
    """The class of torch's whose constructor `base` calls on behalf of `cls`; where torch has none Optimizer itself."""
    past = cls.__mro__[cls.__mro__.index(base) + 1 :]
    return next(c for c in past if "__init__" in vars(c))


def own_parameters(cls: type[Optimizer]) -> list[inspect.Parameter]:
    """Those of all constructors behind a class: of the package's, whatever that of a user's subclass looks like."""
    constructors: list[Any] = [vars(c)["__init__"] for c in cls.__mro__ if "__init__" in vars(c)]
    return [p for constructor in constructors for p in inspect.signature(constructor).parameters.values()]


@cache
def _parameters(twin: Any) -> Mapping[str, inspect.Parameter]:
    """Those of the constructor of one of torch's classes."""
    return inspect.signature(twin.__init__).parameters


def for_torch(cls: type[Optimizer], base: type[Optimizer], given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the arguments that the installed torch's constructor has, which is to check them.

    Constructors here have the arguments of every torch they work with. `foreach` and `fused` are for all classes.

    Raises:
        TypeError: the installed torch lacks one that is given, or a number is text or None.
    """
    twin = twin_of(cls, base)
    known = _parameters(twin)
    for name, value in given.items():
        if name not in known and value and name not in ("foreach", "fused"):
            raise TypeError(
                f"{name}={value!r} is for a newer torch: {twin.__name__} of the installed {torch.__version__} lacks it"
            )
    taken = {name: value for name, value in given.items() if name in known}
    refuse_text({name: value for name, value in taken.items() if is_number(known[name].default)})
    return taken


def check_with_torch(cls: type[Optimizer], base: type[Optimizer], group: Mapping[str, Any]) -> None:
    """Raise what the installed torch's constructor, which sees no groups, would raise for the numbers of one."""
    twin = twin_of(cls, base)
    known = {name: p.default for name, p in _parameters(twin).items() if name in group and name != "params"}
    numbers = {name: group[name] for name, default in known.items() if is_number(default)}
    refuse_text(numbers)
    for name in [name for name in numbers if isinstance(known[name], tuple)]:
        if not hasattr(numbers[name], "__len__"):
            raise TypeError(f"{name} is {numbers[name]!r}; give {len(known[name])} numbers")
        # An int beside a float is as good in a group, though not to torch's Adam.
        numbers[name] = tuple(None if number is None else float(number) for number in numbers[name])
    nesterov = {"nesterov": group["nesterov"]} if "nesterov" in known else {}
    twin([{"params": []}], **numbers, **nesterov)
    refuse_nan(numbers)


def check_fused(fused: bool | None, foreach: bool | None, differentiable: bool | None) -> None:
    """Refuse, in torch's words, what contradicts itself, for the classes that it has no fused step of as well."""
    if fused and differentiable:
        raise RuntimeError("`fused` does not support `differentiable`")
    if fused and foreach:
        raise RuntimeError("`fused` and `foreach` cannot be `True` together.")


def is_number(default: Any) -> bool:
    """Whether an argument with this default is a number, or several."""
    return not (default is None or isinstance(default, (bool, str)))


def refuse_text(numbers: Mapping[str, Any]) -> None:
    """Raise TypeError for what a configuration has as text or leaves empty where a number belongs."""
    for name, value in numbers.items():
        if value is None or isinstance(value, (str, bytes)):
            raise TypeError(f"{name} is {value!r}; give a number")
        if isinstance(value, Iterable) and not isinstance(value, Tensor):
            for index, entry in enumerate(value):
                if isinstance(entry, (str, bytes)):
                    raise TypeError(f"{name}[{index}] is {entry!r}; give a number")


def refuse_nan(numbers: Mapping[str, Any]) -> None:
    """Raise ValueError for NaN, which not all of torch's constructors notice and no step can use."""
    for name, value in numbers.items():
        if isinstance(value, float) and value != value:
            raise ValueError(f"{name} is nan; give a number")


# torch's own words, for the optimizers that it does not have.
_WORDS = {"lr": "learning rate", "eps": "epsilon value"}
_NON_NEGATIVE = ("lr", "eps", "weight_decay", "momentum", "trust_coeff")


def check_number(name: str, value: Any, words: str, below: float | None = None) -> None:
    """Refuse what torch's constructors refuse of one number, in their words."""
    if value is required:
        return
    refuse_text({name: value})
    if isinstance(value, Tensor) and value.numel() != 1:
        raise ValueError(f"Tensor {name} must be 1-element")
    if not value >= 0.0 or (below is not None and value >= below):
        raise ValueError(f"Invalid {words}: {value}")


def check_common(group: Mapping[str, Any], count_of_betas: int | None = None) -> None:
    """Refuse what is out of range among the hyper-parameters whose names mean the same in all optimizers."""
    for name in _NON_NEGATIVE:
        if name in group:
            check_number(name, group[name], _WORDS.get(name, f"{name} value"))
    betas = group.get("betas", ())
    if betas is required:
        return
    refuse_text({"betas": betas})
    if not hasattr(betas, "__len__"):
        raise TypeError(f"betas is {betas!r}; give {count_of_betas or 'several'} numbers")
    if count_of_betas is not None and len(betas) != count_of_betas:
        raise ValueError(f"betas must be a tuple of {count_of_betas} numbers: {betas}")
    for index, beta in enumerate(betas):
        check_number(f"betas[{index}]", beta, f"beta parameter at index {index}", below=1.0)


def check_nesterov(group: Mapping[str, Any]) -> None:
    """Refuse, in torch's words, Nesterov momentum without what it is made of."""
    if group.get("nesterov") and (group["momentum"] <= 0 or group["dampening"] != 0):
        raise ValueError("Nesterov momentum requires a momentum and zero dampening")
