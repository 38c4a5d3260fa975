"""What all fused optimizers share: torch.optim's class around one call into the engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any, ClassVar, cast

import torch
from torch.optim import optimizer as _torch_optimizer
from torch.optim.optimizer import Optimizer

from . import _C

Leftover = list[tuple[int, list[torch.Tensor]]]

# torch's own words for what its constructors check; groups are held to the same.
_NON_NEGATIVE = {
    "lr": "learning rate",
    "eps": "epsilon value",
    "momentum": "momentum value",
    "weight_decay": "weight_decay value",
    "alpha": "alpha value",
    "rho": "rho value",
    "lr_decay": "lr_decay value",
    "momentum_decay": "momentum_decay value",
    "initial_accumulator_value": "initial_accumulator_value value",
}


class FusedStep(Optimizer):
    """A torch.optim class, named after this one in a subclass's bases, whose `step` is one pass over memory.

    Everything but `step` is the installed torch's: constructor, checks, groups, state keys and checkpoints. Tensors
    on the CPU and on CUDA devices have engines. What none takes (sparse gradients, subclasses that dispatch, other
    devices) and whole calls that must be traced or differentiated go through torch's own step.
    """

    _rule: ClassVar[str]
    # Values of hyper-parameters that some torch versions do not keep in their groups.
    _rule_defaults: ClassVar[dict[str, float]] = {}
    # Whether torch keeps the counters of its class on the param's device, capturable or not.
    _device_counters: ClassVar[bool] = False

    # GradScaler hands us grad_scale and found_inf instead of unscaling in a pass of its own.
    _step_supports_amp_scaling = True
    # Made by the first step. Not part of __getstate__, so a copied optimizer makes its own.
    _plan: _C.Plan | None = None
    # What optimizers without a plan know of their last step.
    _skipped = False
    # The state dict being loaded, while it is.
    _loading: Mapping[str, Any] | None = None

    @property
    def step_skipped(self) -> torch.Tensor:
        """Whether the last step was skipped because a GradScaler found an infinity: a 0-dim bool tensor.

        On a GPU it stays there, and reading it is up to the caller: nothing here waits for the device.
        """
        skipped = self._plan.skipped if self._plan is not None else self._skipped
        return skipped != 0 if isinstance(skipped, torch.Tensor) else torch.tensor(skipped)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every param that has a gradient, in place.

        Args:
            closure: re-evaluates the model with gradients enabled and returns the loss.

        Returns:
            What `closure` returned, or None.

        Raises:
            RuntimeError: a gradient or a state does not fit its param. Nothing has been written then.
        """
        if torch.compiler.is_compiling():
            return self._torch_step(closure)
        # In a subclass that overrides step, torch has wrapped the override: the hooks run there.
        if self._observed() and type(self).step is FusedStep.step:
            return _observed_step(self) if closure is None else _observed_step(self, closure)
        return self._fused_step(closure)

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

    def _fused_step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        plan = self._plan
        if plan is None:
            plan = self._plan = self._make_plan()
        leftover = plan.step(self)
        if leftover:
            self._step_leftover(leftover)
            plan.step(self, engine_only=True)
        return loss

    def _read_scaling(self) -> float:
        """What to multiply gradients by, and in `_skipped` whether to skip the step, both read by the host."""
        found_inf, grad_scale = self.__dict__.get("found_inf"), self.__dict__.get("grad_scale")
        self._skipped = found_inf is not None and float(found_inf) != 0
        return 1.0 if grad_scale is None else 1.0 / float(grad_scale)

    def _make_plan(self, engine: ModuleType = _C) -> _C.Plan:
        plan: _C.Plan = engine.Plan(self._rule, self._rule_defaults, self._device_counters)
        return plan

    def _torch_step(self, closure: Callable[[], Any] | None = None) -> Any:
        """torch's own step, without the hooks torch may have wrapped around it."""
        return unhooked(super().step, self)(closure)

    def _step_leftover(self, leftover: Leftover) -> None:
        # Sparse gradients first: most of torch's optimizers refuse them, and then nothing has been written yet.
        for sparse in (True, False):
            groups = []
            for index, params in leftover:
                chosen = [p for p in params if p.grad is not None and p.grad.is_sparse == sparse]
                if chosen:
                    groups.append(self._leftover_group(self.param_groups[index], chosen, sparse))
            if groups:
                with self._only(groups), self._plain_grads(groups):
                    self._torch_step()

    def _leftover_group(self, group: dict[str, Any], params: list[torch.Tensor], sparse: bool) -> dict[str, Any]:
        group = {**group, "params": params}
        # torch's fused kernels know neither sparse gradients nor, for SGD, DTensors; its unscaling is ours here.
        if (
            sparse
            or hasattr(self, "found_inf")
            or any(type(p).__torch_dispatch__ is not _plain_dispatch for p in params)
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
    def _plain_grads(self, groups: list[dict[str, Any]]) -> Iterator[None]:
        """The gradients of `groups` as torch's step can take them: unscaled, lazy conjugations and negations done."""
        scaler: dict[str, Any] = {}
        for name in ("grad_scale", "found_inf"):
            if name in self.__dict__:
                scaler[name] = self.__dict__.pop(name)
        scale = scaler.get("grad_scale")
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

    def refresh_hyperparameters(self) -> None:
        """Send the numbers in `param_groups` to the steps that CUDA graphs have captured.

        A replay reads learning rates and their like from device memory that the optimizer owns. After a scheduler or an
        assignment changed them, call this before the replay; no new capture is needed. A learning rate given as a
        CUDA tensor needs no call: it is read where it is.

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

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of params with hyper-parameters of its own; what it leaves out comes from `defaults`.

        Args:
            param_group: a dict with "params" and any of the constructor's arguments.

        Raises:
            ValueError: a hyper-parameter is negative or NaN, or a param is in another group already.
        """
        if isinstance(param_group, dict):
            self._check_group({**self.defaults, **param_group})
        super().add_param_group(param_group)

    def _check_group(self, group: dict[str, Any]) -> None:
        for key, name in _NON_NEGATIVE.items():
            if key in group and group[key] is not _torch_optimizer.required and not group[key] >= 0:
                raise ValueError(f"Invalid {name}: {group[key]}")
        damps = group.get("dampening")  # which Muon, for one, does not have
        if group.get("nesterov") and damps is not None and (group["momentum"] <= 0 or damps != 0):
            raise ValueError("Nesterov momentum requires a momentum and zero dampening")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a checkpoint of this class or of torch.optim's.

        As torch's, but float32 state of a 16-bit param stays float32: rounding it away would cost what it was kept for.

        Args:
            state_dict: what `state_dict()` of either returned.
        """
        # The last pre-hook sees the dict as all others left it.
        handle = self.register_load_state_dict_pre_hook(_remember)
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
            self._loading = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if self._loading is None:
            return
        params = [p for group in self.param_groups for p in group["params"]]
        saved = [index for group in self._loading["param_groups"] for index in group["params"]]
        counters = _C.counters(getattr(self, "_rule", ""))
        for index, param in zip(saved, params, strict=True):
            if param.dtype not in _HALVES:
                continue
            for key, value in self._loading["state"].get(index, {}).items():
                if key == "step" or not isinstance(value, torch.Tensor):
                    continue
                # A file that torch wrote after it had loaded one may have all of them rounded.
                if value.dtype == torch.float32 or (key in counters and value.dtype in _HALVES):
                    self.state[param][key] = value.to(param.device, torch.float32)


def unhooked(step: Any, optimizer: Optimizer) -> Any:
    """A step of torch's without the hooks that torch may have wrapped around it."""
    while getattr(step, "hooked", False):
        step = step.__wrapped__.__get__(optimizer)
    return step


def _remember(optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
    cast(FusedStep, optimizer)._loading = state_dict


_HALVES = (torch.bfloat16, torch.float16)
_plain_dispatch = torch.Tensor.__torch_dispatch__


@Optimizer.profile_hook_step
def _observed_step(optimizer: FusedStep, closure: Callable[[], Any] | None = None) -> Any:
    """The step of whatever class, some of which have their own, within hooks and under a profiler."""
    return optimizer._fused_step(closure)
