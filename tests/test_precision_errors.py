"""What is refused of the options for precision, by whom and in which words."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from options import steps
from runs import give
from torch.nn import Parameter

import fusedopt

REFUSED: list[tuple[dict[str, Any], torch.dtype, str]] = [
    ({"master_weights": "float16"}, torch.bfloat16, "Invalid master_weights: 'float16'; use None"),
    ({"rounding": "up"}, torch.bfloat16, "Invalid rounding: 'up'; use 'nearest'"),
    ({"rounding": "kahan", "master_weights": "float32"}, torch.bfloat16, "use one of them"),
    ({"rounding": "kahan"}, torch.float32, "rounding='kahan' is for params in 16 bits, and these are torch.float32"),
    (
        {"master_weights": "remainder"},
        torch.float16,
        "one of the params is torch.float16; use",
    ),
    ({"master_weights": "float32"}, torch.float32, "master_weights='float32' is for params in 16 bits"),
    ({"rounding_seed": -1, "rounding": "stochastic"}, torch.bfloat16, "Invalid rounding_seed: -1"),
    ({"ema_decay": 1.5}, torch.float32, "Invalid ema_decay: 1.5"),
    ({"state_dtype": "int2"}, torch.float32, "Invalid state_dtype: 'int2'; use one of float32"),
    ({"state_dtype": {"momentum": "int8"}}, torch.float32, "there is no state 'momentum'; the states are"),
]


@pytest.mark.parametrize(("options", "dtype", "text"), REFUSED, ids=[str(r[0]) for r in REFUSED])
def test_contradictions_are_refused_by_the_constructor(options: Any, dtype: torch.dtype, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        fusedopt.AdamW([Parameter(torch.ones(3, dtype=dtype))], **options)


def test_states_that_do_not_forget_are_not_coded() -> None:
    with pytest.raises(ValueError, match="'sum' is no average that forgets"):
        fusedopt.Adagrad([Parameter(torch.ones(3))], state_dtype="int8")
    with pytest.raises(ValueError, match="'ax' is no average that forgets"):
        fusedopt.ASGD([Parameter(torch.ones(3))], state_dtype="int8")


@pytest.mark.parametrize(("name", "option"), [("Adafactor", "state_dtype"), ("SparseAdam", "ema_decay")])
def test_what_an_optimizer_has_no_use_for_is_no_argument(name: str, option: str) -> None:
    with pytest.raises(TypeError, match=f"got an unexpected keyword argument '{option}'"):
        getattr(fusedopt, name)([Parameter(torch.ones(2, 2))], **{option: None})


def test_groups_added_later_are_checked() -> None:
    optimizer = fusedopt.AdamW([Parameter(torch.ones(3, dtype=torch.bfloat16))], master_weights="remainder")
    with pytest.raises(ValueError, match=r"one of the params is torch\.float16"):
        optimizer.add_param_group({"params": [Parameter(torch.ones(3, dtype=torch.float16))]})
    assert len(optimizer.param_groups) == 1


def test_steps_that_only_torch_can_make_are_refused() -> None:
    embedding = torch.nn.Embedding(5, 2, sparse=True)
    optimizer = fusedopt.SGD(embedding.parameters(), lr=0.1, ema_decay=0.9)
    embedding(torch.tensor([1])).sum().backward()
    before = embedding.weight.detach().clone()
    with pytest.raises(RuntimeError, match=r"param 0 of group 0: with its gradient it can only take torch's own step"):
        optimizer.step()
    assert torch.equal(embedding.weight.detach(), before)


def test_attached_tensors_are_checked() -> None:
    def optimizer(**options: Any) -> tuple[Any, Parameter, dict[str, Any]]:
        param = Parameter(torch.ones(5000, dtype=torch.bfloat16))
        made = steps(fusedopt.AdamW([param], **options), 1)
        return made, param, made.state[param]

    for options, key, value, text in [
        ({"master_weights": "float32"}, "master", torch.ones(3), "its state 'master' has shape"),
        (
            {"master_weights": "float32"},
            "master",
            torch.ones(5000).double(),
            "is torch.float64, which does not go with",
        ),
        ({"master_weights": "remainder"}, "remainder", torch.ones(5000), "is torch.float32, which does not go with"),
        ({"ema_decay": 0.5}, "ema", 3.0, "its state 'ema' is not a tensor"),
        ({"ema_decay": 0.5}, "ema", torch.ones(5000, device="meta"), "is not a dense tensor on cpu"),
        ({"state_dtype": "int8"}, "exp_avg_scale", None, "is missing, without which codes mean nothing"),
        ({"state_dtype": "int8"}, "exp_avg_scale", torch.ones(3), "is not a contiguous float32 tensor of 20 scales"),
        ({"state_dtype": "int4"}, "exp_avg", torch.ones(20, 64, dtype=torch.int8), r"has codes of shape \[20, 64\]"),
        ({"state_dtype": "int4"}, "exp_avg", torch.ones(19, 128, dtype=torch.int8), "not those of a param of shape"),
        (
            {"state_dtype": "int4"},
            "exp_avg",
            torch.ones(2561, dtype=torch.int8)[1:].view(20, 128),
            "has codes of shape",
        ),
    ]:
        made, param, state = optimizer(**options)  # type: ignore[arg-type]
        state[key] = value
        before = param.detach().clone()
        give(param, torch.ones(5000, dtype=torch.bfloat16))
        with pytest.raises(RuntimeError, match=text):
            made.step()
        assert torch.equal(param.detach(), before)


def test_averages_and_copies_need_to_be_asked_for() -> None:
    optimizer = fusedopt.SGD([Parameter(torch.ones(3))], lr=0.1)
    with pytest.raises(RuntimeError, match="construct the optimizer with ema_decay="), optimizer.ema_parameters():
        pass
    with pytest.raises(ValueError, match="ema_decay is None or a number from the constructor on"):
        optimizer.ema_decay = 0.5
    averaging = fusedopt.SGD([Parameter(torch.ones(3))], lr=0.1, ema_decay=0.5)
    with pytest.raises(ValueError, match="Invalid ema_decay: 2"):
        averaging.ema_decay = 2
    other = Parameter(torch.ones(3))
    with pytest.raises(ValueError, match=r"copy 0 is torch.bfloat16 of shape \[3\]"):
        optimizer.copy_params_to({other: torch.zeros(3, dtype=torch.bfloat16)})
    kahan = fusedopt.SGD([Parameter(torch.ones(3, dtype=torch.bfloat16))], lr=0.1, rounding="kahan")
    with pytest.raises(ValueError, match="copies are for float32 params"):
        kahan.copy_params_to({})


def test_torchs_step_leaves_no_copy_out() -> None:
    embedding, plain = torch.nn.Embedding(5, 2, sparse=True), Parameter(torch.ones(2))
    optimizer = fusedopt.SGD([embedding.weight, plain], lr=0.1)
    optimizer.copy_params_to({embedding.weight: torch.zeros(5, 2, dtype=torch.bfloat16)})
    embedding(torch.tensor([1])).sum().backward()
    plain.grad = torch.ones(2)
    before = embedding.weight.detach().clone()
    with pytest.raises(RuntimeError, match=r"param 0 of group 0: .* or copies; use an optimizer without these for it"):
        optimizer.step()
    assert torch.equal(embedding.weight.detach(), before)
    assert torch.equal(plain.detach(), torch.ones(2))


def test_options_become_part_of_signature_and_docstring() -> None:
    for cls in (fusedopt.AdamW, fusedopt.Lion):
        assert cls.__doc__ is not None
        assert "master_weights: " in cls.__doc__
    with pytest.raises(TypeError, match="unexpected keyword argument 'state_dtypes'"):
        fusedopt.AdamW([Parameter(torch.ones(3))], state_dtypes="int8")  # type: ignore[call-arg]
