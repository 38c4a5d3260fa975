"""Schedule-Free optimizers change between the point that is trained and the average, whatever completes the params."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from options import OPTIONS, steps
from runs import random_gradients, train
from support import EMULATED, assert_identical, params_of, save_and_load, snapshot
from torch.nn import Parameter

import fusedopt

CLASSES = [fusedopt.AdamWScheduleFree, fusedopt.RAdamScheduleFree, fusedopt.SGDScheduleFree]
every_class = pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
KWARGS: dict[str, Any] = {"lr": 0.1, "weight_decay": 0.1}


def make(cls: Any, dtype: torch.dtype = torch.float32, **kwargs: Any) -> Any:
    generator = torch.Generator().manual_seed(3)
    values = [torch.randn(shape, generator=generator).to(dtype) for shape in ((5, 7), (), (3, 1700))]
    more = {"betas": (0.9, 0.7)} if cls is fusedopt.RAdamScheduleFree else {}
    return cls([Parameter(v) for v in values], **{**KWARGS, **more, **kwargs})


def beta1(optimizer: Any) -> float:
    group = optimizer.param_groups[0]
    return float(group["betas"][0] if "betas" in group else group["momentum"])


def values(optimizer: Any) -> list[torch.Tensor]:
    return [p.detach().clone() for p in params_of(optimizer)]


@every_class
def test_the_average_is_that_of_all_z(cls: Any) -> None:
    """Weighed by the largest learning rate so far, squared, through a schedule of it."""
    optimizer = make(cls, torch.float64)
    sums = [torch.zeros_like(p) for p in params_of(optimizer)]
    total = 0.0
    for step, rate in enumerate((0.05, 0.2, 0.1, 0.3, 0.0, 0.01)):
        optimizer.param_groups[0]["lr"] = rate
        train(optimizer, random_gradients(params_of(optimizer), 1, step))
        weight = float(optimizer.state[params_of(optimizer)[0]]["lr_max"]) ** 2
        total += weight
        for p, x in zip(params_of(optimizer), sums, strict=True):
            x.add_(optimizer.state[p]["z"], alpha=weight)
    optimizer.eval()
    for p, x in zip(params_of(optimizer), sums, strict=True):
        torch.testing.assert_close(p.detach(), x / total, rtol=1e-6, atol=1e-6)


@every_class
def test_many_steps_weigh_evenly(cls: Any) -> None:
    """Counters are float32, in which a sum of equal weights comes to stand still."""
    optimizer = make(cls)
    steps(optimizer, 3)
    for state in optimizer.state.values():
        for key, value in {"step": 1e8 - 1, "newest_share": 1 / (1e8 - 1), "lr_max": 0.1}.items():
            state[key].fill_(value)
    steps(optimizer, 1)
    assert all(float(s["newest_share"]) == pytest.approx(1e-8, rel=1e-6) for s in optimizer.state.values())


def exact(optimizer: Any) -> list[torch.Tensor]:
    """As the next step will see them: in float32, whatever completes them."""
    file = copy.deepcopy(optimizer)
    made = []
    for p in params_of(file):
        state = file.state[p]
        value = p.detach().float()
        if "master" in state:
            value = state["master"]
        elif "remainder" in state:
            value = (value.view(torch.int32) + state["remainder"].int()).view(torch.float32)
        elif "compensation" in state:
            value = value + state["compensation"].float()
        made.append(value.clone())
    return made


HALF = [options for options in OPTIONS if torch.bfloat16 in options.dtypes and not options.codes]


@pytest.mark.parametrize("options", [*HALF, None], ids=str)
@every_class
def test_there_and_back(cls: Any, options: Any) -> None:
    """The average is as exact as the params are kept, and going there and back leaves what a rounding takes."""
    optimizer = steps(make(cls, torch.bfloat16 if options else torch.float32, **(options.kwargs if options else {})))
    weight = 1 - 1 / beta1(optimizer)
    before = exact(optimizer)
    z = [optimizer.state[p]["z"].float() for p in params_of(optimizer)]
    optimizer.eval()
    kept = options and any(name in optimizer.state[params_of(optimizer)[0]] for name in ("master", "remainder"))
    place = 1e-6 if kept or not options else 2e-4 if options.name == "kahan" else 2e-2
    for x, y, end in zip(exact(optimizer), before, z, strict=True):
        torch.testing.assert_close(x, y.lerp(end, weight), rtol=place, atol=place)
    for p, x in zip(params_of(optimizer), exact(optimizer), strict=True):
        assert "compensation" in optimizer.state[p] or torch.equal(p.detach(), x.to(p.dtype))
    averaged = snapshot(optimizer)
    optimizer.eval()
    assert_identical(snapshot(optimizer), averaged)
    optimizer.train()
    for y, again in zip(before, exact(optimizer), strict=True):
        torch.testing.assert_close(again, y, rtol=2 * place, atol=2 * place)
    steps(optimizer, 1)


@every_class
def test_steps_are_refused_while_params_are_the_average(cls: Any) -> None:
    optimizer = steps(make(cls))
    optimizer.eval()
    before = snapshot(optimizer)
    with pytest.raises(RuntimeError, match=r"step\(\) was called after eval\(\), .*; call train\(\)"):
        optimizer.step()
    with pytest.raises(RuntimeError, match=r"step\(\) was called after eval\(\)"):
        optimizer.step(lambda: pytest.fail("the closure ran"))
    handle = fusedopt.step_in_backward(torch.nn.ParameterList(params_of(optimizer)), optimizer)
    with pytest.raises(RuntimeError, match=r"backward stepped a param after eval\(\)"):
        sum(p.sum() for p in params_of(optimizer)).backward()
    handle.remove()
    assert_identical(snapshot(optimizer), before)
    optimizer.train()
    steps(optimizer, 1)


@every_class
@pytest.mark.parametrize("averaged", [False, True], ids=["train", "eval"])
def test_a_checkpoint_of_either_mode_goes_on(cls: Any, averaged: bool) -> None:
    whole = steps(make(cls))
    if averaged:
        whole.eval()
    file = save_and_load(whole.state_dict())
    assert file["param_groups"][0]["train_mode"] is not averaged
    resumed = make(cls)
    for p, value in zip(params_of(resumed), values(whole), strict=True):
        p.data.copy_(value)
    resumed.load_state_dict(file)
    if averaged:
        with pytest.raises(RuntimeError, match="call train"):
            resumed.step()
    for optimizer in (whole, resumed, again := copy.deepcopy(resumed)):
        optimizer.train()
        steps(optimizer, 3, seed=5)
    assert_identical(snapshot(resumed), snapshot(whole))
    assert_identical(snapshot(again), snapshot(whole))


@every_class
def test_params_without_a_step_are_their_own_average(cls: Any) -> None:
    optimizer = make(cls)
    before = values(optimizer)
    optimizer.eval()
    optimizer.add_param_group({"params": [Parameter(torch.ones(2))]})
    assert [group["train_mode"] for group in optimizer.param_groups] == [False, False]
    assert_identical(values(optimizer)[:3], before)
    optimizer.train()
    assert all(group["train_mode"] for group in optimizer.param_groups)
    steps(optimizer, 1)


@every_class
def test_copies_in_fewer_bits_follow(cls: Any) -> None:
    optimizer = make(cls)
    copies = {p: torch.zeros_like(p, dtype=torch.bfloat16) for p in params_of(optimizer)}
    optimizer.copy_params_to(copies)
    steps(optimizer, 2)
    for turn in (optimizer.eval, optimizer.train):
        turn()
        for p, its in copies.items():
            assert_identical(its, p.detach().bfloat16())


@every_class
def test_the_average_of_y_is_no_place_to_change_modes(cls: Any) -> None:
    optimizer = steps(make(cls, ema_decay=0.5))
    with optimizer.ema_parameters(), pytest.raises(RuntimeError, match=r"train\(\) or eval\(\) was called inside ema"):
        optimizer.eval()


@pytest.mark.parametrize("value", [0.0, 1.0, -0.5], ids=str)
def test_x_is_between_others(value: float) -> None:
    params = [Parameter(torch.zeros(2))]
    with pytest.raises(ValueError, match="momentum"):
        fusedopt.SGDScheduleFree(params, momentum=value)
    for cls in CLASSES[:2]:
        with pytest.raises(ValueError, match=r"betas\[0\]|beta parameter at index 0"):
            cls(params, betas=(value, 0.9))  # type: ignore[operator]


@pytest.mark.skipif(EMULATED, reason="it is about the host's loop")
def test_a_gradient_scaler_may_skip_steps() -> None:
    optimizer = make(fusedopt.AdamWScheduleFree, fused=True)
    before = values(optimizer)
    for p in params_of(optimizer):
        p.grad = torch.full_like(p, torch.inf)
    scaler = fusedopt.GradScaler("cpu", init_scale=4.0)
    scaler.scale(torch.zeros(()))
    scaler.step(optimizer)
    assert_identical(values(optimizer), before)


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize("storage", ["float32", "float16"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64, torch.complex128], ids=str)
@every_class
def test_a_state_in_fewer_bits_leaves_the_params_what_they_are(cls: Any, dtype: torch.dtype, storage: str) -> None:
    optimizer = make(cls, dtype, state_dtype={"z": storage})
    train(optimizer, random_gradients(params_of(optimizer), 8, 1))
    y, z = values(optimizer), [optimizer.state[p]["z"].to(dtype) for p in params_of(optimizer)]
    near = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.complex64 else {"rtol": 1e-12, "atol": 1e-12}
    optimizer.eval()
    for p, before, its in zip(params_of(optimizer), y, z, strict=True):
        torch.testing.assert_close(p.detach(), before.lerp(its, 1 - 1 / beta1(optimizer)), **near)
    optimizer.train()
    for p, before in zip(params_of(optimizer), y, strict=True):
        torch.testing.assert_close(p.detach(), before, **near)
