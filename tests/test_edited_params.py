"""What a user does to params between steps holds, whatever is kept beside them; codes follow the memory format."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import ONE_PER_OPTIMIZER, Case, named
from options import same, steps
from runs import give
from support import params_of
from torch import Tensor
from torch.nn import Parameter

import fusedopt
from fusedopt._core.precision import exact_param

PARTNERS: list[tuple[torch.dtype, dict[str, Any]]] = [
    (torch.bfloat16, {"master_weights": "float32"}),
    (torch.bfloat16, {"master_weights": "remainder"}),
    (torch.bfloat16, {"rounding": "kahan"}),
    (torch.float16, {"master_weights": "float32"}),
    (torch.float16, {"rounding": "kahan"}),
]
partners = pytest.mark.parametrize(("dtype", "options"), PARTNERS, ids=str)
one_per_optimizer = pytest.mark.parametrize("case", ONE_PER_OPTIMIZER, ids=str)


def clamp(p: Tensor) -> None:
    p.clamp_(-0.01, 0.01)


def mask(p: Tensor) -> None:
    p.mul_((torch.arange(p.numel()) % 2).view(p.shape))


def load(p: Tensor) -> None:
    p.copy_(torch.linspace(-3, 3, p.numel()).view(p.shape))


def infinite(p: Tensor) -> None:
    p[::3] = float("inf")
    p[1::3] = float("-inf")


def through_data(p: Tensor) -> None:
    p.data.mul_(-0.25)


def replaced(p: Tensor) -> None:
    p.data = torch.full_like(p, 0.75)


EDITS: list[Callable[[Tensor], None]] = [clamp, mask, load, infinite, through_data, replaced]


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
@partners
@one_per_optimizer
def test_an_edit_is_what_the_next_step_starts_from(
    case: Case, dtype: torch.dtype, options: dict[str, Any], edit: Callable[[Tensor], None]
) -> None:
    param = Parameter((torch.randn(1000) * torch.logspace(-3, 2, 1000)).to(dtype))
    optimizer = steps(case.ours([param], **options), 3)
    key = next(iter({"master", "remainder", "compensation"} & set(optimizer.state[param])))
    before = exact_param(param, key, optimizer.state[param][key]).clone()
    unchanged = param.detach().clone()
    with torch.no_grad():
        edit(param)
    edited = param.detach().clone()
    started = exact_param(param, key, optimizer.state[param][key])
    kept = edited == unchanged
    assert torch.equal(started[kept], before[kept])
    # To the bit for a master; what the others keep may come to half a unit of the edited one.
    number = edited.isfinite()
    unit = (torch.nextafter(edited.abs(), edited.new_tensor(float("inf"))) - edited.abs()).float()
    assert ((started - edited.float()).abs()[number] <= unit[number] / 2).all()
    assert torch.equal(
        started[edited.isinf() & (key != "remainder")], edited[edited.isinf() & (key != "remainder")].float()
    )
    if key == "master":
        assert torch.equal(started[~kept], edited[~kept].float())

    # The engine starts there, too: its step is the one from the float32 numbers, with the same states.
    wide = case.ours([Parameter(started.clone())])
    grad = torch.randn(1000).to(dtype)
    state = wide.state[params_of(wide)[0]]
    state.update({k: v.clone() if isinstance(v, Tensor) else v for k, v in optimizer.state[param].items() if k != key})
    for p in (param, *params_of(wide)):
        give(p, grad)
    optimizer.step()
    wide.step()
    exact = exact_param(param, key, optimizer.state[param][key])
    (want,) = params_of(wide)
    finite = edited.isfinite() & want.detach().isfinite()
    if case.elementwise:
        # A compensation is rounded itself, and float16's smallest number is 2**-24.
        rounding = param.detach().float().abs() * 2.0**-15 + 2.0**-25 if key == "compensation" else torch.zeros(1000)
        assert ((exact - want.detach()).abs()[finite] <= rounding[finite]).all()
        assert torch.equal(param.detach().isnan(), want.detach().to(dtype).isnan())


@partners
def test_zeroed_params_stay_zero(dtype: torch.dtype, options: dict[str, Any]) -> None:
    """A pruning mask after every step, with gradients that would have moved on."""
    param = Parameter(torch.randn(1000).to(dtype))
    optimizer = fusedopt.SGD([param], lr=0.01, **options)
    for _ in range(5):
        give(param, torch.randn(1000) * (torch.arange(1000) % 2))
        optimizer.step()
        with torch.no_grad():
            mask(param)
        assert not param.detach()[::2].any()
    give(param, torch.zeros(1000))
    optimizer.step()
    assert not param.detach()[::2].any()
    assert param.detach()[1::2].isfinite().all()


@partners
def test_what_a_step_wrote_is_no_edit(dtype: torch.dtype, options: dict[str, Any]) -> None:
    """Ten steps of a twentieth of a unit each add up, over all but the smallest numbers of the type."""
    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype)
    every = every[every.isfinite() & (every.float().abs() > torch.finfo(dtype).tiny * 2**14)]
    param = Parameter(every.clone())
    optimizer = fusedopt.SGD([param], lr=1.0, **options)
    unit = every.float().abs() * torch.finfo(dtype).eps / 2
    step = unit / 10
    exact = every.float()
    for _ in range(10):
        give(param, step)
        optimizer.step()
        exact = exact - step
    key = next(iter({"master", "remainder", "compensation"} & set(optimizer.state[param])))
    ends = exact_param(param, key, optimizer.state[param][key])
    inside = exact.to(dtype).isfinite()
    error = (ends - exact).abs()[inside]
    assert (error <= unit[inside] / 8).all()


@pytest.mark.parametrize("storage", ["int8", "int4"])
@one_per_optimizer
def test_codes_follow_the_memory_format(case: Case, storage: str) -> None:
    names = [k for k in case.states if case.rule["kinds"][k] in ("average", "magnitude")]
    if not names:
        pytest.skip("this rule has no state that can be in codes")
    value = torch.randn(8, 20, 6, 6) * torch.logspace(-2, 0, 20).view(1, -1, 1, 1)
    runs = []
    for moves in (False, True):
        torch.manual_seed(5)
        param = Parameter(value.clone())
        optimizer = steps(case.ours([param], state_dtype=dict.fromkeys(names, storage)), 3)
        before = optimizer.state_dict()["state"][0]
        if moves:
            param.data = param.data.to(memory_format=torch.channels_last)
            saved = optimizer.state_dict()["state"][0]
            assert all(torch.equal(saved[k], before[k]) for k in names)
        give(param, torch.randn(8, 20, 6, 6))
        optimizer.step()
        runs.append(optimizer.state_dict()["state"][0])
        order = optimizer.state[param]["code_order"]
        assert order == ((0, 2, 3, 1) if moves else (0, 1, 2, 3))
    for name in names:
        # Codes made twice, in blocks of other elements.
        scale = runs[0][name].abs().amax()
        torch.testing.assert_close(runs[1][name], runs[0][name], rtol=2 / 3, atol=float(scale) * 0.6)
        close = (runs[1][name] - runs[0][name]).abs() <= 0.3 * runs[0][name].abs() + 0.1 * scale
        assert close.float().mean() > 0.95


def test_codes_in_another_order_reach_a_deepcopy_and_a_release() -> None:
    """The order is part of the state, so whoever steps next finds it."""
    model = torch.nn.Conv2d(20, 8, 6, bias=False)
    optimizer = steps(fusedopt.AdamW(model.parameters(), state_dtype="int8"), 2)
    optimizer.zero_grad()
    copied, its = copy.deepcopy((model, optimizer))
    for module, one in ((model, optimizer), (copied, its)):
        module.to(memory_format=torch.channels_last)
        want = one.state_dict()["state"][0]["exp_avg"]
        with fusedopt.step_in_backward(module, one):
            (module(torch.zeros(1, 20, 6, 6)).sum() * 0).backward()
        got = one.state_dict()["state"][0]["exp_avg"]
        scale = float(want.abs().amax())
        torch.testing.assert_close(got, want * 0.9, rtol=0.3, atol=0.02 * scale)


def test_codes_without_an_order_are_refused() -> None:
    optimizer = steps(fusedopt.AdamW([Parameter(torch.ones(5000))], state_dtype="int8"), 1)
    (param,) = params_of(optimizer)
    del optimizer.state[param]["code_order"]
    give(param, torch.ones(5000))
    with pytest.raises(RuntimeError, match="its state 'code_order' is missing, without which codes mean nothing"):
        optimizer.step()


@pytest.mark.parametrize(
    ("dtype", "storage"),
    [(torch.float16, "bfloat16"), (torch.bfloat16, "float16"), (torch.float32, "float16")],
    ids=str,
)
@one_per_optimizer
def test_states_of_another_16_bit_type_survive_a_checkpoint(case: Case, dtype: torch.dtype, storage: str) -> None:
    param = Parameter(torch.zeros(1000, dtype=dtype))
    optimizer = case.ours([param], state_dtype=storage)
    for _ in range(3):
        give(param, torch.randn(1000) * 1e-3)
        optimizer.step()
    again = case.ours([param], state_dtype=storage)
    again.load_state_dict(optimizer.state_dict())
    assert all(value is None or same(again.state[param][key], value) for key, value in optimizer.state[param].items())
    # Whoever loads it without the option keeps the type, too.
    plain = case.ours([Parameter(torch.zeros(1000, dtype=dtype))])
    plain.load_state_dict(optimizer.state_dict())
    saved, (got,) = optimizer.state_dict()["state"][0], plain.state.values()
    assert all(torch.equal(got[key].float(), saved[key].float()) for key in case.states if saved[key] is not None)


class TestClearedGradients:
    """Every param sees its gradient before any is cleared."""

    @staticmethod
    def run(share: Callable[[list[Parameter], Any], None], zero_grad: bool) -> list[Tensor]:
        torch.manual_seed(2)
        params = [Parameter(torch.randn(60)) for _ in range(3)]
        optimizer: Any = named("adamw").ours(params)
        for _ in range(3):
            share(params, torch.randn(180))
            optimizer.step(zero_grad=zero_grad)
            if zero_grad:
                assert not any(p.grad.any() for p in params if p.grad is not None)
        return [p.detach() for p in params]

    @pytest.mark.parametrize("how", ["one", "expanded", "overlapping", "backwards", "neighbours"])
    def test(self, how: str) -> None:
        def share(params: list[Parameter], numbers: Tensor) -> None:
            for i, p in enumerate(params):
                p.grad = {
                    "one": lambda i=i: params[0].grad if i else numbers[:60],
                    "expanded": lambda i=i: numbers[i : i + 1].expand(60),
                    "overlapping": lambda i=i: numbers[30 * i : 30 * i + 60],
                    "backwards": lambda i=i: numbers[60 - 30 * i : 120 - 30 * i],
                    "neighbours": lambda i=i: numbers[60 * i : 60 * i + 60],
                }[how]()

        for cleared, kept in zip(self.run(share, True), self.run(share, False), strict=True):
            assert torch.equal(cleared, kept)

    def test_neighbours_are_cleared_in_the_pass(self) -> None:
        numbers = torch.randn(120)
        params = [Parameter(torch.randn(60)) for _ in range(2)]
        for i, p in enumerate(params):
            p.grad = numbers[60 * i : 60 * i + 60]
        optimizer = fusedopt.SGD(params, lr=0.1)
        optimizer.step(zero_grad=True)
        assert optimizer._plan is not None
        assert not optimizer._plan.shares_grads
        assert not numbers.any()
