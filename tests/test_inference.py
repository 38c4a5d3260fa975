"""Tensors of inference mode: gradients are read, params and states refused as torch refuses them."""

from __future__ import annotations

from typing import Any

import prototypes
import pytest
import torch
from lives import SUBJECTS, Subject, fresh, stepped, visible
from support import assert_identical, params_of
from torch import Tensor
from torch.nn import Parameter

import fusedopt

STEPPED = [s for s in SUBJECTS if s.name != "LBFGS"]
every_class = pytest.mark.parametrize("subject", STEPPED, ids=lambda s: s.name)


def _made_in_inference(tensor: Tensor) -> Tensor:
    with torch.inference_mode():
        made = tensor.detach().clone()
    assert made.is_inference()
    return made


def _step(s: Subject, optimizer: Any, inference: bool, **kwargs: Any) -> None:
    generator = torch.Generator().manual_seed(3)
    for p in params_of(optimizer):
        grad = s.grad(p, generator)
        p.grad = _made_in_inference(grad) if inference else grad
    optimizer.step(**kwargs)


@every_class
def test_gradients_are_read(subject: Subject) -> None:
    ours, plain = (stepped(subject, subject.ours) for _ in range(2))
    for optimizer, inference in ((ours, True), (plain, False)):
        _step(subject, optimizer, inference)
    assert all(p.grad.is_inference() for p in params_of(ours))
    if subject.name in ("Muon", "SparseAdam"):  # torch's own step takes them
        torch.testing.assert_close(visible(subject, ours)[0], visible(subject, plain)[0])
    else:
        assert_identical(visible(subject, ours), visible(subject, plain))


OPTIONS: list[dict[str, Any]] = [
    {"ema_decay": 0.9},
    {"state_dtype": "int8"},
    {"max_grad_norm": 0.1},
    {"rounding": "stochastic", "state_dtype": "bfloat16"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_gradients_are_read_with_options(options: dict[str, Any]) -> None:
    ends = []
    for inference in (True, False):
        param = Parameter(torch.linspace(-1, 1, 5000))
        optimizer = fusedopt.AdamW([param], **options)
        for _ in range(2):
            _step(Subject("AdamW", fusedopt.AdamW, fusedopt.AdamW), optimizer, inference, zero_grad=True)
            assert param.grad is not None
            assert not param.grad.any()
        ends.append([param.detach(), dict(optimizer.state[param])])
    torch.testing.assert_close(*ends) if "max_grad_norm" in options else assert_identical(*ends)


def test_gradients_are_read_in_backward() -> None:
    model = torch.nn.Linear(3, 1)
    optimizer = fusedopt.Lion(model.parameters())
    before = model.weight.detach().clone()

    def hook(param: Tensor) -> None:
        param.grad = _made_in_inference(torch.ones_like(param))

    model.weight.register_post_accumulate_grad_hook(hook)
    fusedopt.step_in_backward(model, optimizer)
    model(torch.ones(3)).sum().backward()
    assert not torch.equal(model.weight, before)


@every_class
def test_params_and_states_are_refused_in_torchs_words(subject: Subject) -> None:
    text = "Inplace update to inference tensor outside InferenceMode is not allowed"
    optimizer = stepped(subject, subject.ours)
    before = [p.detach().clone() for p in params_of(optimizer)]
    states = optimizer.state.get(params_of(optimizer)[0], {})
    kept = [key for key, value in states.items() if isinstance(value, Tensor) and key != "ema"]
    if kept:
        states[kept[-1]] = _made_in_inference(states[kept[-1]])
        with pytest.raises(RuntimeError, match=text):
            _step(subject, optimizer, inference=False)
        assert_identical([p.detach() for p in params_of(optimizer)], before)
    optimizer = fresh(subject, lambda params, **kwargs: subject.ours(map(_made_in_inference, params), **kwargs))
    with torch.inference_mode():
        for p in params_of(optimizer):
            p.grad = subject.grad(p, torch.Generator())
    with pytest.raises(RuntimeError, match=text):
        optimizer.step()


def test_a_python_rule_clears_gradients_made_in_inference_mode() -> None:
    param = Parameter(torch.ones(3))
    with torch.inference_mode():
        param.grad = torch.ones(3)
    prototypes.Adam([param]).step(zero_grad=True)
    assert param.grad is not None
    assert not param.grad.any()
    assert (param < 1).all()
