"""GenericOptimizer: checkpoints, GradScaler, and what is refused before anything is written."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from prototypes import Adam, KeepsFloat32
from support import (
    assert_close,
    assert_identical,
    clone_params,
    give_grads,
    make_params,
    outcome,
    params_of,
    save_and_load,
    snapshot,
    train,
    versions,
)
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

import fusedopt
from fusedopt import GenericOptimizer, WeightDecay

INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64], ids=str)
@pytest.mark.parametrize("cls", [Adam, KeepsFloat32])
def test_resumed_run_is_bit_identical(cls: type[Adam], dtype: torch.dtype) -> None:
    whole = cls(make_params(dtype=dtype), lr=0.1, weight_decay=WeightDecay(0.1), maximize=True)
    train(whole)
    file = save_and_load(whole.state_dict())
    resumed = cls(clone_params(params_of(whole)), lr=9.0, weight_decay=WeightDecay(9.0))
    resumed.load_state_dict(file)
    assert_identical(resumed.state_dict(), whole.state_dict())
    train(whole, 2, first=3)
    train(resumed, 2, first=3)
    assert_identical(snapshot(resumed), snapshot(whole))


def test_float32_files_are_converted_for_rules_that_keep_the_params_dtype() -> None:
    source, target = Adam(make_params()), Adam(make_params(dtype=torch.bfloat16))
    train(source)
    target.load_state_dict(source.state_dict())
    train(target)
    assert {s["exp_avg"].dtype for s in target.state.values()} == {torch.bfloat16}


class KeepsMore(Adam):
    """Tensors in lists, tuples and dicts, and text."""

    def init_state(self, state: dict[str, Any], group: dict[str, Any], param: Tensor) -> None:
        super().init_state(state, group, param)
        state["last"] = [torch.zeros_like(param, dtype=torch.float32), torch.zeros_like(param)]
        state["by name"] = {"sum": torch.zeros_like(param, dtype=torch.float32), "of": "gradients", "sizes": (1, 2)}
        state["phase"] = "warm"

    def step_param(self, state: dict[str, Any], group: dict[str, Any], grad: Tensor, param: Tensor) -> None:
        super().step_param(state, group, grad, param)
        state["last"][0].copy_(grad / 3)
        state["by name"]["sum"] += grad / 3
        state.setdefault("late", (torch.zeros_like(param, dtype=torch.float32),))[0].add_(grad.float() / 3)
        state["phase"] = "hot" if grad.numel() else "cold"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64], ids=str)
def test_what_is_inside_of_a_state_is_not_rounded_and_text_stays(dtype: torch.dtype) -> None:
    """torch brings tensors in lists and dicts to the param's dtype too, and makes a generator's name of a text."""
    source, target = KeepsMore(make_params(dtype=dtype)), KeepsMore(make_params(dtype=dtype))
    train(source)
    target.load_state_dict(save_and_load(source.state_dict()))
    assert_identical(target.state_dict(), source.state_dict())
    state = target.state[params_of(target)[0]]
    assert (state["last"][0].dtype, state["late"][0].dtype) == (torch.float32, torch.float32)
    assert (state["phase"], state["by name"]["of"], state["by name"]["sizes"]) == ("hot", "gradients", (1, 2))


def test_a_file_is_let_go_once_loaded() -> None:
    source, target = Adam(make_params()), Adam(make_params(dtype=torch.float64))
    train(source)
    file = save_and_load(source.state_dict())
    loaded = weakref.ref(file["state"][0]["exp_avg"])
    target.load_state_dict(file)
    del file
    assert loaded() is None


def test_files_go_to_torch_and_back() -> None:
    ours = Adam(make_params(), lr=0.01, weight_decay=WeightDecay(0.1))
    train(ours)
    torchs = torch.optim.AdamW(clone_params(params_of(ours)), foreach=False)
    torchs.load_state_dict(save_and_load(ours.state_dict()))
    back = Adam(clone_params(params_of(ours)), weight_decay=WeightDecay(0.0))
    back.load_state_dict(save_and_load(torchs.state_dict()))
    train(torchs, 3, first=3)
    train(back, 3, first=3)
    assert_close(back, torchs)


def test_loading_leaves_the_given_dict_alone() -> None:
    source = Adam(make_params(), weight_decay=WeightDecay(0.1))
    train(source)
    given = source.state_dict()
    expected = copy.deepcopy(given)
    ours = Adam(make_params(), weight_decay=WeightDecay(0.1))
    ours.load_state_dict(given)
    ours.param_groups[0]["lr"] = 9.0
    assert_identical(given, expected)


def test_files_without_what_was_added_since() -> None:
    ours, target = Adam(make_params(), lr=0.01), Adam(make_params(), lr=0.02, weight_decay=WeightDecay(0.5))
    train(ours)
    file = copy.deepcopy(ours.state_dict())
    del file["param_groups"][0]["maximize"], file["param_groups"][0]["eps"]
    for state in file["state"].values():
        state["step"] = int(state["step"])
    target.load_state_dict(file)
    group = target.param_groups[0]
    assert {k: v for k, v in group.items() if k != "params"} == {
        "lr": 0.01,
        "betas": (0.9, 0.999),
        "maximize": False,
        "eps": 1e-8,
        "weight_decay": 0.5,
    }
    assert_identical([s["step"] for s in target.state.values()], [torch.tensor(3.0)] * 5)


def test_restored_state_without_a_counter_is_kept() -> None:
    ours = Adam([Parameter(torch.ones(2))], lr=0.0)
    (p,) = params_of(ours)
    ours.state[p]["exp_avg"] = torch.ones(2)
    p.grad = torch.ones(2)
    ours.step()
    assert ours.state[p]["exp_avg"].tolist() == [1.0, 1.0]
    assert ours.state[p]["step"].item() == 1.0


def test_param_names_travel() -> None:
    def named(prefix: str) -> Adam:
        return Adam([(f"{prefix}{i}", p) for i, p in enumerate(make_params())])

    source, target = named("a"), named("b")
    train(source)
    target.load_state_dict(save_and_load(source.state_dict()))
    assert target.param_groups[0]["param_names"] == [f"a{i}" for i in range(5)]


def test_step_follows_the_default_dtype() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        ours = Adam(make_params(dtype=torch.float64))
        train(ours)
        assert {s["step"].dtype for s in ours.state.values()} == {torch.float64}
    finally:
        torch.set_default_dtype(torch.float32)


def scaled_backward(optimizer: Optimizer, scale: torch.amp.GradScaler, seed: int, factor: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    optimizer.zero_grad()
    loss = sum((p * torch.randn(p.shape, generator=generator)).sum() for p in params_of(optimizer))
    scale.scale(loss * factor).backward()


@pytest.mark.parametrize("make_scaler", [torch.amp.GradScaler, fusedopt.GradScaler])
def test_a_run_with_overflows_equals_torchs(make_scaler: Callable[..., torch.amp.GradScaler]) -> None:
    ours = Adam(make_params(), lr=0.01, weight_decay=WeightDecay(0.1))
    torchs = torch.optim.AdamW(make_params(), lr=0.01, weight_decay=0.1, foreach=False)
    scales = [make("cpu", init_scale=256.0, growth_interval=2) for make in (make_scaler, torch.amp.GradScaler)]
    for i in range(8):
        for optimizer, scale in zip((ours, torchs), scales, strict=True):
            scaled_backward(optimizer, scale, i, INF if i in (0, 1, 4) else 1.0)
            if i == 5:
                scale.unscale_(optimizer)
            scale.step(optimizer)
            scale.update()
        assert scales[0].get_scale() == scales[1].get_scale()
        # torch's does not call what it skips.
        assert ours.step_skipped.item() is (make_scaler is fusedopt.GradScaler and i in (0, 1, 4))
        assert_close(ours, torchs)
    assert not hasattr(ours, "found_inf")


@pytest.mark.parametrize("found", [1.0, 2.0, 0.5, -1.0, INF, NAN])
@pytest.mark.parametrize("shape", [(), (1,)], ids=str)
def test_a_skipped_step_changes_nothing(shape: tuple[int, ...], found: float) -> None:
    ours: Any = Adam(make_params(), weight_decay=WeightDecay(0.1))
    for first in (True, False):
        give_grads(params_of(ours), 0)
        ours.found_inf, ours.grad_scale = torch.full(shape, found), torch.full(shape, 2.0)
        before, counters = snapshot(ours), versions(ours)
        ours.step()
        assert (ours.step_skipped.dtype, ours.step_skipped.shape) == (torch.bool, ())
        assert ours.step_skipped.item() is True
        assert_identical(snapshot(ours), before)
        assert versions(ours) == counters
        assert bool(ours.state) is not first
        del ours.found_inf, ours.grad_scale
        train(ours, 2)
        assert ours.step_skipped.item() is False


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.complex64], ids=str)
@pytest.mark.parametrize("found", [None, 0.0, -0.0])
def test_unscaled_then_negated_then_decayed(found: float | None, dtype: torch.dtype) -> None:
    def make() -> Any:
        decay = WeightDecay(0.5, decoupled=False)
        return Adam(make_params(dtype=dtype), lr=0.1, eps=1e-3, weight_decay=decay, maximize=True)

    ours, expected = make(), make()
    for i in range(3):
        give_grads(params_of(ours), i)
        give_grads(params_of(expected), i)
        for p in params_of(ours):
            p.grad.mul_(1024)  # a power of two, so that bits can be compared
        copies = [p.grad.clone() for p in params_of(ours)]
        ours.grad_scale = torch.tensor(1024.0)
        ours.found_inf = None if found is None else torch.tensor([found])
        ours.step()
        expected.step()
        assert_identical([p.grad for p in params_of(ours)], copies)
    assert_identical(snapshot(ours), snapshot(expected))


TWO = torch.tensor([0.5, 0.5])
BAD = {
    "lr": ({"lr": -1.0}, "Invalid learning rate: -1.0"),
    "lr-nan": ({"lr": NAN}, "Invalid learning rate: nan"),
    "lr-tensor": ({"lr": torch.tensor(-1.0)}, "Invalid learning rate: -1.0"),
    "lr-of-two": ({"lr": TWO}, "Tensor lr must be 1-element"),
    "eps": ({"eps": -1e-8}, "Invalid epsilon value: -1e-08"),
    "eps-nan": ({"eps": NAN}, "Invalid epsilon value: nan"),
    "beta1": ({"betas": (1.0, 0.9)}, "Invalid beta parameter at index 0: 1.0"),
    "beta1-negative": ({"betas": (-0.1, 0.9)}, "Invalid beta parameter at index 0: -0.1"),
    "beta2-nan": ({"betas": (0.9, NAN)}, "Invalid beta parameter at index 1: nan"),
}


@pytest.mark.parametrize(("kwargs", "text"), BAD.values(), ids=BAD)
def test_bad_hyper_parameters_in_torchs_words(kwargs: dict[str, Any], text: str) -> None:
    # The params are no better, and looked at later.
    theirs = outcome(lambda: torch.optim.Adam([], **kwargs))
    assert theirs is not None
    assert outcome(lambda: Adam([], **kwargs)) == theirs
    with pytest.raises(ValueError, match=text):
        Adam([], **kwargs)
    ours = Adam(make_params(), weight_decay=WeightDecay())
    with pytest.raises(ValueError, match=text):
        ours.add_param_group({"params": make_params(seed=1), **kwargs})
    assert len(ours.param_groups) == 1


def test_betas_and_eps_that_torch_stumbles_over() -> None:
    with pytest.raises(ValueError, match=r"Tensor betas\[1\] must be 1-element"):
        Adam(make_params(), betas=(torch.tensor(0.5), TWO))
    with pytest.raises(TypeError, match="eps is None; give a number"):
        Adam(make_params(), eps=None)
    with pytest.raises(TypeError, match=r"lr is '0\.1'; give a number"):
        Adam(make_params(), lr="0.1")
    with pytest.raises(TypeError, match=r"betas is 0\.9; give several numbers"):
        Adam(make_params(), betas=0.9)


@pytest.mark.parametrize("value", [-0.1, NAN, torch.tensor(-0.1)])
def test_bad_weight_decay(value: Any) -> None:
    with pytest.raises(ValueError, match="Invalid weight_decay value: "):
        WeightDecay(value)
    ours = Adam(make_params(), weight_decay=WeightDecay(0.1))
    with pytest.raises(ValueError, match="Invalid weight_decay value: "):
        ours.add_param_group({"params": make_params(seed=1), "weight_decay": value})
    assert len(ours.param_groups) == 1


def test_contradictory_weight_decay() -> None:
    with pytest.raises(ValueError, match="absolute=True contradicts decoupled=False: an absolute decay shrinks"):
        WeightDecay(0.1, decoupled=False, absolute=True)
    with pytest.raises(TypeError, match=r"weight_decay is 0\.1; give a WeightDecay"):
        Adam(make_params(), weight_decay=0.1)
    with pytest.raises(ValueError, match="among the defaults and in a WeightDecay; give the latter alone"):
        GenericOptimizer(make_params(), {"lr": 0.1, "weight_decay": 0.1}, weight_decay=WeightDecay(0.1))
    with pytest.raises(ValueError, match="scaled by lr, which is missing; add it or set absolute=True"):
        GenericOptimizer(make_params(), {}, weight_decay=WeightDecay(0.1))
    for decay in (WeightDecay(0.1, decoupled=False), WeightDecay(0.1, absolute=True)):
        GenericOptimizer(make_params(), {}, weight_decay=decay)


def test_the_given_defaults_are_not_changed() -> None:
    defaults = {"lr": 0.1}
    for _ in range(2):
        GenericOptimizer(make_params(), defaults, weight_decay=WeightDecay(0.1))
    assert defaults == {"lr": 0.1}


def refused(ours: Adam, error: type[Exception], text: str, steps_before: int) -> None:
    """`ours` refuses to step and is what it was, whether or not it has state."""
    before, counters, states = snapshot(ours), versions(ours), len(ours.state)
    with pytest.raises(error, match=text):
        ours.step()
    assert_identical(snapshot(ours), before)
    assert versions(ours) == counters
    assert len(ours.state) == states == (5 if steps_before else 0)


class Advised(Adam):
    sparse_advice = "since its ranks are dense"


class Bare(Adam):
    sparse_advice = ""


SPARSE = {
    Adam: "^Adam does not support sparse gradients, please consider SparseAdam instead$",
    Advised: "^Advised does not support sparse gradients, since its ranks are dense$",
    Bare: "^Bare does not support sparse gradients$",
}


@pytest.mark.parametrize("steps_before", [0, 1])
@pytest.mark.parametrize(("cls", "text"), SPARSE.items(), ids=lambda x: getattr(x, "__name__", ""))
def test_sparse_gradients_are_refused(cls: type[Adam], text: str, steps_before: int) -> None:
    ours = cls([{"params": make_params()[:4]}, {"params": [Parameter(torch.eye(3))]}], weight_decay=WeightDecay(0.1))
    train(ours, steps_before)
    give_grads(params_of(ours), 0)
    params_of(ours)[4].grad = torch.eye(3).to_sparse()
    refused(ours, RuntimeError, text, steps_before)


@pytest.mark.parametrize("steps_before", [0, 1])
def test_gradients_that_do_not_fit(steps_before: int) -> None:
    ours = Adam(make_params())
    train(ours, steps_before)
    give_grads(params_of(ours), 0)
    p = params_of(ours)[1]
    p.data = torch.zeros(4)
    refused(ours, RuntimeError, r"param 1 of group 0: its gradient has shape \(9,\), the param \(4,\)", steps_before)
    p.data = torch.zeros(9, dtype=torch.complex64)
    text = r"param 1 of group 0: its gradient is torch\.float32, the param torch\.complex64"
    refused(ours, RuntimeError, text, steps_before)


def test_an_init_state_that_fails_leaves_no_state() -> None:
    class Failing(Adam):
        def init_state(self, state: dict[str, Any], group: dict[str, Any], param: torch.Tensor) -> None:
            if param.numel() == 67:
                raise MemoryError("no room")
            super().init_state(state, group, param)

    ours = Failing(make_params(), weight_decay=WeightDecay(0.1))
    give_grads(params_of(ours), 0)
    refused(ours, MemoryError, "no room", 0)


def test_a_subclass_without_step_param_is_told_what_to_write() -> None:
    class Forgetful(Adam):
        step_param = GenericOptimizer.step_param

    ours = Forgetful(make_params(), weight_decay=WeightDecay(0.1))
    give_grads(params_of(ours), 0)
    text = r"^Forgetful lacks step_param\(self, state, group, grad, param\): write there how grad changes state"
    refused(ours, NotImplementedError, text, 0)


def test_a_rule_without_state_needs_no_init_state() -> None:
    class Descent(GenericOptimizer):
        def step_param(self, state: Any, group: Any, grad: torch.Tensor, param: torch.Tensor) -> None:
            param.sub_(grad)

    ours = Descent([Parameter(torch.ones(2))], {})
    train(ours)
    assert [list(s) for s in ours.state.values()] == [["step"]]
