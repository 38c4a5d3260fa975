"""What an optimizer keeps beside the groups and states of torch's: averages, copies, exact params; its checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import torch
from torch.optim.optimizer import Optimizer

from .. import _C
from .arguments import NO_OPTIONS, Options
from .averaging import AveragedStep
from .group_options import OF_GROUPS, keep_options, of_class, precision_of, refuse_options
from .max_grad_norm import ClippedStep, check_max_grad_norm
from .origin import refuse_foreign
from .precision import HALVES, PARTNERS, Precision, check_ema_decay, warn_of_losses
from .scaling import ScaledStep
from .shards import close_state, open_state


def _fixed(name: str, read: Callable[[Precision], Any], doc: str) -> property:
    """An option that an optimizer is constructed with, which decides what it stores."""

    def refuse(optimizer: KeptState, value: Any) -> None:
        raise AttributeError(
            f"{name} is fixed by the constructor, since states are stored by it; construct the optimizer anew with "
            f"{name}={value!r} and load this one's state_dict() into it"
        )

    return property(lambda optimizer: read(optimizer._precision), refuse, doc=doc)


class KeptState(AveragedStep, ClippedStep, ScaledStep):
    """The part of a fused optimizer that its options of precision.py are about."""

    # Made by the first step. Not part of __getstate__, so a copied optimizer makes its own.
    _plan: _C.Plan | None = None
    # The state dict being loaded, while it is.
    _loading: Mapping[str, Any] | None = None

    # What the constructor was given, and what follows from it for groups that have no options of their own.
    _given = NO_OPTIONS
    _precision = Precision()
    # Where params are copied to in fewer bits.
    _copies: Mapping[torch.Tensor, torch.Tensor] | None = None
    # How many steps a loaded or copied optimizer has rounded by chance.
    _draws = 0

    def __getstate__(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in _OWN_STATE if getattr(self, name) != getattr(KeptState, name)}
        if self._draws_at_all():
            own["_draws"] = self._draws_so_far()
        return {**super().__getstate__(), **own}

    state_dtype = _fixed(
        "state_dtype",
        lambda precision: dict(precision.states) or None,
        "What states are stored in, by their names; None: as torch stores them. Given to the constructor.",
    )
    master_weights = _fixed(
        "master_weights",
        lambda precision: precision.master_weights,
        'What completes params in 16 bits: "float32", "remainder" or None. Given to the constructor.',
    )
    rounding = _fixed(
        "rounding",
        lambda precision: precision.rounding,
        'How params and states are rounded: "nearest", "stochastic" or "kahan". Given to the constructor.',
    )
    rounding_seed = _fixed(
        "rounding_seed",
        lambda precision: precision.seed,
        'Where the draws of "stochastic" start; 0 with any other rounding. Given to the constructor.',
    )

    def copy_params_to(self, copies: Mapping[torch.Tensor, torch.Tensor]) -> None:
        """Have every step write params out in fewer bits as well, in the same pass over memory.

        What an optimizer over float32 params on the host needs to feed a model that computes in 16 bits.

        Args:
            copies: for each float32 param the bfloat16 or float16 tensor of its shape, on its device, that gets its
                rounded value. It is written by every step that the param takes from now on, also after
                `load_state_dict`. `deepcopy` and `pickle` take copies along; checkpoints do not.

        Raises:
            RuntimeError: a CUDA graph has captured a step, and its replays would write no copies.
            ValueError: a tensor does not fit its param, or this optimizer keeps master weights or compensations, which
                are for params in 16 bits.

        Example:
            >>> param, copy = torch.nn.Parameter(torch.zeros(2)), torch.zeros(2, dtype=torch.bfloat16)
            >>> optimizer = fusedopt.SGD([param], lr=1.0)
            >>> optimizer.copy_params_to({param: copy})
            >>> param.grad = torch.ones(2)
            >>> optimizer.step()
            >>> copy.tolist()
            [-1.0, -1.0]
        """
        if any(self._precision_of(group).partner is not None for group in self.param_groups):
            raise ValueError(
                "copies are for float32 params, and this optimizer was constructed with master_weights or "
                "rounding='kahan', which are for params in 16 bits"
            )
        if self._plan is not None and self._plan.captured:
            raise RuntimeError(
                "a CUDA graph has captured a step of this optimizer, and its replays would write no copies; call "
                "copy_params_to() before the capture, or drop the graph first"
            )
        owned = {id(p) for group in self.param_groups for p in group["params"]}
        for index, (param, copy) in enumerate(copies.items()):
            fits = copy.shape == param.shape and copy.device == param.device and copy.dtype in HALVES
            if id(param) not in owned or param.dtype != torch.float32 or not fits:
                raise ValueError(
                    f"copy {index} is {copy.dtype} of shape {list(copy.shape)} on {copy.device}; give for a float32 "
                    "param of this optimizer a bfloat16 or float16 tensor of its shape on its device"
                )
        with torch.no_grad():
            for param, copy in copies.items():
                copy.copy_(param)
        self._draws = self._draws_so_far()
        self._copies = {**(self._copies or {}), **copies}
        self._plan = None

    def _check_storages(self, group: Mapping[str, Any]) -> None:
        """Raise ValueError for options that params of this group cannot have, or its rule with these numbers."""
        precision = self._precision_of(group)
        # In a model of several dtypes a group may well be all float32.
        if any(p.dtype in HALVES for p in group["params"]) or precision != self._precision:
            precision.check_params(group["params"])

    def _precision_of(self, group: Mapping[str, Any]) -> Precision:
        if not any(name in group for name in OF_GROUPS):
            return self._precision
        return precision_of(_C.states(cast(Any, self)._rule), self._given, group)

    def _precisions(self) -> dict[int, Precision]:
        """That of every param, by its id."""
        found = [(group["params"], self._precision_of(group)) for group in self.param_groups]
        return {id(p): precision for params, precision in found for p in params}

    def _keeps_more_than_torch(self, groups: Iterable[Mapping[str, Any]] | None = None) -> bool:
        """Whether a step of torch's would leave out what these groups, or any, were asked for."""
        own = self.param_groups if groups is None else groups
        return bool(self._copies) or any(self._precision_of(group) != Precision() for group in own)

    def _averages(self) -> bool:
        return any(self._precision_of(group).average for group in self.param_groups)

    def _draws_at_all(self) -> bool:
        return any(self._precision_of(group).draws for group in self.param_groups)

    def _draws_so_far(self) -> int:
        # The plan counts them where it draws. One that never does need not be able to.
        return self._draws if self._plan is None or not self._draws_at_all() else self._plan.draws

    def _count_draws(self, draws: int) -> None:
        """Take note of steps that another plan has made."""
        if not self._draws_at_all():
            return
        self._draws = max(self._draws_so_far(), draws)
        if self._plan is not None:
            self._plan.draws = self._draws

    def _pack_states(self, groups: Iterable[dict[str, Any]]) -> list[str]:
        """Bring states that torch has made to their storages; say what that rounds."""
        losses: list[str] = []
        for group in groups:
            precision = self._precision_of(group)
            for p in group["params"] if precision.converts else ():
                if self.state.get(p):
                    here, local = open_state(self.state[p], p)
                    losses += precision.pack(here, local)
                    self.state[p].update(close_state(here, self.state[p], p))
        return losses

    def __repr__(self) -> str:
        """torch's, and the options that are not as they are by default."""
        plain = KeptState.__new__(KeptState)
        told = [(name, getattr(self, name)) for name in Options._fields]
        lines = [f"    {name}: {value}\n" for name, value in told if value != getattr(plain, name)]
        text = super().__repr__()
        return f"{text.removesuffix(')')}Options\n{''.join(lines)})" if lines else text

    def state_dict(self) -> dict[str, Any]:
        """The checkpoint, which torch.optim's class of this name loads as well.

        States in codes are in it as float32, from which loading makes the same codes again. What other options keep is
        under further keys, which torch leaves alone: `master`, `remainder`, `compensation` and `ema` in a param's
        state; `max_grad_norm`, `ema_decay` and `rounding_draws` at the top.
        """
        if not (self._numbers() or any(self._precision_of(group).states for group in self.param_groups)):
            return super().state_dict()
        # Before any post-hook sees the dict.
        handle = self.register_state_dict_post_hook(_unpack, prepend=True)
        try:
            return super().state_dict()
        finally:
            handle.remove()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a checkpoint of this class or of torch.optim's.

        As torch's, but state of a 16-bit param stays in the type that it was saved in: rounding float32 away would cost
        what it was kept for, and the other 16-bit type has another range.
        What was saved under other options is converted; a warning says what that loses, if anything. Load the model
        first: some options complete its params. As a learning rate is the file's afterwards, so are `max_grad_norm`
        and, of an optimizer that averages, `ema_decay`, if the file has them.

        Args:
            state_dict: what `state_dict()` of either returned.

        Raises:
            RuntimeError: called inside `ema_parameters()`.
            ValueError: the file has another number of groups or params, is of another optimizer by its keys, has a
                setting that makes another rule or an option in a group, states of a tensor class of their own, or a
                number that is out of range. Nothing has been changed then.
        """
        self._refuse_while_averaged("load_state_dict() was called")
        # The last pre-hook sees the dict as all others left it.
        handle = self.register_load_state_dict_pre_hook(_remember)
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
            self._loading = None

    def _numbers(self) -> dict[str, Any]:
        """What a checkpoint has at the top beside groups and state: numbers that go on, as far as there are any."""
        kept = {"max_grad_norm": self._max_grad_norm, "ema_decay": self._ema_decay}
        kept["rounding_draws"] = self._draws_so_far() if self._draws_at_all() else None
        return {name: value for name, value in kept.items() if value is not None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        loading = self._loading
        own = (state if "defaults" in state else vars(self))["defaults"]
        refuse_options(state["param_groups"], {*own, *of_class(cast(Any, type(self)))})
        if loading is not None:
            refuse_foreign(self, state["param_groups"], state["state"])
            max_grad_norm = check_max_grad_norm(loading.get("max_grad_norm", self._max_grad_norm))
            check_ema_decay(loading.get("ema_decay"))
            for mine, group in zip(self.param_groups, state["param_groups"], strict=True):
                keep_options(mine, group)
                self._check_storages(group)
        before = self.__dict__.copy()
        try:
            super().__setstate__(state)
            if loading is not None:
                self._convert_loaded(loading)
        except Exception:
            self.__dict__.clear()
            self.__dict__.update(before)
            raise
        if loading is None:
            return
        self._max_grad_norm = max_grad_norm
        if self._ema_decay is not None:
            self._ema_decay = loading.get("ema_decay", self._ema_decay)
        self._draws = int(loading.get("rounding_draws", 0))
        if self._plan is not None and self._draws_at_all():
            self._plan.draws = self._draws

    def _convert_loaded(self, loading: Mapping[str, Any]) -> None:
        """Bring what torch has loaded to this optimizer's options, from what torch was given."""
        params = [p for group in self.param_groups for p in group["params"]]
        precisions = self._precisions()
        saved = [index for group in loading["param_groups"] for index in group["params"]]
        counters = _C.counters(cast(Any, self)._rule)
        losses: list[str | None] = []
        for index, param in zip(saved, params, strict=True):
            for key, value in loading["state"].get(index, {}).items():
                if key == "step" or not isinstance(value, torch.Tensor):
                    continue
                half = param.dtype in HALVES
                # A file that torch wrote after it had loaded one may have what it does not know rounded, and counters.
                if half and value.dtype != _EXACT.get(key, value.dtype):
                    del self.state[param][key]
                    losses.append(f"torch has rounded '{key}', which starts anew from the param")
                elif key == "remainder" and value.dtype == torch.int16:
                    self.state[param][key] = value.to(param.device, copy=True)
                elif (half or key == "ema") and value.dtype in (torch.float32, *HALVES):
                    dtype = torch.float32 if key in counters else value.dtype
                    self.state[param][key] = value.to(param.device, dtype)
            its = self.state.get(param, {})
            # A user may have keys of these names, too.
            ours = {key for key, value in its.items() if getattr(value, "shape", None) == param.shape}
            if ours & set(PARTNERS) and param.dtype in HALVES:
                here, local = open_state(its, param)
                losses.append(precisions[id(param)].match_partner(here, local))
                here = close_state(here, its, param)
                if here is not its:
                    its.clear()
                    its.update(here)
            if "ema" in ours and not precisions[id(param)].average:
                losses.append("'ema' is kept as it is, since nothing averages any more")
        losses += self._pack_states(self.param_groups)
        warn_of_losses(losses)


def _unpack(optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    ours = cast(KeptState, optimizer)
    saved = [index for group in state_dict["param_groups"] for index in group["params"]]
    params = [param for group in ours.param_groups for param in group["params"]]
    precisions = ours._precisions()
    state = dict(state_dict["state"])
    for index, param in zip(saved, params, strict=True):
        if isinstance(state.get(index), dict):
            here, local = open_state(state[index], param)
            state[index] = close_state(precisions[id(param)].unpack(here, local), state[index], param)
    return {**state_dict, "state": state, **ours._numbers()}


def _remember(optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
    cast(KeptState, optimizer)._loading = state_dict


# What holds bits of a param in 16 bits that it lacks, by key: in any other type it has lost them.
_EXACT = {"master": torch.float32, "remainder": torch.int16}

# What a copy takes along beside what torch's classes keep.
_OWN_STATE = ("_ema_decay", "_given", "_precision", "_copies", "_draws", "_fused_given")
