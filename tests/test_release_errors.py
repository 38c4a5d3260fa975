"""What stepping in backward cannot do is refused with the reason; ending it leaves nothing behind."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support import assert_identical, give_grads, make_params, snapshot
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

import fusedopt


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1))


def backward(model: nn.Module, factor: float = 1.0) -> None:
    (model(torch.linspace(-1, 1, 12).reshape(3, 4)).sum() * factor).backward()


def released(**kwargs: Any) -> tuple[nn.Sequential, fusedopt.SGD]:
    model = network()
    optimizer = fusedopt.SGD(model.parameters(), lr=0.1, **kwargs)
    fusedopt.step_in_backward(model, optimizer)
    return model, optimizer


class Overriding(fusedopt.SGD):
    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


class Averaging(DistributedDataParallel):
    def __init__(self, module: nn.Module) -> None:
        nn.Module.__init__(self)  # the rest needs a process group
        self.module = module


class Sign(fusedopt.GenericOptimizer):
    pass


def clipping(model: nn.Module) -> fusedopt.SGD:
    optimizer = fusedopt.SGD(model.parameters(), lr=0.1)
    optimizer.max_grad_norm = 0.5
    return optimizer


REFUSED: dict[str, tuple[Callable[[nn.Module], Any], type[Exception], str]] = {
    "torch": (
        lambda model: torch.optim.SGD(model.parameters()),
        TypeError,
        r"torch\.optim\.sgd\.SGD cannot step in backward; use an optimizer of fusedopt's",
    ),
    "generic": (
        lambda model: Sign(model.parameters(), {"lr": 0.1}),
        TypeError,
        r"Sign cannot step in backward; use an optimizer of fusedopt's",
    ),
    "LBFGS": (
        lambda model: fusedopt.LBFGS(model.parameters()),
        TypeError,
        "LBFGS cannot step in backward: its direction is made of the gradients of all params together",
    ),
    "joint": (
        lambda model: fusedopt.Prodigy(model.parameters()),
        TypeError,
        "Prodigy cannot step in backward: its step is made of sums over the gradients of all params",
    ),
    "overriding": (
        lambda model: Overriding(model.parameters(), lr=0.1),
        TypeError,
        r"Overriding overrides step\(\), which updates in backward would pass by",
    ),
    "clipping": (clipping, ValueError, "max_grad_norm=0.5 needs the norm of all gradients"),
    "differentiable": (
        lambda model: fusedopt.Adam(
            [{"params": model[0].parameters()}, {"params": model[2].parameters(), "differentiable": True}]  # type: ignore[index]
        ),
        ValueError,
        r"param_groups\[1\] is differentiable, and .* set 'differentiable' to False",
    ),
    "other params": (
        lambda model: fusedopt.SGD(make_params(), lr=0.1),
        ValueError,
        r"none of the optimizer's params is a param of the model .* of model.parameters\(\)",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_optimizers_that_cannot(name: str) -> None:
    make, kind, match = REFUSED[name]
    model = network()
    optimizer = make(model)
    with pytest.raises(kind, match=match):
        fusedopt.step_in_backward(model, optimizer)
    assert not any(param._post_accumulate_grad_hooks for param in model.parameters())
    assert not optimizer._optimizer_step_pre_hooks


@pytest.mark.parametrize(
    ("wrap", "match"),
    [
        (Averaging, "model is a DistributedDataParallel, which averages gradients"),
        (lambda model: nn.Sequential(Averaging(model)), "its module '0' is a DistributedDataParallel"),
    ],
    ids=["model", "module"],
)
def test_gradients_that_are_averaged_later(wrap: Callable[[nn.Module], nn.Module], match: str) -> None:
    model = network()
    with pytest.raises(ValueError, match=match):
        fusedopt.step_in_backward(wrap(model), fusedopt.SGD(model.parameters(), lr=0.1))


def read_later(param: Tensor) -> Callable[[], None]:
    """Hang up a hook behind the param's own, as packages do that average gradients; what takes it down."""
    accumulates: Any = param.view_as(param).grad_fn.next_functions[0][0]  # type: ignore[union-attr]
    kept = [accumulates, accumulates.register_hook(lambda *_: None)]
    return kept.clear


