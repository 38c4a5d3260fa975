"""Checkpoints: torch's, and in them what the options keep; those of torch and of other options are converted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch.optim.optimizer import Optimizer

from .. import _C
from .group_options import keep_options, of_class, refuse_options
from .kept import KeptState
from .origin import refuse_foreign
from .precision import HALVES, PARTNERS, at_home, check_ema_decay, warn_of_losses
from .shards import close_state, is_sharded, open_state


class Checkpointed(KeptState):
    """A fused optimizer that is saved and loaded with what its options keep."""

    # The state dict being loaded, while it is.
    _loading: Mapping[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """The checkpoint, which torch.optim's class of this name loads as well.

        States in codes are in it as float32, from which loading makes the same codes again. What other options keep is
        under further keys, which torch leaves alone: `master`, `remainder`, `compensation` and `ema` in a param's
        state; `max_grad_norm`, `ema_decay` and `rounding_draws` at the top.
        """
        precisions = [self._precision_of(group) for group in self.param_groups]
        if not (self._numbers() or any(one.states or one.partner == "remainder" for one in precisions)):
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
        kept = {"max_grad_norm": self.max_grad_norm, "ema_decay": self.ema_decay}
        kept["rounding_draws"] = self._draws_so_far() if self._draws_at_all() else None
        return {name: value for name, value in kept.items() if value is not None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        loading = self._loading
        if loading is not None:
            _bring_home(state["state"])
        own = (state if "defaults" in state else vars(self))["defaults"]
        refuse_options(state["param_groups"], {*own, *of_class(cast(Any, type(self)))})
        if loading is not None:
            refuse_foreign(self, state["param_groups"], state["state"])
            max_grad_norm = self._checked_maximum(loading.get("max_grad_norm", self.max_grad_norm))
            check_ema_decay(loading.get("ema_decay"))
            for mine, group in zip(self.param_groups, state["param_groups"], strict=True):
                keep_options(mine, group)
                self._check_storages(group)
        before = self.__dict__.copy()
        try:
            super().__setstate__(state)
            if loading is not None:
                self._convert_loaded(loading)
                draws = self._draws_of(loading)
        except Exception:
            self.__dict__.clear()
            self.__dict__.update(before)
            raise
        if loading is None:
            return
        self.max_grad_norm = max_grad_norm
        if self.ema_decay is not None and loading.get("ema_decay") is not None:
            self.ema_decay = loading["ema_decay"]
        self._draw_from(draws)

    def _draws_of(self, loading: Mapping[str, Any]) -> int:
        """How many steps of a file have rounded by chance; what says nothing of it has drawn in each of its steps."""
        draws = int(loading.get("rounding_draws", self._steps_done() if self._draws_at_all() else 0))
        if not 0 <= draws < 2**63:
            raise ValueError(f"Invalid rounding_draws in the file: {draws!r}; it counts steps")
        return draws

    def _convert_loaded(self, loading: Mapping[str, Any]) -> None:
        """Bring what torch has loaded to this optimizer's options, from what torch was given."""
        params = [p for group in self.param_groups for p in group["params"]]
        precisions = self._precisions()
        saved = [index for group in loading["param_groups"] for index in group["params"]]
        counters = _C.counters(self._rule)
        losses: list[str | None] = []
        for index, param in zip(saved, params, strict=True):
            for key, value in loading["state"].get(index, {}).items():
                if key == "step" or not isinstance(value, torch.Tensor):
                    continue
                half, home = param.dtype in HALVES, precisions[id(param)].home_of(param)
                if key in counters and value.is_floating_point():
                    # torch has made it the param's type, in which the run would go on with other numbers.
                    wide = value.dtype if value.dtype in (torch.float32, torch.float64) else torch.float32
                    self.state[param][key] = value.to(home, wide)
                    continue
                # A file that torch wrote after it had loaded one may have what it does not know rounded.
                if half and value.dtype not in _EXACT.get(key, (value.dtype,)):
                    del self.state[param][key]
                    losses.append(f"torch has rounded '{key}', which starts anew from the param")
                elif key == "remainder" and value.dtype in _LOWER_HALVES:
                    self.state[param][key] = value.to(home, torch.int16, copy=True)
                elif (half or key == "ema") and value.dtype in (torch.float32, *HALVES):
                    self.state[param][key] = value.to(home, value.dtype)
            its = self.state.get(param, {})
            # A user may have keys of these names, too.
            ours = {key for key, value in its.items() if getattr(value, "shape", None) == param.shape}
            if ours & set(PARTNERS):
                factors = self._factors(param)
                here, local = open_state(its, param, factors)
                losses.append(precisions[id(param)].match_partner(here, local))
                here = close_state(here, its, param, factors)
                if here is not its:
                    its.clear()
                    its.update(here)
            if "ema" in ours and not precisions[id(param)].average:
                losses.append("'ema' is kept as it is, since nothing averages any more")
        losses += self._pack_states(self.param_groups)
        warn_of_losses(losses)


def _unpack(optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    ours = cast(Checkpointed, optimizer)
    saved = [index for group in state_dict["param_groups"] for index in group["params"]]
    params = [param for group in ours.param_groups for param in group["params"]]
    precisions = ours._precisions()
    state = dict(state_dict["state"])
    for index, param in zip(saved, params, strict=True):
        if isinstance(state.get(index), dict):
            factors = ours._factors(param)
            here, local = open_state(state[index], param, factors)
            state[index] = close_state(precisions[id(param)].unpack(here, local), state[index], param, factors)
            half = state[index].get("remainder")
            if is_sharded(half) and half.dtype == torch.int16:
                state[index] = {**state[index], "remainder": half.to(torch.int32)}
    return {**state_dict, "state": state, **ours._numbers()}


class _Staying:
    """A loaded tensor, which torch would bring to its param's device: that has no room for what is on the host."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


def _remember(optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any] | None:
    ours = cast(Checkpointed, optimizer)
    ours._loading = state_dict
    precisions = ours._precisions()
    if not any(precision.offload for precision in precisions.values()):
        return None
    saved = [index for group in state_dict["param_groups"] for index in group["params"]]
    params = [param for group in ours.param_groups for param in group["params"]]
    state = dict(state_dict["state"])
    for index, param in zip(saved, params, strict=False):  # torch says what is wrong with their number
        if precisions[id(param)].offload and isinstance(state.get(index), dict):
            entries = state[index].items()
            state[index] = {key: _Staying(v) if isinstance(v, torch.Tensor) else v for key, v in entries}
    return {**state_dict, "state": state}


def _bring_home(states: Mapping[Any, Any]) -> None:
    """What torch does to loaded tensors, but for the device."""
    for param, state in states.items():
        for key, value in state.items() if isinstance(state, dict) else ():
            if isinstance(value, _Staying):
                here = at_home(value.tensor, param)
                state[key] = here.to(param.dtype) if key != "step" and param.is_floating_point() else here


# What holds bits of a param in 16 bits that it lacks, by key: in any other type it has lost them. The lower halves of
# shards are in a file as int32, since neither NCCL nor gloo gathers 16-bit integers, and full_state_dict has to.
_LOWER_HALVES = (torch.int16, torch.int32)
_EXACT = {"master": (torch.float32,), "remainder": _LOWER_HALVES}
