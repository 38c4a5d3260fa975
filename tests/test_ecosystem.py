"""Wrappers and trainers that take an optimizer apart: sharded state, Lookahead, SAM, what frameworks do."""

from __future__ import annotations

import copy
import inspect
import math
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import ONE_PER_OPTIMIZER, Case
from support import assert_close, assert_identical, clone_params, give_grads, make_params, params_of, snapshot, train
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer

import fusedopt
from fusedopt._core.standalone import Standalone

Make = Callable[..., Optimizer]


def both(case: Case, run: Callable[[Make], list[Tensor]]) -> None:
    """The same training, once with our optimizer and once with torch's for-loop."""
    ours, torchs = run(case.ours), run(case.torchs)
    for p, q in zip(ours, torchs, strict=True):
        torch.testing.assert_close(p, q)
    if case.optimizer != "RAdamScheduleFree":  # whose first steps are silent
        assert any(not torch.equal(p, q) for p, q in zip(ours, make_params(), strict=False))


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
        pytest.skip("needs gloo")
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("case", ONE_PER_OPTIMIZER, ids=str)
def test_zero_redundancy_optimizer(case: Case) -> None:
    from torch.distributed.optim import ZeroRedundancyOptimizer

    shapes = [(5, 7), (9,), (67,)]
    cls = getattr(fusedopt, case.optimizer)
    sharded = ZeroRedundancyOptimizer(make_params(shapes), optimizer_class=cls, **case.kwargs)
    torchs = case.torchs(make_params(shapes))
    assert type(sharded.optim) is cls
    for optimizer in (sharded, torchs):
        train(optimizer)
    sharded.consolidate_state_dict()
    file = copy.deepcopy(sharded.state_dict())
    resumed = ZeroRedundancyOptimizer(clone_params(params_of(sharded)), optimizer_class=cls, **case.kwargs)
    resumed.load_state_dict(file)
    sharded.add_param_group({"params": make_params(seed=1)})
    torchs.add_param_group({"params": make_params(seed=1)})
    for optimizer in (sharded, resumed, torchs):
        for group in optimizer.param_groups[: None if case.joint else 1]:
            group["lr"] = 0.03  # what a scheduler writes into the wrapper must reach the shard
        train(optimizer, 2, first=3)
    for p, q in zip(params_of(sharded), params_of(torchs), strict=True):
        torch.testing.assert_close(p, q)
    for p, q in zip(params_of(resumed), params_of(torchs), strict=False):
        torch.testing.assert_close(p, q)


class Lookahead(Optimizer):
    """Slow weights after every k-th step; shares groups with the optimizer it wraps and, as usual, skips `__init__`."""

    def __init__(self, base: Optimizer, alpha: float = 0.5, k: int = 3) -> None:
        self._optimizer_step_pre_hooks = OrderedDict()
        self._optimizer_step_post_hooks = OrderedDict()
        self._base = base
        self.param_groups, self.defaults = base.param_groups, base.defaults
        own = {"alpha": alpha, "k": k, "calls": 0}
        self.defaults.update(own)
        self.state = defaultdict(dict)
        for group in self.param_groups:
            for key, value in own.items():
                group.setdefault(key, value)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = self._base.step(closure)
        for group in self.param_groups:
            group["calls"] += 1
            if group["calls"] % group["k"]:
                continue
            for p in group["params"]:
                state = self._base.state[p]
                slow = state.setdefault("slow", p.clone())
                slow.add_(p - slow, alpha=group["alpha"])
                p.copy_(slow)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._base.load_state_dict(state_dict)
        self.param_groups = self._base.param_groups

    def state_dict(self) -> dict[str, Any]:
        return self._base.state_dict()


@pytest.mark.parametrize("case", ONE_PER_OPTIMIZER, ids=str)
def test_lookahead(case: Case) -> None:
    def run(make: Make) -> list[Tensor]:
        optimizer = Lookahead(make(make_params()))
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        for i in range(7):
            train(optimizer, 1, first=i)
            schedule.step()
            if i == 3:
                optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        assert isinstance(optimizer._base.state[params_of(optimizer)[0]]["slow"], Tensor)
        return params_of(optimizer)

    both(case, run)


