"""What all fused optimizers share: torch.optim's class around one call into the engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, cast

import torch
from torch.optim import optimizer as _torch_optimizer
from torch.optim.optimizer import Optimizer, ParamsT

from .. import _C
from .arguments import NO_OPTIONS, Options, check_fused, check_with_torch, for_torch, refuse_nan
from .beyond import check_beyond, go_beyond, refuse_beyond, within_torch
from .callers import label_of, warn_of_unserved
from .checkpoints import Checkpointed
from .gradients import clear_grads
from .group_options import BEYOND_TORCH, of_class, refuse_options
from .shards import grads_placed_as_params
from .unread import FLAGS, Reads, Unread, unread_by
from .untraced import untraced
from .wrapped import plain_dispatch, refuse_wrapped

Leftover = list[tuple[int, list[torch.Tensor]]]


class FusedStep(Checkpointed):
    """A torch.optim class, named after this one in a subclass's bases, whose `step` is one pass over memory.

    Everything but `step` is the installed torch's: constructor, checks, groups, state keys and checkpoints. Tensors
    on the CPU and on CUDA devices have engines. What none takes (sparse gradients, subclasses that dispatch, other
    devices) and whole calls that must be differentiated go through torch's own step.
    """

    # What a step that no plan makes reads of its groups, as unread.py has it; a plan's rule says it itself.
    _reads: ClassVar[Reads] = {}
    # What the installed torch's constructor has beyond that: None, but in a torch that is newer than this package.
    _unread: ClassVar[Unread | None] = None
    # What optimizers without a plan know of their last step.
    _skipped = False

    def __init__(
        self,
        params: ParamsT,
        given: dict[str, Any],
        *,
        foreach: bool | None = None,
        fused: bool | None = None,
        options: Options = NO_OPTIONS,
    ) -> None:
        """What the constructors of all classes come to; `given` is torch's arguments besides `foreach` and `fused`."""
        self._step_supports_amp_scaling = bool(fused)
        self._take_options(options)
        torchs = within_torch(self._beyond, given)
        super().__init__(params, **self._torch_arguments({**torchs, "foreach": foreach, "fused": fused}))
        go_beyond(self, given)
        check_fused(fused, foreach, given.get("differentiable"))
        refuse_nan(self.defaults)
        self._check_options()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        hypers = [] if cls._reads else _C.rules().get(getattr(cls, "_rule", ""), {}).get("hypers", [])
        rules = dict.fromkeys([*FLAGS, *(name.partition(".")[0] for name in hypers)])
        cls._unread = unread_by(cls, FusedStep, cls._reads or rules)

    @classmethod
    def _torch_arguments(cls, given: dict[str, Any]) -> dict[str, Any]:
        """What the constructor of torch's is called with beside the params."""
        return for_torch(cls, FusedStep, given)

    @property
    def step_skipped(self) -> torch.Tensor:
        """Whether the last step was skipped because a GradScaler found an infinity: a 0-dim bool tensor.

        With `fused=True` or `fusedopt.GradScaler`, that is; else torch's GradScaler does not call what it skips. On a
        GPU it stays there, and reading it is up to the caller: nothing here waits for the device.
        """
        skipped = self._skipped if self._known_to_torch_alone() else self._planned().skipped
        return skipped != 0 if isinstance(skipped, torch.Tensor) else torch.tensor(skipped, device="cpu")

    def step(self, closure: Callable[[], Any] | None = None, *, zero_grad: bool = False) -> Any:
        """Update every param that has a gradient, in place.

        Args:
            closure: re-evaluates the model with gradients enabled and returns the loss. Default: None.
            zero_grad: set gradients to zero in the same pass over memory, also those of a step that is skipped.
                Default: False.

        Returns:
            What `closure` returned, or None.

        Raises:
            RuntimeError: a gradient or a state does not fit its param. Nothing has been written then.
        """
        if torch.compiler.is_compiling():
            return untraced(FusedStep.step, self, closure, zero_grad=zero_grad)
        # In a subclass that overrides step, torch has wrapped the override: the hooks run there.
        if self._observed() and type(self).step is FusedStep.step:
            given: dict[str, Any] = {"zero_grad": True} if zero_grad else {}
            return _observed_step(self, **given) if closure is None else _observed_step(self, closure, **given)
        return self._fused_step(closure, zero_grad)

    # torch wraps the step of every class that does not say it is wrapped, at 13 to 20 us a call.
    step.hooked = True  # type: ignore[attr-defined]

    def _observed(self) -> bool:
        return bool(
            self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or _torch_optimizer._global_optimizer_pre_hooks
            or _torch_optimizer._global_optimizer_post_hooks
            or _C.profiling()
        )

    def _known_to_torch_alone(self) -> str | None:
        """A value in the groups that our step does not know and torch's own does; None if there is none."""
        return None if self._unread is None else self._unread.find(self.param_groups)

    def _fused_step(self, closure: Callable[[], Any] | None = None, zero_grad: bool = False) -> Any:
        if self._unread is not None and (found := self._known_to_torch_alone()):
            if self._keeps_more_than_torch():
                raise RuntimeError(
                    f"{found}, which only torch's own step knows, and that knows no {BEYOND_TORCH} of "
                    "params; leave these out or set the key to its default"
                )
            every = [(index, group["params"]) for index, group in enumerate(self.param_groups)]
            return self._host_step(closure, zero_grad, lambda _, divisor: self._step_leftover(every, divisor))
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        plan = self._planned()
        # Of a step that a GPU alone knows to be skipped the engine would leave the gradients.
        in_pass = zero_grad and "found_inf" not in self.__dict__
        leftover, norm = None, self._step_clipped(plan, in_pass)
        if norm is None:
            norm, divisor = self._clip()
            # Without keywords, which the engine would look up one by one.
            leftover = plan.step(self, False, divisor, in_pass, None)
        in_pass = in_pass and not leftover
        if leftover:
            warn_of_unserved()
            with self._readable_grads(leftover) as any_made:
                if any_made:
                    leftover = plan.step(self, divisor=divisor)
                if leftover:
                    done = None
                    if not self._keeps_more_than_torch(self.param_groups[index] for index, _ in leftover):
                        done = self._step_leftover(leftover, divisor)
                    if not done:
                        plan.step(self, engine_only=True, divisor=divisor)
        self.grad_norm = norm
        if zero_grad and (not in_pass or plan.shares_grads):
            clear_grads(self.param_groups)
        return loss

    def _host_step(
        self,
        closure: Callable[[], Any] | None,
        zero_grad: bool,
        step_all: Callable[[float, float | torch.Tensor | None], object],
    ) -> Any:
        """A step of what is no plan: `step_all` gets a factor of the gradients, and its inverse if they are clipped."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        refuse_options(self.param_groups, self.defaults)
        multiplier = self._read_scaling()
        norm, divisor = self._clip()
        if not self._skipped:
            step_all(multiplier if divisor is None else 1 / float(divisor), divisor)
        self.grad_norm = norm
        if zero_grad:
            clear_grads(self.param_groups)
        return loss

    @staticmethod
    @contextmanager
    def _readable_grads(leftover: Leftover) -> Iterator[bool]:
        """Copies that an engine can read in the place of gradients that none can, whether there are any or not.

        Of those made in inference mode, of lazy conjugates and negatives, which autograd leaves behind a conj() of its
        own, and of DTensors that are placed otherwise than their params.
        """
        every = [p for _, params in leftover for p in params]
        grads = [(p, p.grad) for p in every if p.grad is not None and _reads_as_copy(p.grad)]
        try:
            with torch.inference_mode(False):
                for p, grad in grads:
                    resolved = grad.resolve_conj().resolve_neg()
                    p.grad = grad.clone() if resolved is grad else resolved
            with grads_placed_as_params(every) as any_placed:
                yield any_placed or bool(grads)
        finally:
            for p, grad in grads:
                p.grad = grad

    def _read_scaling(self) -> float:
        """What to multiply gradients by, and in `_skipped` whether to skip the step, both read by the host."""
        found_inf, grad_scale = self.__dict__.get("found_inf"), self.__dict__.get("grad_scale")
        self._skipped = found_inf is not None and float(found_inf) != 0
        return 1.0 if grad_scale is None else 1.0 / float(grad_scale)

    def _torch_step(self, closure: Callable[[], Any] | None = None) -> Any:
        """torch's own step, without the hooks torch may have wrapped around it."""
        return unhooked(super().step, self)(closure)

    def _refuse_shards(self, leftover: Leftover) -> None:
        """Raise RuntimeError for DTensors that neither a plan nor torch's own step can take."""
        plan = self._planned()
        for index, params in leftover:
            group = self.param_groups[index]
            for p in params:
                if why := plan.why_left(p):
                    place = next(place for place, other in enumerate(group["params"]) if other is p)
                    name = type(self).__name__
                    raise RuntimeError(f"{label_of(group, index, place)} is no param that {name} can step: {why}")

    def _step_leftover(self, leftover: Leftover, divisor: float | torch.Tensor | None = None) -> bool | None:
        """Step what no engine takes as it is; true if the rest had to be stepped with it."""
        refuse_wrapped((p for _, params in leftover for p in params), self.state)
        refuse_beyond(self, (index for index, _ in leftover))
        # Sparse gradients first: most of torch's optimizers refuse them, and then nothing has been written yet.
        for sparse in (True, False):
            groups = []
            for index, params in leftover:
                chosen = [p for p in params if p.grad is not None and p.grad.is_sparse == sparse]
                if chosen:
                    groups.append(self._leftover_group(self.param_groups[index], chosen, sparse))
            if groups:
                with self._only(groups), self._plain_grads(groups, divisor):
                    self._torch_step()
        return None

    def _leftover_group(self, group: dict[str, Any], params: list[torch.Tensor], sparse: bool) -> dict[str, Any]:
        group = {**group, "params": params}
        # torch's fused kernels know neither sparse gradients nor, for SGD, DTensors; its unscaling is ours here.
        if (
            sparse
            or hasattr(self, "found_inf")
            or any(type(p).__torch_dispatch__ is not plain_dispatch for p in params)
        ):
            group["fused"] = None
            group["foreach"] = False if sparse else group.get("foreach")
        return group

    @contextmanager
    def _only(self, groups: list[dict[str, Any]]) -> Iterator[None]:
        """param_groups reduced to `groups` while torch steps them."""
        all_groups = self.param_groups
        self.param_groups = groups
        try:
            yield
        finally:
            self.param_groups = all_groups

    @contextmanager
    def _plain_grads(self, groups: list[dict[str, Any]], divisor: float | torch.Tensor | None = None) -> Iterator[None]:
        """The gradients of `groups` as torch's step takes them: scaled and clipped, no lazy conjugation or negation."""
        scaler: dict[str, Any] = {}
        for name in ("grad_scale", "found_inf"):
            if name in self.__dict__:
                scaler[name] = self.__dict__.pop(name)
        scale = scaler.get("grad_scale") if divisor is None else divisor
        grads = [(p, p.grad) for group in groups for p in group["params"]]
        try:
            for p, grad in grads:
                if scale is not None:
                    # Of two numbers without dimensions the wider dtype would win.
                    p.grad = (grad / scale).to(grad.dtype)
                elif grad.is_conj() or grad.is_neg():
                    p.grad = grad.resolve_conj().resolve_neg()
            yield
        finally:
            for p, grad in grads:
                if p.grad is not grad:
                    p.grad = grad
            self.__dict__.update(scaler)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of params with hyper-parameters of its own; what it leaves out comes from `defaults`.

        Args:
            param_group: a dict with "params" and any of the constructor's arguments.

        Raises:
            ValueError: torch's constructor would refuse a hyper-parameter, the group has an option, which is the whole
                optimizer's, or a param is in another group already.
            TypeError: a number is given as text.
        """
        if isinstance(param_group, dict):
            own = {*self.defaults, *of_class(cast(Any, type(self)))}
            refuse_options([param_group], own, first=len(self.param_groups))
        # What is not given has been checked as a default.
        if isinstance(param_group, dict) and len(param_group) > 1:
            self._check_group({**self.defaults, **param_group})
        super().add_param_group(param_group)
        try:
            self._check_storages(self.param_groups[-1])
        except (TypeError, ValueError):
            del self.param_groups[-1]
            raise

    def _check_group(self, group: dict[str, Any]) -> None:
        check_with_torch(type(self), FusedStep, group)
        check_beyond(self._beyond, group)


def _reads_as_copy(grad: torch.Tensor) -> bool:
    """Whether a gradient is one that no engine reads, and a copy of it is one that they do."""
    return grad.is_inference() or (grad.layout == torch.strided and (grad.is_conj() or grad.is_neg()))


def unhooked(step: Any, optimizer: Optimizer) -> Any:
    """A step of torch's without the hooks that torch may have wrapped around it."""
    while getattr(step, "hooked", False):
        step = step.__wrapped__.__get__(optimizer)
    return step


@Optimizer.profile_hook_step
def _observed_step(optimizer: FusedStep, closure: Callable[[], Any] | None = None, zero_grad: bool = False) -> Any:
    """The step of whatever class, some of which have their own, within hooks and under a profiler."""
    return optimizer._fused_step(closure, zero_grad)
