"""Bad input gets a sentence that names the param and the remedy, and nothing has been written when it comes."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import ONE_PER_OPTIMIZER, Case, named
from support import EMULATED

import fusedopt
from fusedopt import _C

ADAMW = named("adamw")


def snapshot(params: list[torch.Tensor], optimizer: torch.optim.Optimizer) -> list[Any]:
    state = [(list(s), [v.clone() if torch.is_tensor(v) else v for v in s.values()]) for s in optimizer.state.values()]
    return [[p.detach().clone() for p in params], [p._version for p in params], state]


def assert_unchanged(before: list[Any], after: list[Any]) -> None:
    assert str(before) == str(after)


def grad_of_another_shape(optimizer: torch.optim.Optimizer, param: torch.Tensor) -> None:
    param.data, param.grad = torch.randn(2, 3), None
    param.grad = torch.randn(2, 3)
    param.data = torch.randn(3, 2)
    for key, value in optimizer.state[param].items():
        optimizer.state[param][key] = torch.zeros(3, 2) if value.dim() else value


def complex_grad(optimizer: torch.optim.Optimizer, param: torch.Tensor) -> None:
    param.data, param.grad = torch.zeros(6, dtype=torch.complex64), None
    param.grad = torch.ones(6, dtype=torch.complex64)
    param.data = torch.zeros(6)


def state_of_another_shape(optimizer: torch.optim.Optimizer, param: torch.Tensor) -> None:
    optimizer.state[param]["exp_avg"] = torch.zeros(5)


def state_is_missing(optimizer: torch.optim.Optimizer, param: torch.Tensor) -> None:
    del optimizer.state[param]["exp_avg_sq"]


def state_is_no_tensor(optimizer: torch.optim.Optimizer, param: torch.Tensor) -> None:
    optimizer.state[param]["exp_avg"] = [0.0]


def state_is_integer(optimizer: torch.optim.Optimizer, param: torch.Tensor) -> None:
    optimizer.state[param]["exp_avg"] = torch.zeros(6, dtype=torch.int32)


def state_on_another_device(optimizer: torch.optim.Optimizer, param: torch.Tensor) -> None:
    optimizer.state[param]["exp_avg"] = torch.zeros(6, device="meta")


def state_is_no_dict(optimizer: torch.optim.Optimizer, param: torch.Tensor) -> None:
    optimizer.state[param] = [1, 2]


def step_is_a_number(optimizer: torch.optim.Optimizer, param: torch.Tensor) -> None:
    optimizer.state[param]["step"] = 3


def step_is_a_vector(optimizer: torch.optim.Optimizer, param: torch.Tensor) -> None:
    optimizer.state[param]["step"] = torch.zeros(2)


def state_overlaps_itself(optimizer: torch.optim.Optimizer, param: torch.Tensor) -> None:
    optimizer.state[param]["exp_avg"] = torch.zeros(1).expand(6)


def lr_is_nan(optimizer: torch.optim.Optimizer, param: torch.Tensor) -> None:
    optimizer.param_groups[0]["lr"] = float("nan")


def lr_is_text(optimizer: torch.optim.Optimizer, param: torch.Tensor) -> None:
    optimizer.param_groups[0]["lr"] = "fast"


def lr_is_a_vector(optimizer: torch.optim.Optimizer, param: torch.Tensor) -> None:
    optimizer.param_groups[0]["lr"] = torch.ones(2)


def maximize_is_a_vector(optimizer: torch.optim.Optimizer, param: torch.Tensor) -> None:
    optimizer.param_groups[0]["maximize"] = torch.tensor([True, False])


def lr_is_missing(optimizer: torch.optim.Optimizer, param: torch.Tensor) -> None:
    del optimizer.param_groups[0]["lr"]


def betas_are_one_number(optimizer: torch.optim.Optimizer, param: torch.Tensor) -> None:
    optimizer.param_groups[0]["betas"] = 0.9


def betas_are_three(optimizer: torch.optim.Optimizer, param: torch.Tensor) -> None:
    optimizer.param_groups[0]["betas"] = (0.9, 0.99, 0.999)


def params_are_a_generator(optimizer: torch.optim.Optimizer, param: torch.Tensor) -> None:
    optimizer.param_groups[0]["params"] = iter(optimizer.param_groups[0]["params"])


def lr_is_none(optimizer: torch.optim.Optimizer, param: torch.Tensor) -> None:
    optimizer.param_groups[0]["lr"] = None


def params_are_missing(optimizer: torch.optim.Optimizer, param: torch.Tensor) -> None:
    del optimizer.param_groups[0]["params"]


def param_is_no_tensor(optimizer: torch.optim.Optimizer, param: torch.Tensor) -> None:
    optimizer.param_groups[0]["params"] = [*optimizer.param_groups[0]["params"], "weight"]


def group_is_no_dict(optimizer: torch.optim.Optimizer, param: torch.Tensor) -> None:
    optimizer.param_groups.append([param])  # type: ignore[arg-type]


def groups_are_no_list(optimizer: torch.optim.Optimizer, param: torch.Tensor) -> None:
    optimizer.param_groups = dict(enumerate(optimizer.param_groups))  # type: ignore[assignment]


def whole_state_is_no_dict(optimizer: torch.optim.Optimizer, param: torch.Tensor) -> None:
    optimizer.state = []  # type: ignore[assignment]


BAD = [
    (grad_of_another_shape, RuntimeError, r"param 1 of group 0: its gradient has shape \[2, 3\], the param \[3, 2\]"),
    (
        complex_grad,
        RuntimeError,
        "param 1 of group 0: its gradient is torch.complex64, the param torch.float32; convert",
    ),
    (state_of_another_shape, RuntimeError, r"param 1 of group 0: its state 'exp_avg' has shape \[5\], not \[6\]"),
    (state_is_missing, KeyError, "param 1 of group 0: its state lacks 'exp_avg_sq'; delete optimizer.state"),
    (state_is_no_tensor, RuntimeError, "param 1 of group 0: its state 'exp_avg' is not a tensor"),
    (state_is_integer, RuntimeError, "param 1 of group 0: its state 'exp_avg' is torch.int32, the param torch.float32"),
    (
        state_on_another_device,
        RuntimeError,
        "param 1 of group 0: its state 'exp_avg' is not a dense tensor on cpu but on meta",
    ),
    (state_is_no_dict, RuntimeError, "param 1 of group 0: its entry in optimizer.state is not a dict"),
    (
        step_is_a_number,
        RuntimeError,
        r"param 1 of group 0: its state 'step' is not a tensor; assign torch.tensor\(float",
    ),
    (step_is_a_vector, RuntimeError, r"param 1 of group 0: its state 'step' has shape \[2\]; assign torch.tensor"),
    (state_overlaps_itself, RuntimeError, "param 1 of group 0: .*more than one element of the written-to tensor"),
    (lr_is_nan, ValueError, r"param_groups\[0\]\['lr'\] is nan; set it to a number"),
    (lr_is_text, TypeError, r"param_groups\[0\]\['lr'\] is <class 'str'>; give a number"),
    (lr_is_a_vector, ValueError, r"param_groups\[0\]\['lr'\] is a tensor of 2 elements; give it one"),
    (maximize_is_a_vector, ValueError, r"param_groups\[0\]\['maximize'\] is neither true nor false; set it to one of"),
    (lr_is_missing, KeyError, r"param_groups\[0\]\['lr'\] is missing"),
    (lr_is_none, TypeError, r"param_groups\[0\]\['lr'\] is <class 'NoneType'>; give a number"),
    (betas_are_one_number, ValueError, r"param_groups\[0\]\['betas'\] is not a tuple of 2 numbers"),
    (betas_are_three, ValueError, r"param_groups\[0\]\['betas'\] is not a tuple of 2 numbers"),
    (params_are_a_generator, TypeError, r"param_groups\[0\]\['params'\] is not a list; assign a list of tensors"),
    (params_are_missing, KeyError, r"param_groups\[0\] has no 'params'"),
    (param_is_no_tensor, TypeError, "param 2 of group 0 is not a tensor"),
    (group_is_no_dict, TypeError, r"param_groups\[1\] is not a dict"),
    (groups_are_no_list, TypeError, "optimizer.param_groups is not a list"),
    (whole_state_is_no_dict, TypeError, "optimizer.state is not a dict"),
]


@pytest.mark.parametrize(("spoil", "error", "text"), BAD, ids=[b[0].__name__ for b in BAD])
def test_refused_before_anything_is_written(spoil: Callable[..., None], error: type[Exception], text: str) -> None:
    params: list[torch.Tensor] = [torch.nn.Parameter(torch.randn(4)), torch.nn.Parameter(torch.randn(6))]
    for param in params:
        param.grad = torch.randn_like(param)
    optimizer = ADAMW.ours(params)
    optimizer.step()
    spoil(optimizer, params[1])
    if isinstance(optimizer.state, list):
        with pytest.raises(error, match=text):
            optimizer.step()
        return
    before = snapshot(params, optimizer) if spoil is not state_is_no_dict else None
    with pytest.raises(error, match=text):
        optimizer.step()
    if before is not None:
        assert_unchanged(before, snapshot(params, optimizer))


def test_names_of_params_are_used() -> None:
    model = torch.nn.Linear(2, 3)
    optimizer = ADAMW.ours(model.named_parameters())
    model.weight.grad = torch.zeros(3, 2)
    optimizer.step()
    optimizer.state[model.weight]["exp_avg"] = torch.zeros(1)
    with pytest.raises(RuntimeError, match=r"param 0 of group 0 \('weight'\): its state"):
        optimizer.step()


@pytest.mark.parametrize("case", ONE_PER_OPTIMIZER, ids=str)
def test_integer_params_are_refused(case: Case) -> None:
    param = torch.zeros(3, dtype=torch.int64)
    param.grad = torch.ones(3, dtype=torch.int64)
    with pytest.raises(RuntimeError, match=r"param 0 of group 0: torch\.int64 params cannot be stepped; convert"):
        case.ours([param]).step()
    assert param.sum() == 0


@pytest.mark.parametrize("case", ONE_PER_OPTIMIZER, ids=str)
def test_overlapping_params_are_refused(case: Case) -> None:
    param = torch.zeros(1).expand(5).requires_grad_()
    param.grad = torch.ones(5)
    optimizer = case.ours([param])
    before = snapshot([param], optimizer)
    with pytest.raises(
        RuntimeError, match="more than one element of the written-to tensor refers to a single memory location"
    ):
        optimizer.step()
    assert_unchanged(before, snapshot([param], optimizer))


@pytest.mark.parametrize("case", ONE_PER_OPTIMIZER, ids=str)
def test_a_refused_first_step_makes_no_state(case: Case) -> None:
    good, bad = torch.nn.Parameter(torch.zeros(3)), torch.zeros(3, dtype=torch.int64)
    good.grad, bad.grad = torch.ones(3), torch.ones(3, dtype=torch.int64)
    optimizer = case.ours([good, bad])
    before = snapshot([good, bad], optimizer)
    with pytest.raises(RuntimeError, match="param 1 of group 0"):
        optimizer.step()
    assert_unchanged(before, snapshot([good, bad], optimizer))


@pytest.mark.parametrize("case", [case for case in ONE_PER_OPTIMIZER if not case.starts_with_state], ids=str)
def test_failed_allocation_leaves_no_state(case: Case) -> None:
    """The second param's state is larger than any memory; its own elements are few, since its strides overlap."""
    small = torch.nn.Parameter(torch.zeros(3))
    huge = torch.empty_strided((1 << 20, 1 << 20, 8), (1, 1, 1), dtype=torch.float32)
    small.grad, huge.grad = torch.ones(3), torch.zeros(1).expand(1 << 20, 1 << 20, 8)
    optimizer = case.ours([small, huge.requires_grad_()])
    with pytest.raises(RuntimeError, match=r"(?i)alloc|memory"):
        optimizer.step()
    assert not optimizer.state
    assert small.sum() == 0


