"""Gradient release: params stepped inside the backward pass, each as soon as its gradient is final."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from . import _C
from . import _clipping as clipping
from ._core.callers import label_of
from ._core.optimizer import FusedStep
from ._core.untraced import untraced
from .optimizers.lbfgs import LBFGS

# What GradScaler leaves on an optimizer whose step it calls.
_SCALING = ("grad_scale", "found_inf")


def step_in_backward(model: nn.Module, optimizer: Optimizer) -> GradientRelease:
    """Have `backward()` step each param of `model` as soon as its gradient is final, and free that gradient.

    Then only the gradients under way exist at any time, not those of the whole model, and params and states end as they
    would in the usual loop, bit for bit (Muon's up to the rounding of its matrix products, which it else batches). The
    loop may stay as it is: `optimizer.step()` and `zero_grad()` find nothing left to do. `step()` still takes what
    has a gradient and no hook: params of the optimizer that are not in `model`, that were frozen when this was
    called, that `add_param_group` brought later, or whose `.grad` was assigned. Params of `model` that the optimizer
    does not have keep their gradients.

    `param_groups` and `state` stay the optimizer's own and are read at each update, so schedules, checkpoints and edits
    work as always; `state` fills in the order of the backward pass. A param that modules share is stepped once, on the
    sum. Several optimizers may each release their own params. Step hooks run around `optimizer.step()`, not around the
    updates, which a profiler shows as "Optimizer.step_in_backward#" and the class's name.

    Each backward pass is a step. Use `handle.accumulate()` around those that only add to the gradients; a graph that is
    kept for a second pass is refused by autograd, since its params have moved. Activation checkpointing needs
    `use_reentrant=False`: the older kind runs a backward pass for each segment. Updates captured into a CUDA graph
    are not reached by `refresh_hyperparameters()`. If an update is refused, those before it have been made.

    Args:
        model: whose params are to be stepped. It may be moved or changed later as long as its params stay the same
            objects.
        optimizer: one of fusedopt's. The hooks do not keep it alive.

    Returns:
        A handle, also a context manager, whose `remove()` brings the usual loop back and whose `accumulate()` pauses
        the updates.

    Raises:
        TypeError: `optimizer` is not one of fusedopt's, is an LBFGS, or its class overrides `step`; or `model` is no
            module.
        ValueError: the optimizer clips (the norm of all gradients is known only after the last), steps on the host
            (`offload`), differentiates its step, has no param of the model that requires a gradient, or one that is
            released already; or the model averages its gradients over processes after they are accumulated.
        RuntimeError: from `optimizer.step`, if it is given a closure or called by a GradScaler: the updates of this
            backward pass have been made from scaled gradients then, so load the weights anew. bfloat16 needs no
            scaler. From `backward`, if the optimizer came to clip, was freed or has its average in the params' place,
            or if gradients came to be averaged over processes after they are accumulated.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
        >>> optimizer = fusedopt.AdamW(model.parameters(), lr=1e-3)
        >>> with fusedopt.step_in_backward(model, optimizer) as handle:
        ...     with handle.accumulate():
        ...         model(torch.randn(2, 4)).sum().backward()
        ...     model(torch.randn(2, 4)).sum().backward()
        >>> [param.grad for param in model.parameters()], int(optimizer.state[model[0].weight]["step"])
        ([None, None, None, None], 1)

    Source: Lv et al. 2024, "Full Parameter Fine-tuning for Large Language Models with Limited Resources" (LOMO), which
    fuses SGD into backward; PyTorch's post-accumulate-grad hooks (2023) make it safe for shared params.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; give the torch.nn.Module that is trained")
    fused = _checked(optimizer)
    for name, module in model.named_modules():
        if isinstance(module, DistributedDataParallel):
            where = f"its module {name!r}" if name else "model"
            raise ValueError(
                f"{where} is a DistributedDataParallel, which averages gradients after they are accumulated and so "
                "after they would be gone; call optimizer.step() after backward as usual"
            )
    return GradientRelease(fused, _places(model, fused))


class GradientRelease:
    """What `step_in_backward` returns: while it holds, backward passes step. Leaving its context is `remove()`.

    Args:
        optimizer: whose params are stepped; only a weak reference to it is kept.
        places: these params, each with its group's index and its own in the group.

    Example:
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> optimizer = fusedopt.SGD(model.parameters(), lr=0.1)
        >>> handle = fusedopt.step_in_backward(model, optimizer)
        >>> isinstance(handle, fusedopt.GradientRelease)
        True
    """

    def __init__(self, optimizer: FusedStep, places: dict[Tensor, tuple[int, int]]) -> None:
        # Weak, or params would hold the optimizer that holds them, and `del optimizer` would free neither.
        self._optimizer = weakref.ref(optimizer)
        self._name = type(optimizer).__name__
        self._accumulating = 0
        # Backward runs a thread for each device.
        self._lock = threading.Lock()
        self._drawn: int | None = None
        self._handles: list[Any] = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]
        # So that a GradScaler shows itself by what it hands to `step`, which is too late for it.
        optimizer._count_scale_givers(1)
        sizes = [len(group["params"]) for group in optimizer.param_groups]
        for param, place in places.items():
            # Draws are by the place among all params, as in a step of all of them.
            step = _ParamStep(self, sum(sizes[: place[0]]) + place[1], place)
            optimizer._planned_in_backward(step, step.first_slot)
            self._handles.append(param.register_post_accumulate_grad_hook(step))
        clipping.releases.add(self)

    @contextmanager
    def accumulate(self) -> Iterator[None]:
        """Within it backward passes add to the gradients and step nothing; the next one outside steps on the sum.

        Example:
            >>> model = torch.nn.Linear(2, 1, bias=False)
            >>> optimizer = fusedopt.SGD(model.parameters(), lr=0.1)
            >>> handle = fusedopt.step_in_backward(model, optimizer)
            >>> with handle.accumulate():
            ...     model(torch.ones(2)).backward()
            >>> model.weight.grad.tolist()
            [[1.0, 1.0]]
        """
        self._accumulating += 1
        try:
            yield
        finally:
            self._accumulating -= 1

    def remove(self) -> None:
        """Take the hooks away; `backward()` leaves gradients to `optimizer.step()` again. A second call does nothing.

        Example:
            >>> model = torch.nn.Linear(2, 1, bias=False)
            >>> handle = fusedopt.step_in_backward(model, fusedopt.SGD(model.parameters(), lr=0.1))
            >>> handle.remove()
            >>> model(torch.ones(2)).backward()
            >>> model.weight.grad.tolist()
            [[1.0, 1.0]]
        """
        optimizer = self._optimizer()
        if self._handles and optimizer is not None:
            optimizer._count_scale_givers(-1)
        for handle in self._handles:
            handle.remove()
        self._handles = []
        clipping.releases.discard(self)

    def frees_gradients(self) -> bool:
        """Whether a backward pass would step, now."""
        return not self._accumulating and self._optimizer() is not None

    def __enter__(self) -> GradientRelease:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def _before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Refuse, as a hook of `optimizer.step`, what comes too late once params have been stepped."""
        # args begin with the optimizer itself where torch's wrapper passes them on.
        if kwargs.get("closure") is not None or any(arg is not None and arg is not optimizer for arg in args):
            raise RuntimeError(
                "step(closure) while params are stepped in backward: the closure's backward would step them, and what "
                "a closure is for, another look before the step, is gone; call backward() and step() without it"
            )
        if any(name in optimizer.__dict__ for name in _SCALING):
            for name in _SCALING:
                optimizer.__dict__.pop(name, None)
            raise RuntimeError(
                "a GradScaler called step() while params are stepped in backward: they have been stepped with scaled "
                "gradients, unchecked for infinities; load the weights anew and train in bfloat16 without a scaler, or "
                "without step_in_backward"
            )
        _refuse_clipping(optimizer)
        # What is left to step is of the same step.
        self._drawn = cast(FusedStep, optimizer)._rejoin_pass()

    def _after_step(self, optimizer: Optimizer, *_: Any) -> None:
        if self._drawn is not None:
            cast(FusedStep, optimizer)._draw_from(self._drawn)
            self._drawn = None

    def _optimizer_alive(self) -> FusedStep:
        optimizer = self._optimizer()
        if optimizer is None:
            self.remove()
            raise RuntimeError(
                f"the {self._name} that step_in_backward was given has been freed, so this backward stepped nothing "
                "and its hooks are removed; keep the optimizer for as long as you train, or remove() the handle first"
            )
        return optimizer


class _ParamStep:
    """A param's hook, and during its step the optimizer of that param alone, which is what a plan looks at.

    Between steps it refers neither to the param nor to its state: a hook that did would be a cycle. Its plan does where
    params are copied out, so the optimizer has that beside its own, and drops both.
    """

    def __init__(self, release: GradientRelease, first_slot: int, place: tuple[int, int]) -> None:
        self.release = release
        self.first_slot = first_slot
        self.place = place  # the group's index, and the param's in it
        self.stepped = False  # whether it has been asked to
        self.param_groups: list[dict[str, Any]] = []
        self.state: dict[Tensor, dict[str, Any]] = {}

    def __call__(self, param: Tensor) -> None:
        # Where backward is called from what torch.compile has compiled, it would compile this frame.
        if torch.compiler.is_compiling():
            untraced(self, param)
        elif not self.release._accumulating:
            self._update(param)

    def _update(self, param: Tensor) -> None:
        optimizer = self.release._optimizer_alive()
        _refuse_clipping(optimizer)
        optimizer._refuse_step("backward stepped a param")
        with self.release._lock:
            if not self._find(optimizer.param_groups, param):
                return
            # Once more, for such hooks may come after step_in_backward: replicate()'s do, in the first forward pass.
            if not self.stepped:
                _refuse_awaited(param, optimizer.param_groups[self.place[0]], *self.place, RuntimeError)
                self.stepped = True
            if _C.profiling():
                with torch.profiler.record_function(f"Optimizer.step_in_backward#{type(optimizer).__name__}"):
                    self._step(optimizer, param)
            else:
                self._step(optimizer, param)
        param.grad = None

    def _find(self, groups: list[dict[str, Any]], param: Tensor) -> bool:
        """Whether a group has the param, and in `place` which; groups may have been replaced since the last step."""
        group, index = self.place
        if group < len(groups) and index < len(groups[group]["params"]) and groups[group]["params"][index] is param:
            return True
        for group, its in enumerate(groups):
            for index, other in enumerate(its["params"]):
                if other is param:
                    self.place = (group, index)
                    return True
        return False

    def _step(self, optimizer: FusedStep, param: Tensor) -> None:
        group_index, index = self.place
        group = {**optimizer.param_groups[group_index], "params": [param]}
        if "param_names" in group:
            group["param_names"] = [group["param_names"][index]]
        self.param_groups = [group]
        self.ema_decay = optimizer.ema_decay
        found = optimizer.state.get(param)
        self.state = {} if found is None else {param: found}
        plan = optimizer._planned_in_backward(self, self.first_slot)
        if optimizer._draws_at_all():
            plan.draws = optimizer._draw_in_pass(torch._C._current_graph_task_id())
        try:
            if optimizer._known_to_torch_alone() is not None or self._leaves(optimizer, plan):
                self._step_whole(optimizer, group)
            elif found is None and param in self.state:
                optimizer.state[param] = self.state[param]
        except Exception as error:
            # The plan saw one group of one param.
            if error.args and isinstance(error.args[0], str):
                text = error.args[0].replace("param 0 of group 0", f"param {index} of group {group_index}")
                error.args = (text.replace("param_groups[0]", f"param_groups[{group_index}]"), *error.args[1:])
            raise
        finally:
            self.param_groups, self.state = [], {}

    def _leaves(self, optimizer: FusedStep, plan: _C.Plan) -> bool:
        """Whether the plan leaves the param to the optimizer's own step; else it has stepped it."""
        leftover = plan.step(cast(Optimizer, self))
        if leftover:
            with optimizer._readable_grads(leftover) as any_made:
                if any_made:
                    leftover = plan.step(cast(Optimizer, self))
        return bool(leftover)

    @staticmethod
    def _step_whole(optimizer: FusedStep, group: dict[str, Any]) -> None:
        """The optimizer's own step, reduced to one param: for torch's."""
        _refuse_differentiable(0, group)
        with optimizer._only([group]):
            optimizer._fused_step()


