"""What the functions of fusedopt.functional refuse, with the list's name and before anything is written."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lists import lists_of_adam, tensors

from fusedopt import functional


@pytest.mark.parametrize(
    ("name", "change", "error", "words"),
    [
        ("grads", lambda grads: grads[:1], ValueError, r"grads has 1 entries and params 2; give one for each param"),
        ("exp_avgs", lambda _: [], ValueError, "exp_avgs has 0 entries and params 2"),
        ("exp_avg_sqs", lambda states: [states[0], None], TypeError, r"exp_avg_sqs\[1\] is None; give the tensor of"),
        ("grads", lambda grads: [None, grads[1]], TypeError, r"grads\[0\] is None"),
        ("grads", lambda grads: [1.0, grads[1]], TypeError, r"grads\[0\] is not a tensor"),
        ("params", lambda _: torch.zeros(2), TypeError, "params is a Tensor; give a list"),
        ("params", lambda params: [params[0], 1.0], TypeError, r"params\[1\] is not a tensor"),
        ("state_steps", lambda _: [1, 1], RuntimeError, r"params\[0\]: its state 'step' is not a tensor"),
        (
            "exp_avgs",
            lambda states: [states[1], states[0]],
            RuntimeError,
            r"params\[0\]: its state 'exp_avg' has shape",
        ),
        ("grads", lambda grads: grads[::-1], RuntimeError, r"params\[0\]: its gradient has shape .*; give another in"),
        ("grads", lambda grads: [g.cfloat() for g in grads], RuntimeError, r"params\[0\]: its gradient is torch.compl"),
        ("lr", lambda _: float("nan"), ValueError, "^lr is nan"),
        ("beta2", lambda _: float("nan"), ValueError, "^beta2 is nan"),
        ("beta1", lambda _: "0.9", TypeError, "^beta1 is <class 'str'>; give a number"),
        ("eps", lambda _: None, TypeError, "^eps is <class 'NoneType'>; give a number"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(name: str, change: Any, error: type[Exception], words: str) -> None:
    given = lists_of_adam()
    before = [tensor.clone() for tensor in tensors(given)]
    with pytest.raises(error, match=words):
        functional.adam(**{**given, name: change(given[name])})
    assert all(map(torch.equal, tensors(given), before))


def test_amsgrad_needs_its_list() -> None:
    with pytest.raises(ValueError, match="max_exp_avg_sqs has 0 entries"):
        functional.adam(**{**lists_of_adam(), "amsgrad": True})


def test_adafactor_says_which_list_lacks_a_state() -> None:
    rest: dict[str, Any] = {"d": 1.0, "lr": 0.1, "beta2_decay": -0.8, "weight_decay": 0.0, "eps1": None, "eps2": 1e-3}
    with pytest.raises(TypeError, match=r"col_vars\[0\] is None; give the tensor of params\[0\]"):
        functional.adafactor(
            [torch.ones(2, 3)],
            [torch.ones(2, 3)],
            [torch.zeros(2, 1)],
            [None],
            [None],
            [torch.tensor(0.0)],
            maximize=False,
            **rest,
        )


@pytest.mark.skipif("muon" not in functional.__all__, reason="torch.optim.Muon came with torch 2.9")
def test_muon_refuses_what_its_class_refuses() -> None:
    given: dict[str, Any] = {"lr": 0.1, "weight_decay": 0.0, "momentum": 0.9, "nesterov": True, "eps": 1e-7}
    given |= {"ns_coefficients": (3.4445, -4.775, 2.0315), "adjust_lr_fn": None, "has_complex": False}
    with pytest.raises(ValueError, match="Number of steps must be less than 100"):
        functional.muon([torch.eye(2)], [torch.eye(2)], [torch.zeros(2, 2)], ns_steps=100, **given)
    with pytest.raises(ValueError, match="exactly 3 values"):
        functional.muon(
            [torch.eye(2)], [torch.eye(2)], [torch.zeros(2, 2)], ns_steps=5, **{**given, "ns_coefficients": (1.0, 2.0)}
        )


@pytest.mark.parametrize("how", ["differentiable", "twice", "sparse"])
def test_torchs_code_does_not_step_what_is_to_be_skipped(how: str) -> None:
    given = lists_of_adam(1)
    if how == "twice":
        given = {name: value * 2 if isinstance(value, list) else value for name, value in given.items()}
    given["differentiable"] = how == "differentiable"
    before = [value.clone() for value in tensors(given)]
    step = functional.adam
    if how == "sparse":
        rest = {"weight_decay": 0.0, "momentum": 0.0, "dampening": 0.0, "nesterov": False}
        given = {"params": given["params"], "d_p_list": [given["grads"][0].to_sparse()], "momentum_buffer_list": [None]}
        given.update(lr=0.1, maximize=False, **rest)
        before, step = [value.clone() for value in given["params"]], functional.sgd  # type: ignore[assignment]
    for found in (1.0, 2.0, float("nan")):
        step(**given, found_inf=torch.tensor(found))
    now = given["params"] if how == "sparse" else tensors(given)
    assert all(torch.equal(one, other) for one, other in zip(now, before, strict=True))
    step(**given, found_inf=torch.tensor(0.0))
    assert not torch.equal(given["params"][0], before[0])


def test_a_new_state_needs_a_list_to_stand_in() -> None:
    param = torch.ones(2)
    rest = {"weight_decay": 0.0, "momentum": 0.5, "lr": 0.5, "dampening": 0.0, "nesterov": False, "maximize": False}
    with pytest.raises(TypeError, match="momentum_buffer_list is a tuple, which takes no new state in the place of No"):
        functional.sgd([param], [torch.ones(2)], (None,), **rest)  # type: ignore[arg-type]
    assert param.tolist() == [1.0, 1.0]
    functional.sgd([param], [torch.ones(2)], (torch.ones(2),), **rest)  # type: ignore[arg-type]
    assert param.tolist() == [0.25, 0.25]
