"""What an optimizer has beside the groups and states of torch's: its options and what they keep, and its plan."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from typing import Any, ClassVar, NamedTuple, cast
from weakref import WeakKeyDictionary

import torch

from .. import _C
from .arguments import NO_OPTIONS, Options, own_parameters
from .averaging import AveragedStep
from .gathering import gathered, part_of
from .group_options import BEYOND_TORCH, OF_GROUPS, of_class, precision_of, resolve
from .max_grad_norm import ClippedStep
from .precision import HALVES, Precision, at_home
from .scaling import ScaledStep
from .shards import adds_up_norms, close_state, is_sharded, open_state, places, replicated_like, summed


class Products(NamedTuple):
    """What stands between a class's rule and another, `rule`, which applies it: products of matrices."""

    rule: str
    # (group, matrices as one tensor [n, rows, columns] that it may use up) -> (products, factor of the learning rate)
    multiply: Callable[[dict[str, Any], torch.Tensor], tuple[torch.Tensor, float]]
    most_bytes: int  # of the matrices that go through it together


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

    _rule: ClassVar[str]
    # Values of hyper-parameters that some torch versions do not keep in their groups.
    _rule_defaults: ClassVar[dict[str, float]] = {}
    # Arguments that torch's class lacks, as beyond.py has them.
    _beyond: ClassVar[Mapping[str, Any]] = {}
    # Hyper-parameters that may be None, which the rule has as -1.
    _optional: ClassVar[frozenset[str]] = frozenset()
    # Whether torch keeps the counters of its class on the param's device, capturable or not.
    _device_counters: ClassVar[bool] = False

    # Made by the first step. Not part of __getstate__, so a copied optimizer makes its own.
    _plan: _C.Plan | None = None
    # Those of params that are stepped in backward, by their hooks.
    _plans_in_backward: WeakKeyDictionary[Any, _C.Plan] | None = None
    # What the constructor was given, and what follows from it for groups that have no options of their own.
    _given = NO_OPTIONS
    _precision = Precision()
    # Where params are copied to in fewer bits.
    _copies: Mapping[torch.Tensor, torch.Tensor] | None = None
    # How many steps a loaded or copied optimizer has rounded by chance.
    _draws = 0
    # The last backward pass that stepped, as autograd counts them, and the draws before it; None once they are settled.
    _pass: tuple[int, int] | None = None

    def __getstate__(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in _TAKEN_ALONG if getattr(self, name) != getattr(KeptState, name)}
        if self._draws_at_all():
            own["_draws"] = self._draws_so_far()
        return {**super().__getstate__(), **own}

    def _take_options(self, given: Options) -> None:
        """Note what the constructor was given, before torch's sees params."""
        self._given = given
        self.max_grad_norm = given.max_grad_norm
        self._precision = precision_of(_C.states(self._rule), given, {})
        self._average_with(given.ema_decay)

    def _check_options(self) -> None:
        """Refuse options that the params cannot have, and bring what torch's constructor has made to its storages."""
        own = [group for group in self.param_groups if self._precision_of(group) is not self._precision]
        rest = [group for group in self.param_groups if not any(group is other for other in own)]
        self._precision.check_params(p for group in rest for p in group["params"])
        for group in self.param_groups:
            self._check_offload(group)
        self._pack_states(self.param_groups)

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

    offload = _fixed(
        "offload",
        lambda precision: "cpu" if precision.offload else None,
        'Where the states of params on a GPU are and the step is made: "cpu", or None, with the params. Given to the '
        "constructor.",
    )

    def copy_params_to(self, copies: Mapping[torch.Tensor, torch.Tensor]) -> None:
        """Have every step write params out in fewer bits as well, in the same pass over memory.

        What an optimizer over float32 params on the host needs to feed a model that computes in 16 bits.

        Args:
            copies: for each float32 param the bfloat16 or float16 tensor of its shape, on its device, that gets its
                rounded value. It is written by every step that the param takes from now on, also after
                `load_state_dict`. `deepcopy` and `pickle` take copies along; checkpoints do not.

        Raises:
            RuntimeError: a CUDA graph has captured a step, and its replays would write no copies, or this is called
                inside `ema_parameters()`.
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
        self._refuse_while_averaged("copy_params_to() was called")
        if any(self._precision_of(group).partner is not None for group in self.param_groups):
            raise ValueError(
                "copies are for float32 params, and this optimizer was constructed with master_weights or "
                "rounding='kahan', which are for params in 16 bits"
            )
        if self._captured():
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
        self._plan = self._plans_in_backward = None

    def _copied_out(self) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
        return (self._copies or {}).items()

    def _copy_out(self, param: torch.Tensor) -> None:
        """Bring a param's copy up to it, where no step does."""
        if self._copies and param in self._copies:
            self._copies[param].copy_(param)

    def _check_storages(self, group: Mapping[str, Any]) -> None:
        """Raise ValueError for options that params of this group cannot have, or its rule with these numbers."""
        precision = self._precision_of(group)
        # In a model of several dtypes a group may well be all float32.
        if any(p.dtype in HALVES for p in group["params"]) or precision != self._precision:
            precision.check_params(group["params"])
        self._check_offload(group)

    def _check_offload(self, group: Mapping[str, Any]) -> None:
        """Raise ValueError for a group whose step is to be captured and to be made on the host."""
        if self._precision_of(group).offload and group.get("capturable"):
            raise ValueError(
                "capturable=True is for steps that CUDA graphs replay, and offload='cpu' steps on the host, where a "
                "graph does nothing; leave one of them out"
            )

    def _precision_of(self, group: Mapping[str, Any]) -> Precision:
        if not any(name in group for name in OF_GROUPS):
            return self._precision
        return precision_of(_C.states(self._rule), self._given, group)

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

    def _steps_done(self) -> int:
        """As the counters have them: what torch.distributed.checkpoint keeps of a file is groups and states alone."""
        return max((int(state["step"]) for state in self.state.values() if "step" in state), default=0)

    def _draw_from(self, draws: int) -> None:
        """Go on as after so many steps that have rounded by chance."""
        self._pass = None
        self._draws = draws
        if self._plan is not None and self._draws_at_all():
            self._plan.draws = draws

    def _draw_in_pass(self, task: int) -> int:
        """The number of draws before a backward pass that steps, which is one step for all that have part in it."""
        if self._pass is None or self._pass[0] != task or task < 0:  # as where autograd does not count
            before = self._draws_so_far()
            self._draw_from(before + 1)
            self._pass = task, before
        return self._pass[1]

    def _rejoin_pass(self) -> int | None:
        """Have `step()` draw as the backward pass before it did; returns how many draws there are after both."""
        if self._pass is None:
            return None
        before = self._pass[1]
        self._draw_from(before)
        return before + 1

    def _planned(self) -> _C.Plan:
        """The plan, which the first step makes."""
        if self._plan is None:
            self._plan = self._make_plan()
        return self._plan

    def _planned_in_backward(self, hook: object, first_slot: int) -> _C.Plan:
        """The plan of a hook that steps one param, which stands at this place among all."""
        if self._plans_in_backward is None:
            self._plans_in_backward = WeakKeyDictionary()
        plan = self._plans_in_backward.get(hook)
        if plan is None:
            plan = self._plans_in_backward[hook] = self._make_plan()
            plan.first_slot = first_slot
        return plan

    def _captured(self) -> bool:
        """Whether a CUDA graph that has captured a step may still be replayed."""
        plans = (self._plan, *(self._plans_in_backward or {}).values())
        return any(plan is not None and plan.captured for plan in plans)

    def _make_plan(self) -> _C.Plan:
        # A wrapper need not have run a constructor.
        cls = cast(Any, type(self))
        own = of_class(cls)
        refused = {name for name in Options._fields if name not in {*own, *getattr(self, "defaults", ())}}
        options = {**self._precision.for_plan(self._copies), "flags": _flags(cls), "refused": refused}
        options["beyond_torch"] = BEYOND_TORCH
        options |= {"options": own, "seed": self._given.rounding_seed, "optional": self._optional}
        options |= {"sum": summed, "norm": adds_up_norms, "gather": gathered, "part": part_of}
        options |= {"places": places, "replicated": replicated_like}
        kinds = _C.states(self._rule)
        options["resolve"] = partial(resolve, kinds, self._given, self._copies, self._precisions())
        if products := self._products():
            options["products"] = products._asdict()
        # A rule has -1 for None.
        beyond = {name: -1.0 if value is None else value for name, value in self._beyond.items()}
        plan = _C.Plan(self._rule, {**self._rule_defaults, **beyond}, self._device_counters, options)
        plan.draws = self._draws_so_far()
        return plan

    def _products(self) -> Products | None:
        return None

    def refresh_hyperparameters(self) -> None:
        """Send the numbers in `param_groups` to the steps that CUDA graphs have captured.

        A replay reads learning rates and their like from device memory that the optimizer owns. After a scheduler or an
        assignment changed them, call this before the replay; no new capture is needed. A learning rate given as a
        CUDA tensor needs no call: it is read where it is. Like every operation the sending takes its place on the
        current stream: where replays are on another, have the two wait for each other (`stream.wait_stream`).

        Raises:
            RuntimeError: groups were added or removed, or options that are no numbers (amsgrad, momentum from or to 0)
                were changed, since a capture.

        Example:
            >>> optimizer = fusedopt.SGD([torch.nn.Parameter(torch.zeros(2))], lr=0.1)
            >>> optimizer.param_groups[0]["lr"] = 0.05
            >>> optimizer.refresh_hyperparameters()  # and then graph.replay()
        """
        if self._plan is not None:
            self._plan.refresh(self)

    def _factors(self, param: torch.Tensor) -> set[str]:
        """The states of a param that are sums of rows or columns; a vector is not factored."""
        kinds = _C.states(self._rule) if param.dim() > 1 else {}
        return {name for name, kind in kinds.items() if kind == "factor"}

    def _pack_states(self, groups: Iterable[dict[str, Any]]) -> list[str]:
        """Bring states that torch has made to their devices and storages; say what that rounds."""
        losses: list[str] = []
        for group in groups:
            precision = self._precision_of(group)
            for p in group["params"] if precision.offload else ():
                for key, value in self.state.get(p, {}).items():
                    self.state[p][key] = at_home(value, p) if isinstance(value, torch.Tensor) else value
            for p in group["params"] if precision.converts else ():
                if self.state.get(p):
                    here, local = open_state(self.state[p], p, self._factors(p))
                    losses += precision.pack(here, local, is_sharded(p))
                    self.state[p].update(close_state(here, self.state[p], p, self._factors(p)))
        return losses

    def __repr__(self) -> str:
        """torch's, and the options that are not as they are by default."""
        plain = KeptState.__new__(KeptState)
        told = [(name, getattr(self, name)) for name in Options._fields]
        lines = [f"    {name}: {value}\n" for name, value in told if value != getattr(plain, name)]
        text = super().__repr__()
        return f"{text.removesuffix(')')}Options\n{''.join(lines)})" if lines else text


@cache
def _flags(cls: Any) -> set[str]:
    """The arguments that say yes or no: None, as configurations have it, is a no."""
    return {p.name for p in own_parameters(cls) if isinstance(p.default, bool)}


# What a copy takes along, if it is not as it is by default; of draws, see __getstate__.
_TAKEN_ALONG = ("_given", "_precision", "_copies", "_draws")
