"""Optimizers whose rule is written in Python, for prototypes: no compiler, no fusion, the same manners."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import optimizer as _torch_optimizer
from torch.optim.optimizer import Optimizer, ParamsT

from .._core.arguments import check_common
from .._core.averaging import AveragedStep
from .._core.gradients import clear_grads
from .._core.max_grad_norm import ClippedStep
from .._core.precision import HALVES, exact_param
from .._core.restored import differs, restored
from .._core.scaling import ScaledStep
from .weight_decay import WeightDecay

# What torch has a complex dtype for, so that two of them can be stored as one number.
_PAIRABLE = (torch.float32, torch.float64, torch.float16)


class GenericOptimizer(AveragedStep, ClippedStep, ScaledStep):
    r"""A torch.optim.Optimizer whose subclass says, in Python, what one step does to one param.

    The subclass writes `step_param` and, if it keeps state, `init_state`. Groups, checkpoints, hooks, closures and
    GradScaler are seen to here. For each param that has a gradient, `state["step"]` is incremented, the gradient is
    unscaled, negated if the group maximizes, decayed, and handed to `step_param`.

    Complex params, their gradients and states come to the subclass as real tensors with a last dimension of 2;
    checkpoints have them complex, as torch's have. Sparse gradients are refused with the class's `sparse_advice`.
    `copy` and `pickle` carry what torch's do, groups and state: keep a subclass's own settings among the defaults.

    Args:
        params: tensors, (name, tensor) pairs or dicts of groups.
        defaults: the subclass's hyper-parameters, which each group may change. Those named as torch names them are
            checked: lr, eps, momentum, weight_decay :math:`\ge 0`, each of betas in :math:`[0, 1)`.
        weight_decay: how params decay; None leaves that to the subclass. Default: None.
        maximize: ascend. Default: False.
        max_grad_norm: scale gradients before the step so that the norm of all together is at most this; `.grad` stays
            as it is. Default: None.
        ema_decay: keep a moving average of the params with this factor, for `ema_parameters()`. Default: None.
        master_weights: "float32" hands the subclass a float32 copy of each param in 16 bits to step, kept as "master"
            in its state, and rounds that to the param. Default: None.

    Raises:
        ValueError: a hyper-parameter or an option is out of range or given twice, or a decay has no learning rate to
            scale it.
        TypeError: `weight_decay` is a number, which does not say how it is applied.

    Example:
        >>> class Signum(fusedopt.GenericOptimizer):
        ...     def __init__(self, params, lr=0.1, momentum=0.9, weight_decay=0.0):
        ...         defaults = {"lr": lr, "momentum": momentum}
        ...         super().__init__(params, defaults, weight_decay=fusedopt.WeightDecay(weight_decay))
        ...
        ...     def init_state(self, state, group, param):
        ...         state["exp_avg"] = torch.zeros_like(param)
        ...
        ...     def step_param(self, state, group, grad, param):
        ...         state["exp_avg"].lerp_(grad, 1 - group["momentum"])
        ...         param.sub_(state["exp_avg"].sign(), alpha=group["lr"])
        >>> param = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        >>> optimizer = Signum([param], lr=0.5)
        >>> param.grad = torch.tensor([4.0, -0.25])
        >>> optimizer.step()
        >>> param.tolist()
        [0.5, 2.5]
    """

    # Ends the refusal; a subclass may name another way out, or give a reason.
    sparse_advice: ClassVar[str] = "please consider SparseAdam instead"
    _decay: WeightDecay | None = None
    _master = False
    _skipped = False
    # The state dict being loaded, while it is.
    _loading: Mapping[str, Any] | None = None

    def __init__(
        self,
        params: ParamsT,
        defaults: dict[str, Any],
        *,
        weight_decay: WeightDecay | None = None,
        maximize: bool = False,
        max_grad_norm: float | None = None,
        ema_decay: float | None = None,
        master_weights: str | None = None,
    ) -> None:
        if master_weights not in (None, "float32"):
            raise ValueError(f"Invalid master_weights: {master_weights!r}; use None or 'float32'")
        self._average_with(ema_decay)
        self.max_grad_norm = max_grad_norm
        self._master = master_weights is not None
        defaults = dict(defaults)
        if weight_decay is not None:
            if not isinstance(weight_decay, WeightDecay):
                raise TypeError(f"weight_decay is {weight_decay!r}; give a WeightDecay, which says how it acts")
            if "weight_decay" in defaults:
                raise ValueError("weight_decay is among the defaults and in a WeightDecay; give the latter alone")
            defaults["weight_decay"] = weight_decay.weight_decay
        defaults.setdefault("maximize", maximize)
        self._decay = weight_decay
        # As in torch's constructors, before the params are looked at.
        self.check_group(defaults)
        super().__init__(params, defaults)

    def init_state(self, state: dict[str, Any], group: dict[str, Any], param: Tensor) -> None:
        """Put into `state` what one param needs before its first step; nothing, unless a subclass says otherwise.

        Runs when the param first has a gradient, and on a `state` that is thrown away when torch has converted a tensor
        of a checkpoint: the dtype given here is then the right one.

        Args:
            state: has "step", a 0-dim tensor that this class keeps; "ema" and "master" are the options'.
            group: the hyper-parameters.
            param: not to be written here.
        """

    def step_param(self, state: dict[str, Any], group: dict[str, Any], grad: Tensor, param: Tensor) -> None:
        """Step one param: update `state` and `param` in place.

        Args:
            state: what `init_state` made; its "step" counts this step already.
            group: the hyper-parameters.
            grad: unscaled, negated to maximize and decayed; a copy that may be written or kept.
            param: to be written in place.

        Raises:
            NotImplementedError: the subclass has not written it.
        """
        raise self._lacks_step_param()

    def check_group(self, group: Mapping[str, Any]) -> None:
        """Refuse bad hyper-parameters, of the defaults and of each new group; a subclass may add its own.

        Args:
            group: all hyper-parameters of a group.

        Raises:
            ValueError: one is negative, NaN or a tensor of more than one element, or a beta is not below 1.
            TypeError: one is text or None.
        """
        check_common(group)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of params with hyper-parameters of its own; what it leaves out comes from `defaults`.

        Args:
            param_group: a dict with "params" and any of the hyper-parameters.

        Raises:
            ValueError: a hyper-parameter is out of range, or a param is in another group already.
        """
        if isinstance(param_group, dict):
            group = {**self.defaults, **param_group}
            self.check_group(group)
            if self._decay is not None and self._decay.decoupled and not self._decay.absolute and "lr" not in group:
                raise ValueError(
                    "decoupled weight decay is scaled by lr, which is missing; add it or set absolute=True"
                )
        super().add_param_group(param_group)

    @property
    def step_skipped(self) -> Tensor:
        """Whether the last step was skipped because a GradScaler found an infinity: a 0-dim bool tensor.

        With `fusedopt.GradScaler`, that is; torch's unscales gradients itself and does not call what it skips.
        """
        return torch.tensor(self._skipped, device="cpu")

    def step(self, closure: Callable[[], Any] | None = None, *, zero_grad: bool = False) -> Any:
        """Update every param that has a gradient, in place.

        Args:
            closure: re-evaluates the model with gradients enabled and returns the loss. Default: None.
            zero_grad: set gradients to zero afterwards, also those of a step that is skipped. Default: False.

        Returns:
            What `closure` returned, or None.

        Raises:
            RuntimeError: a gradient is sparse or does not fit its param, or params are their average at the moment.
                Nothing has been written then.
            ValueError: the subclass keeps an "ema" or a "master" beside the option's of that name.
            NotImplementedError: the subclass has no `step_param`. Nothing has been written then.
        """
        # In a subclass that overrides step, torch has wrapped the override: the hooks run there.
        step = _observed_step if type(self).step is GenericOptimizer.step else GenericOptimizer._step
        given: dict[str, Any] = {"zero_grad": True} if zero_grad else {}
        return step(self, **given) if closure is None else step(self, closure, **given)

    # torch wraps the step of every class that does not say it is wrapped, and an override's hooks would run twice.
    step.hooked = True  # type: ignore[attr-defined]

    def _step(self, closure: Callable[[], Any] | None = None, zero_grad: bool = False) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            found_inf, scale = getattr(self, "found_inf", None), getattr(self, "grad_scale", None)
            # GradScaler sums over devices: more than 1 is an overflow too.
            self._skipped = found_inf is not None and float(found_inf) != 0
            norm, divisor = self._clip()
            scale = scale if divisor is None else divisor
            if not self._skipped:
                self._update(None if scale is None else float(scale))
            self.grad_norm = norm
        if zero_grad:
            clear_grads(self.param_groups)
        return loss

    def _update(self, scale: float | None) -> None:
        if getattr(self.step_param, "__func__", None) is GenericOptimizer.step_param:
            raise self._lacks_step_param()
        with_grad = [
            (group, p, self._checked_grad(p, f"param {i} of group {g}"))
            for g, group in enumerate(self.param_groups)
            for i, p in enumerate(group["params"])
            if p.grad is not None
        ]
        # All states are made before any is entered, so that a failing init_state leaves the optimizer as it was.
        new = [(p, self._new_state(group, p)) for group, p, _ in with_grad if "step" not in self.state.get(p, {})]
        for p, made in new:
            state = self.state.setdefault(p, {})
            for key, value in made.items():
                state.setdefault(key, _stored(value, p))
        for group, p, grad in with_grad:
            self._update_param(group, p, grad, scale)

    def _lacks_step_param(self) -> NotImplementedError:
        return NotImplementedError(
            f"{type(self).__name__} lacks step_param(self, state, group, grad, param): write there how grad changes "
            "state and, in place, param"
        )

    def _checked_grad(self, p: Tensor, label: str) -> Tensor:
        grad = p.grad
        assert grad is not None
        if grad.layout is not torch.strided:
            advice = self.sparse_advice and f", {self.sparse_advice}"
            raise RuntimeError(f"{type(self).__name__} does not support sparse gradients{advice}")
        if grad.shape != p.shape:
            found, wanted = tuple(grad.shape), tuple(p.shape)
            raise RuntimeError(f"{label}: its gradient has shape {found}, the param {wanted}; set .grad anew")
        if grad.is_complex() != p.is_complex():
            raise RuntimeError(f"{label}: its gradient is {grad.dtype}, the param {p.dtype}; convert the gradient")
        return grad

    def _new_state(self, group: dict[str, Any], p: Tensor) -> dict[str, Any]:
        state = {"step": torch.tensor(0.0, dtype=_torch_optimizer._get_scalar_dtype(), device="cpu")}
        exact = p.detach().float() if self._has_master(p) else p
        self.init_state(state, group, _real(exact))
        self._refuse_kept(state, master=exact is not p)
        if exact is not p:
            state["master"] = exact
        return state

    def _refuse_kept(self, state: Mapping[str, Any], master: bool) -> None:
        """Raise ValueError for what a subclass keeps by a name that an option has in the same state."""
        for key, option, given in (
            ("ema", "ema_decay", self.ema_decay is not None),
            ("master", "master_weights", master),
        ):
            if given and key in state:
                raise ValueError(
                    f"{type(self).__name__} keeps {key!r} in a param's state, where {option} keeps its own by that "
                    "name; rename it"
                )

    def _has_master(self, p: Tensor) -> bool:
        return self._master and p.dtype in HALVES

    def _update_param(self, group: dict[str, Any], p: Tensor, given: Tensor, scale: float | None) -> None:
        state, param, given = self.state[p], _real(p), _real(given.resolve_conj())
        if self._has_master(p):
            if "master" not in state:  # in a file of an optimizer that kept none
                state["master"] = p.detach().float()
            param, given = state["master"], given.float()
            param.copy_(exact_param(p, "master", param))
        averaged = "ema" in state
        self._step_real(group, p, param, given, scale)
        if not averaged:
            self._refuse_kept(state, master=False)
        if param is state.get("master"):
            p.copy_(param)
        if self.ema_decay is not None:
            wide = _real(param).float() if p.dtype in HALVES else _real(param)
            if "ema" in state:
                _real(state["ema"]).lerp_(wide, 1 - self.ema_decay)
            else:
                state["ema"] = _stored(wide.clone(), p)

    def _step_real(self, group: dict[str, Any], p: Tensor, param: Tensor, given: Tensor, scale: float | None) -> None:
        """Hand on what `step_param` steps, `param`: real numbers, of the param p or what stands for it."""
        state = self.state[p]
        state["step"] += 1
        grad = given if scale is None else given / scale
        if group["maximize"]:
            grad = -grad
        if self._decay is not None:
            grad = self._decay.apply(param, grad, group)
        # Written or kept as state by step_param, p.grad would change under backward, clipping or zero_grad.
        grad = grad.clone() if grad is given else grad
        if not p.is_complex():
            self.step_param(state, group, grad, param)
            return
        handed = {key: _real(value) for key, value in state.items()}
        seen = dict(handed)
        self.step_param(seen, group, grad, param)
        for key in [key for key in state if key not in seen]:
            del state[key]
        state.update({key: _stored(value, p) for key, value in seen.items() if value is not handed.get(key)})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a checkpoint of this class, or of one that keeps the same state.

        As torch's, but tensors of state, also those in its lists and dicts, have the dtypes that `init_state` gives,
        not all that of their param; text stays text; a master and an average are float32.

        Args:
            state_dict: what `state_dict()` returned.
        """
        self._refuse_while_averaged("load_state_dict() was called")
        # The last pre-hook sees the dict as all others left it.
        handle = self.register_load_state_dict_pre_hook(_remember)
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
            self._loading = None

    def __getstate__(self) -> dict[str, Any]:
        own = {"_decay": self._decay, "_master": self._master}
        return {**super().__getstate__(), **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            for key, value in self.defaults.items():
                # torch adds this one to the defaults when it loads; no group of ours has it.
                if key != "differentiable":
                    group.setdefault(key, value)
            for p in group["params"]:
                step = self.state.get(p, {}).get("step")
                if step is not None and not isinstance(step, Tensor):
                    self.state[p]["step"] = torch.tensor(
                        float(step), dtype=_torch_optimizer._get_scalar_dtype(), device="cpu"
                    )
        if self._loading is not None:
            self._restore_dtypes(self._loading)

    def _restore_dtypes(self, saved: Mapping[str, Any]) -> None:
        """Undo torch's conversion of state to the param's dtype where the subclass keeps another."""
        for group, saved_group in zip(self.param_groups, saved["param_groups"], strict=True):
            for p, index in zip(group["params"], saved_group["params"], strict=True):
                kept = {key: value for key, value in saved["state"].get(index, {}).items() if key != "step"}
                # Under a master that the file may lack, a subclass keeps what it keeps for float32.
                if not kept or not (self._has_master(p) or any(differs(kept[k], self.state[p][k]) for k in kept)):
                    continue
                with torch.no_grad():
                    fresh = self._new_state(group, p)
                for key, value in kept.items():
                    self.state[p][key] = restored(value, self.state[p][key], fresh.get(key), self._has_master(p))


def _real(value: Any) -> Any:
    """A complex tensor as a real one of pairs, over the same memory; anything else as it is."""
    return torch.view_as_real(value) if isinstance(value, Tensor) and value.is_complex() else value


def _stored(value: Any, p: Tensor) -> Any:
    """State in the shape of a complex param's pairs as complex numbers, which is how torch's checkpoints have it."""
    pairs = p.is_complex() and isinstance(value, Tensor) and value.dtype in _PAIRABLE and value.shape == (*p.shape, 2)
    if not pairs:
        return value
    try:
        return torch.view_as_complex(value)
    except RuntimeError:  # the two halves of a number are not neighbours
        return torch.view_as_complex(value.contiguous())


def _remember(optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
    assert isinstance(optimizer, GenericOptimizer)
    optimizer._loading = state_dict


_observed_step = Optimizer.profile_hook_step(GenericOptimizer._step)