class Stubborn(defaultdict[torch.Tensor, dict[str, Any]]):
    """A state that refuses its third entry."""

    def __setitem__(self, key: torch.Tensor, value: dict[str, Any]) -> None:
        if len(self) == 2:
            raise MemoryError("full")
        super().__setitem__(key, value)


def test_state_that_cannot_be_entered_is_rolled_back() -> None:
    params = [torch.nn.Parameter(torch.zeros(3)) for _ in range(4)]
    for param in params:
        param.grad = torch.ones(3)
    optimizer = ADAMW.ours(params)
    optimizer.state = Stubborn(dict, {params[0]: {"note": 1}})
    with pytest.raises(MemoryError, match="full"):
        optimizer.step()
    assert dict(optimizer.state) == {params[0]: {"note": 1}}
    assert all(param.sum() == 0 for param in params)


@pytest.mark.parametrize("case", ONE_PER_OPTIMIZER, ids=str)
@pytest.mark.parametrize("dtype", [torch.int64, torch.bfloat16], ids=str)
def test_step_counters_of_other_dtypes_count(case: Case, dtype: torch.dtype) -> None:
    """torch counts in whatever dtype it finds, and so must we."""
    params = [[torch.nn.Parameter(torch.ones(3)) for _ in range(2)] for _ in range(2)]
    for own, optimizer in zip(params, (case.ours(params[0]), case.torchs(params[1])), strict=True):
        for step in range(3):
            for param in own:
                param.grad = torch.tensor([1.0, -2.0, 0.5])
            optimizer.step()
            if step == 0 and "step" in optimizer.state[own[0]]:
                optimizer.state[own[0]]["step"] = optimizer.state[own[0]]["step"].to(dtype)
    for mine, theirs in zip(*params, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_state_made_in_inference_mode_is_refused_outside() -> None:
    param = torch.nn.Parameter(torch.zeros(3))
    optimizer = ADAMW.ours([param])
    with torch.inference_mode():
        param.grad = torch.ones(3)
        optimizer.step()
    param.grad = torch.ones(3)
    before = param.detach().clone()
    with pytest.raises(RuntimeError, match="Inplace update to inference tensor outside InferenceMode is not allowed"):
        optimizer.step()
    assert torch.equal(param, before)


def test_conjugated_gradients_are_resolved() -> None:
    param = torch.nn.Parameter(torch.ones(3, dtype=torch.complex64))
    plain = torch.nn.Parameter(torch.ones(3, dtype=torch.complex64))
    grad = torch.randn(3, dtype=torch.complex64)
    param.grad, plain.grad = grad.conj(), grad.conj().resolve_conj()
    assert param.grad.is_conj()
    for p in (param, plain):
        ADAMW.ours([p]).step()
    assert param.grad.is_conj()
    torch.testing.assert_close(param, plain)


@pytest.mark.parametrize("key", ["lr", "eps", "weight_decay"])
@pytest.mark.parametrize("value", [-1.0, float("nan")])
def test_groups_are_held_to_the_constructors_checks(key: str, value: float) -> None:
    param = torch.nn.Parameter(torch.zeros(3))
    with pytest.raises(ValueError, match="Invalid"):
        fusedopt.AdamW([{"params": [param], key: value}])
    optimizer = fusedopt.AdamW([torch.nn.Parameter(torch.zeros(2))])
    with pytest.raises(ValueError, match="Invalid"):
        optimizer.add_param_group({"params": [param], key: value})
    assert len(optimizer.param_groups) == 1


def test_nan_learning_rate_of_sgd_is_refused() -> None:
    with pytest.raises(ValueError, match="lr is nan; give a number"):
        fusedopt.SGD([torch.nn.Parameter(torch.zeros(2))], lr=float("nan"))
    with pytest.raises(ValueError, match="momentum is nan; give a number"):
        fusedopt.SGD([{"params": [torch.nn.Parameter(torch.zeros(2))], "momentum": float("nan")}])


def test_nesterov_of_a_group_needs_momentum() -> None:
    with pytest.raises(ValueError, match="Nesterov momentum requires a momentum and zero dampening"):
        fusedopt.SGD([{"params": [torch.nn.Parameter(torch.zeros(2))], "nesterov": True}], lr=0.1)


def test_unknown_rule_is_refused() -> None:
    with pytest.raises(ValueError, match="no rule is named 'sgdd'"):
        _C.Plan("sgdd", {})


def test_traffic_probe_checks_its_tensors() -> None:
    t = torch.zeros(8)
    with pytest.raises(ValueError, match="four contiguous float32 CPU tensors of one size"):
        _C.adam_traffic(t, t, t, torch.zeros(4))
    with pytest.raises(TypeError, match="takes four tensors"):
        _C.adam_traffic(t, t, t, None)  # type: ignore[arg-type]


@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="only CUDA params can be moved to the CPU without their gradient"
)
def test_gradient_on_another_device() -> None:
    param = torch.nn.Parameter(torch.zeros(3, device="cuda"))
    param.grad = torch.ones(3, device="cuda")
    param.data = torch.zeros(3)
    with pytest.raises(RuntimeError, match="param 0 of group 0: its gradient is on cuda:0, the param on cpu; move one"):
        ADAMW.ours([param]).step()


@pytest.mark.skipif(EMULATED, reason="the CUDA engine only launches, and holds the GIL while it does")
def test_two_threads_on_one_optimizer() -> None:
    """A step of this size lets other threads run; a second one on the same optimizer is refused, not interleaved."""
    param = torch.nn.Parameter(torch.zeros(1 << 23))
    param.grad = torch.ones_like(param)
    optimizer = ADAMW.ours([param])
    optimizer.step()
    refused: list[str] = []

    def work() -> None:
        for _ in range(40):
            try:
                optimizer.step()
            except RuntimeError as error:
                refused.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(refused) == {"step() is already running on this optimizer in another thread"}
    assert optimizer.state[param]["step"] == 81 - len(refused)