def _checked(optimizer: Optimizer) -> FusedStep:
    name = type(optimizer).__name__
    if isinstance(optimizer, LBFGS):
        raise TypeError("LBFGS cannot step in backward: its direction is made of the gradients of all params together")
    if isinstance(optimizer, FusedStep) and _C.joint(optimizer._rule):
        raise TypeError(f"{name} cannot step in backward: its step is made of sums over the gradients of all params")
    if not isinstance(optimizer, FusedStep):
        raise TypeError(f"{type(optimizer).__module__}.{name} cannot step in backward; use an optimizer of fusedopt's")
    if type(optimizer).step is not FusedStep.step:
        raise TypeError(f"{name} overrides step(), which updates in backward would pass by; give one that does not")
    _refuse_clipping(optimizer)
    for index, group in enumerate(optimizer.param_groups):
        _refuse_differentiable(index, group)
        if optimizer._precision_of(group).offload:
            raise ValueError(
                "offload='cpu' overlaps the copies of many params with their steps, and in backward each is stepped "
                "alone, while the GPU would wait; leave one of them out"
            )
    return optimizer


def _refuse_clipping(optimizer: Optimizer) -> None:
    max_grad_norm = getattr(optimizer, "max_grad_norm", None)
    if max_grad_norm is not None:
        raise ValueError(
            f"max_grad_norm={max_grad_norm} needs the norm of all gradients, which is known only after the first are "
            "gone; set it to None, or step after backward as usual"
        )