def test_gradients_that_are_read_once_they_are_final() -> None:
    words = "param 3 of group 0 has a hook that reads its gradient after it is accumulated and so after it would be"
    model = network()
    optimizer = fusedopt.SGD(model.parameters(), lr=0.1)
    take_down = read_later(model[2].bias)
    with pytest.raises(ValueError, match=words):
        fusedopt.step_in_backward(model, optimizer)
    assert not any(param._post_accumulate_grad_hooks for param in model.parameters())
    take_down()
    with fusedopt.step_in_backward(model, optimizer):
        take_down = read_later(model[2].bias)
        bias = model[2].bias.detach().clone()
        with pytest.raises(RuntimeError, match=words):
            backward(model)
        assert_identical(model[2].bias.detach(), bias)
        take_down()
        model.zero_grad()
        backward(model)
        assert all(param.grad is None for param in model.parameters())


def test_what_is_no_model() -> None:
    with pytest.raises(TypeError, match=r"model is a list; give the torch.nn.Module"):
        fusedopt.step_in_backward([], fusedopt.SGD(make_params(), lr=0.1))  # type: ignore[arg-type]


def test_clipping_that_is_set_later() -> None:
    model, optimizer = released()
    optimizer.max_grad_norm = 0.5
    before = snapshot(optimizer)
    with pytest.raises(ValueError, match=r"max_grad_norm=0.5 needs the norm of all gradients"):
        backward(model)
    with pytest.raises(ValueError, match=r"max_grad_norm=0.5 needs the norm of all gradients"):
        optimizer.step()
    assert_identical(snapshot(optimizer), before)
    optimizer.max_grad_norm = None
    backward(model)
    assert not torch.equal(next(model.parameters()), before[0][0])


def test_differentiable_that_is_set_later() -> None:
    model, optimizer = released()
    before = snapshot(optimizer)
    optimizer.param_groups[0]["differentiable"] = True
    with pytest.raises(ValueError, match=r"param_groups\[0\] is differentiable"):
        backward(model)
    assert_identical(snapshot(optimizer), before)


@pytest.mark.parametrize("by_keyword", [False, True], ids=["positional", "keyword"])
def test_closures(by_keyword: bool) -> None:
    _, optimizer = released()
    before = snapshot(optimizer)
    with pytest.raises(RuntimeError, match=r"step\(closure\) while params are stepped in backward"):
        optimizer.step(closure=lambda: 0.0) if by_keyword else optimizer.step(lambda: 0.0)
    assert_identical(snapshot(optimizer), before)
    optimizer.step(None)
    optimizer.step(closure=None)


@pytest.mark.parametrize("unscale", [False, True], ids=["step", "unscale and step"])
def test_grad_scaler(unscale: bool) -> None:
    model, optimizer = released()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    for again in (False, True):  # and again: the first refusal leaves nothing behind that would be another reason
        scaler.scale(model(torch.ones(4)).sum()).backward()
        if unscale and not again:
            scaler.unscale_(optimizer)
        with pytest.raises(
            RuntimeError, match=r"a GradScaler called step\(\) while .* load the weights anew and train in"
        ):
            scaler.step(optimizer)
        assert not {"grad_scale", "found_inf"} & vars(optimizer).keys()
        optimizer.step()


def test_handles_that_are_removed_leave_unscaling_to_the_scaler_again() -> None:
    optimizer: Any = fusedopt.SGD(
        [*(one := torch.nn.Linear(4, 1)).parameters(), *(two := torch.nn.Linear(4, 1)).parameters()]
    )
    handles = [fusedopt.step_in_backward(model, optimizer) for model in (one, two)]
    assert optimizer._step_supports_amp_scaling
    handles[0].remove()
    handles[0].remove()
    assert optimizer._step_supports_amp_scaling
    handles[1].remove()
    assert not optimizer._step_supports_amp_scaling