class SAM(Optimizer):
    """Sharpness-aware minimisation: climb, take the gradient there, return by way of `p.data`, step the base."""

    def __init__(self, params: Any, base: Make, rho: float = 0.05) -> None:
        super().__init__(params, {"rho": rho})
        self.base = base(self.param_groups)
        self.param_groups = self.base.param_groups

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        with torch.enable_grad():
            loss = closure()
        norm = torch.stack([p.grad.norm() for p in params_of(self) if p.numel()]).norm()
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["before"] = p.data
                p.data = p + p.grad * (group["rho"] / norm)
        with torch.enable_grad():
            closure()
        for p in params_of(self):
            p.data = self.state[p]["before"]
        self.base.step()
        return loss


@pytest.mark.parametrize("case", ONE_PER_OPTIMIZER, ids=str)
def test_sam(case: Case) -> None:
    def run(make: Make) -> list[Tensor]:
        params = make_params()
        optimizer = SAM(params, make)

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = torch.stack([(p.cos() * p).sum() for p in params]).sum()
            loss.backward()
            return loss

        losses = [optimizer.step(closure) for _ in range(5)]
        assert optimizer.base.param_groups[0]["rho"] == 0.05  # its own key rides along in our group
        return [*params, *losses]

    both(case, run)


class AcceleratedOptimizer(Optimizer):
    """accelerate's manner: delegates everything, and replaces `step` on the instance while the scaler calls it."""

    def __init__(self, optimizer: Optimizer, scaler: torch.amp.GradScaler) -> None:
        self.optimizer, self.scaler, self.calls = optimizer, scaler, 0
        self.original = optimizer.step
        # Devices may have changed: state travels through a state dict.
        optimizer.load_state_dict(optimizer.state_dict())

    def patched(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return self.original(*args, **kwargs)

    state = property(lambda self: self.optimizer.state)
    param_groups = property(lambda self: self.optimizer.param_groups)
    defaults = property(lambda self: self.optimizer.defaults)

    def step(self, closure: Any = None) -> None:
        self.optimizer.step = self.patched
        self.scaler.step(self.optimizer, closure)
        self.scaler.update()
        self.optimizer.step = self.original


@pytest.mark.parametrize("case", ONE_PER_OPTIMIZER, ids=str)
def test_wrapper_with_a_scaler_and_a_scheduler(case: Case) -> None:
    def run(make: Make) -> list[Tensor]:
        optimizer = AcceleratedOptimizer(make(make_params()), torch.amp.GradScaler("cpu", init_scale=64.0))
        schedule = torch.optim.lr_scheduler.StepLR(optimizer.optimizer, 2)
        optimizer.original = optimizer.optimizer.step  # the scheduler's wrapper, which counts the calls
        for i in range(6):
            params = params_of(optimizer)
            give_grads(params, i)
            for p in params:
                p.grad.mul_(math.inf if i == 2 else optimizer.scaler.scale(torch.tensor(1.0)))
            optimizer.step()
            schedule.step()
        # Which is how accelerate knows that the overflow was none.
        assert optimizer.calls == 5
        return params_of(optimizer)

    both(case, run)


class LightningOptimizer:
    """Lightning's manner: a class made on the fly from ours, its attributes copied, its `step` going by a strategy."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.__dict__ = {key: value for key, value in optimizer.__dict__.items() if key not in ("step", "__del__")}
        name, bases = f"Lightning{type(optimizer).__name__}", (LightningOptimizer, type(optimizer))
        self.__class__ = type(name, bases, {})
        self._optimizer = optimizer

    def step(self, closure: Any = None) -> Any:
        return self._optimizer.step(closure=partial(self._wrapped, closure))

    def _wrapped(self, closure: Any) -> Any:
        return closure()


@pytest.mark.parametrize("case", ONE_PER_OPTIMIZER, ids=str)
def test_lightning_loop(case: Case) -> None:
    def run(make: Make) -> list[Tensor]:
        params = make_params()
        optimizer = make(params)
        calls: list[str] = []
        optimizer.register_step_post_hook(lambda *_: calls.append("hook"))
        wrapped: Any = LightningOptimizer(optimizer)
        assert isinstance(wrapped, type(optimizer))
        assert wrapped.param_groups is optimizer.param_groups
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)

        def closure() -> Tensor:
            wrapped.zero_grad()
            loss = torch.stack([(p**2).sum() for p in params]).sum()
            loss.backward()
            nn.utils.clip_grad_norm_(params, 1.0)
            return loss

        for i in range(6):
            assert wrapped.step(closure).requires_grad
            schedule.step()
            if i == 2:  # moving state to a device rebuilds every dict and tensor
                for p, state in optimizer.state.items():
                    optimizer.state[p] = {k: v.clone() if isinstance(v, Tensor) else v for k, v in state.items()}
        assert calls == ["hook"] * 6
        return params

    both(case, run)


@pytest.mark.parametrize("case", ONE_PER_OPTIMIZER, ids=str)
def test_wrapper_that_reassigns_groups_and_state(case: Case) -> None:
    def run(make: Make) -> list[Tensor]:
        optimizer = make(make_params())
        train(optimizer, 2)
        # One group per param, as per-layer schedules make them, and a plain dict for state.
        group = optimizer.param_groups[0]
        each = enumerate(group["params"])
        optimizer.param_groups = [{**group, "params": [p], **case.own(0.01 * (i + 1))} for i, p in each]
        optimizer.state = dict(optimizer.state)
        train(optimizer, 2, first=2)
        # And back, as flattening wrappers do on saving.
        optimizer.param_groups[:] = [{**group, "params": params_of(optimizer)}]
        train(optimizer, 2, first=4)
        return params_of(optimizer)

    both(case, run)


def test_a_state_that_is_no_defaultdict_takes_new_params() -> None:
    ours = fusedopt.AdamW(make_params()[:2])
    train(ours, 1)
    ours.state = dict(ours.state)
    ours.add_param_group({"params": make_params()[2:]})
    train(ours, 1)
    assert len(ours.state) == 5


@pytest.mark.parametrize("name", [case.optimizer for case in ONE_PER_OPTIMIZER])
def test_dispatch_on_the_class(name: str) -> None:
    """Factories and trainers look classes up by name, walk the hierarchy, and build from `defaults`."""
    cls = getattr(fusedopt, name)
    optimizer = cls(make_params(), lr=0.1)
    assert optimizer.__class__.__name__ == name
    assert cls.__module__.startswith("fusedopt")
    assert getattr(torch.optim, name, Standalone) in cls.__mro__
    assert issubclass(cls, Optimizer)
    # DeepSpeed, PEFT and others rebuild an optimizer from the class and the defaults of a live one.
    arguments = {k: v for k, v in optimizer.defaults.items() if k in inspect.signature(cls).parameters}
    again = type(optimizer)(make_params(), **arguments)
    train(optimizer)
    train(again)
    assert_identical(snapshot(again), snapshot(optimizer))


@pytest.mark.parametrize("case", ONE_PER_OPTIMIZER, ids=str)
def test_parametrizations_and_functional_models(case: Case) -> None:
    def run(make: Make) -> list[Tensor]:
        torch.manual_seed(2)
        model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), nn.Linear(3, 2))
        optimizer = make(model.parameters())
        for _ in range(4):
            optimizer.zero_grad()
            values = {name: p * 1 for name, p in model.named_parameters()}
            torch.func.functional_call(model, values, (torch.randn(8, 4),)).square().mean().backward()
            optimizer.step()
        return list(model.parameters())

    both(case, run)


@pytest.mark.parametrize("case", ONE_PER_OPTIMIZER, ids=str)
def test_params_swapped_under_the_optimizer(case: Case) -> None:
    """`swap_tensors` and `p.data = ...` put new memory behind the same object, as offloading and quantisation do."""
    ours, torchs = case.ours(make_params()), case.torchs(make_params())
    train(ours)
    train(torchs)
    for optimizer in (ours, torchs):
        for i, p in enumerate(params_of(optimizer)):
            fresh = Parameter(p.detach().clone())
            if i % 2:
                p.grad = None
                torch.utils.swap_tensors(p, fresh)
            else:
                p.data = fresh.data
        train(optimizer, 2, first=3)
    assert_close(ours, torchs)


@pytest.mark.parametrize("options", [{}, {"ema_decay": 0.9}, {"master_weights": "float32"}])
def test_sums_of_adagrad_in_shared_memory(options: dict[str, Any]) -> None:
    """As processes that step without locks have them; with an option the states have not begun by then."""
    dtype = torch.bfloat16 if "master_weights" in options else torch.float32
    params = [Parameter(torch.full((4, 3), 1.5, dtype=dtype)) for _ in "ab"]
    shared, plain = (fusedopt.Adagrad([p], initial_accumulator_value=0.5, **options) for p in params)
    shared.share_memory()
    assert shared.state[params[0]]["sum"].is_shared()
    for _ in range(3):
        for p in params:
            p.grad = torch.full_like(p, 0.3)
        shared.step()
        plain.step()
    assert shared.state[params[0]]["sum"].is_shared()
    assert_identical(params[0], params[1])
    assert_identical(shared.state[params[0]], plain.state[params[1]])