def _refuse_differentiable(index: int, group: dict[str, Any]) -> None:
    if group.get("differentiable"):
        raise ValueError(
            f"param_groups[{index}] is differentiable, and a step that is to be differentiated cannot be part of a "
            "backward pass; set 'differentiable' to False, or step after backward as usual"
        )


def _refuse_awaited(param: Tensor, group: dict[str, Any], index: int, place: int, error: type[Exception]) -> None:
    """Raise an error for a param whose gradient others want once it is final, as who averages it over processes."""
    if _C.awaited(param):
        raise error(
            f"{label_of(group, index, place)} has a hook that reads its gradient after it is accumulated and so after "
            "it would be gone, as DistributedDataParallel's and replicate()'s, which average gradients over processes; "
            "call optimizer.step() after backward as usual"
        )


def _places(model: nn.Module, optimizer: FusedStep) -> dict[Tensor, tuple[int, int]]:
    """The params to release, each with its group's index and its own in the group."""
    in_model = {id(param) for param in model.parameters()}
    found: dict[Tensor, tuple[int, int]] = {}
    for group_index, group in enumerate(optimizer.param_groups):
        for index, param in enumerate(group["params"]):
            if id(param) not in in_model or not param.requires_grad:
                continue
            for hook in list((param._post_accumulate_grad_hooks or {}).values()):
                # One whose optimizer is gone has nothing to say any more.
                if isinstance(hook, _ParamStep) and hook.release._optimizer() is not None:
                    raise ValueError(
                        f"{label_of(group, group_index, index)} is stepped in backward already, by "
                        f"{hook.release._name}; remove() that handle first"
                    )
                if isinstance(hook, _ParamStep):
                    hook.release.remove()
            _refuse_awaited(param, group, group_index, index, ValueError)
            found[param] = (group_index, index)
    if not found:
        raise ValueError(
            "none of the optimizer's params is a param of the model that requires a gradient; make the optimizer of "
            "model.parameters()"
        )
    return found