def test_grad_scaler_that_is_switched_off() -> None:
    model, optimizer = released()
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    scaler.scale(model(torch.ones(4)).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert all(param.grad is None for param in model.parameters())


@pytest.mark.parametrize("names", [False, True], ids=["unnamed", "named"])
def test_errors_name_the_param(names: bool) -> None:
    model = network()
    params: list[Any] = list(model.named_parameters()) if names else list(model.parameters())
    optimizer = fusedopt.AdamW([{"params": params[:1]}, {"params": params[1:]}])
    fusedopt.step_in_backward(model, optimizer)
    backward(model)
    optimizer.state[model[2].weight]["exp_avg"] = torch.zeros(3)
    label = r"param 1 of group 1 \('2.weight'\)" if names else "param 1 of group 1"
    with pytest.raises(RuntimeError, match=rf"^{label}: its state 'exp_avg' has shape"):
        backward(model)
    optimizer.param_groups[1]["lr"] = "fast"
    with pytest.raises(Exception, match=r"param_groups\[1\]\['lr'\]"):
        backward(model)


def test_optimizer_that_was_freed() -> None:
    model, optimizer = released()
    del optimizer
    before = [param.detach().clone() for param in model.parameters()]
    with pytest.raises(
        RuntimeError, match=r"the SGD that step_in_backward was given has been freed.* keep the optimizer"
    ):
        backward(model)
    assert_identical([param.detach() for param in model.parameters()], before)
    model.zero_grad()
    backward(model)  # as if nothing had been
    assert all(param.grad is not None for param in model.parameters())


@pytest.mark.parametrize("remove", [False, True], ids=["kept", "removed"])
def test_no_reference_cycles(remove: bool) -> None:
    """Deleting the optimizer frees it, and deleting the model frees its params, without the garbage collector."""
    gc.collect()
    gc.disable()
    try:
        model = network()
        optimizer = fusedopt.AdamW(model.parameters())
        handle = fusedopt.step_in_backward(model, optimizer)
        backward(model)
        refs = [
            weakref.ref(thing) for thing in (optimizer, model[0].weight, optimizer.state[model[0].weight]["exp_avg"])
        ]
        if remove:
            handle.remove()
        del optimizer
        assert [ref() is None for ref in refs] == [True, False, True]
        del model
        assert refs[1]() is None
    finally:
        gc.enable()


def test_removing_brings_the_usual_loop_back() -> None:
    model = network()
    optimizer = fusedopt.AdamW(model.parameters())
    handle = fusedopt.step_in_backward(model, optimizer)
    backward(model)
    handle.remove()
    handle.remove()
    before = snapshot(optimizer)
    backward(model)
    assert_identical(snapshot(optimizer), before)
    optimizer.step(lambda: None)
    assert optimizer.state[model[0].weight]["step"] == 2


def test_copies_step_as_usual() -> None:
    model, optimizer = released(momentum=0.9)
    backward(model)
    twin = copy.deepcopy(model)
    backward(twin)
    assert all(param.grad is not None for param in twin.parameters())
    for copied in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        params = copied.param_groups[0]["params"]
        before = [param.detach().clone() for param in params]
        give_grads(params, 0)
        copied.step(lambda: None)
        assert not any(map(torch.equal, params, before))


def test_hooks_run_around_step_alone() -> None:
    model, optimizer = released()
    calls: list[str] = []
    handles = [
        register_optimizer_step_pre_hook(lambda *_: calls.append("global pre")),
        register_optimizer_step_post_hook(lambda *_: calls.append("global post")),
    ]
    optimizer.register_step_pre_hook(lambda *_: calls.append("pre"))
    optimizer.register_step_post_hook(lambda *_: calls.append("post"))
    try:
        backward(model)
        assert calls == []
        optimizer.step()
        assert calls == ["global pre", "pre", "post", "global post"]
    finally:
        for handle in handles:
            handle.remove()


def test_a_profiler_sees_each_update() -> None:
    model, optimizer = released()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        backward(model)
        optimizer.step()
    counts = {event.key: event.count for event in profile.key_averages()}
    assert counts["Optimizer.step_in_backward#SGD"] == 4
    assert counts["Optimizer.step#SGD.step"] == 1


def test_a_hook_that_comes_first_may_take_the_gradient() -> None:
    model = network()

    def take(param: Tensor) -> None:
        param.grad = None

    model[0].weight.register_post_accumulate_grad_hook(take)
    optimizer = fusedopt.SGD(model.parameters(), lr=0.1)
    fusedopt.step_in_backward(model, optimizer)
    before = model[0].weight.detach().clone()
    backward(model)
    assert torch.equal(model[0].weight, before)


@pytest.mark.parametrize(
    "norm", [lambda params: fusedopt.clip_grad_norm_(params, 1.0), fusedopt.local_grad_norm], ids=["clip", "local"]
)
def test_norms_of_gradients_that_are_gone(norm: Callable[[Any], Any]) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    optimizer = fusedopt.SGD(model[1].parameters(), lr=0.1)
    handle = fusedopt.step_in_backward(model, optimizer)
    with handle.accumulate():
        model(torch.ones(3)).sum().backward()
        norm(model.parameters())
    model(torch.ones(3)).sum().backward()
    norm(model[0].parameters())
    with pytest.raises(ValueError, match=r"parameters\[2\] is stepped in backward, which frees its gradient: the norm"):
        norm(model.parameters())
    with pytest.raises(ValueError, match=r"parameters\[0\] is stepped in backward"):
        norm(model[1].weight)
    handle.remove()
    norm(model.parameters())
    freed = fusedopt.step_in_backward(model, fusedopt.SGD(model.parameters(), lr=0.1))
    gc.collect()
    norm(model.parameters())
    freed.remove()
