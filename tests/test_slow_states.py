"""Averages of squares in 16 bits decay as in float32, and do not vanish; rules say what kind of number a state is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import tiers
import torch
from cases import ONE_PER_OPTIMIZER, Case
from options import same, steps
from runs import give
from support import EMULATED, params_of
from torch import Tensor
from torch.nn import Parameter

import fusedopt
from fusedopt import _C

HALVES = (torch.bfloat16, torch.float16)
REMEDIES: list[tuple[torch.dtype, dict[str, Any]]] = [
    (torch.bfloat16, {"master_weights": "float32"}),
    (torch.bfloat16, {"master_weights": "remainder"}),
    (torch.bfloat16, {"rounding": "kahan"}),
    (torch.bfloat16, {"rounding": "stochastic"}),
    (torch.float16, {"master_weights": "float32"}),
    (torch.float16, {"rounding": "kahan"}),
    (torch.float16, {"rounding": "stochastic"}),
    (torch.float32, {"state_dtype": "bfloat16"}),
    (torch.float32, {"state_dtype": "float16"}),
    (torch.bfloat16, {"master_weights": "remainder", "state_dtype": "float16"}),
    (torch.float16, {"rounding": "kahan", "state_dtype": "bfloat16"}),
]
remedies = pytest.mark.parametrize(("dtype", "options"), REMEDIES, ids=str)
# Those that divide by the root of an average of squares.
SQUARES = ["Adam", "AdamW", "NAdam", "RAdam", "Adan", "AdEMAMix", "LAMB", "RMSprop", "Adadelta"]


def squares(optimizer: Any) -> float:
    """The mean of the squares as a checkpoint has them."""
    (state,) = optimizer.state_dict()["state"].values()
    (key,) = {"exp_avg_sq", "square_avg"} & set(state)
    return float(state[key].float().mean())


@remedies
@pytest.mark.parametrize("name", ["AdamW", "Adan"])
def test_squares_decay(name: str, dtype: torch.dtype, options: dict[str, Any]) -> None:
    """One step of beta = 0.999 is less than half of a bfloat16's last bit."""

    def run(dtype: torch.dtype, options: dict[str, Any]) -> float:
        generator = torch.Generator().manual_seed(0)
        param = Parameter(torch.ones(512, dtype=dtype))
        betas = {"betas": (0.98, 0.92, 0.999)} if name == "Adan" else {}
        optimizer = getattr(fusedopt, name)([param], lr=1e-4, **betas, **options)
        for i in range(1200):
            give(param, torch.randn(512, generator=generator) * (1 if i < 50 else 1e-2))
            optimizer.step()
        return squares(optimizer)

    want = run(torch.float32, {})
    assert run(dtype, options) == pytest.approx(want, rel=0.05)


@remedies
@pytest.mark.parametrize("name", SQUARES)
def test_steps_do_not_explode(name: str, dtype: torch.dtype, options: dict[str, Any]) -> None:
    """Squares of gradients of 1e-4 are below float16's range."""

    def moved(dtype: torch.dtype, options: dict[str, Any]) -> float:
        generator = torch.Generator().manual_seed(0)
        param = Parameter(torch.full((5000,), 2.0**-6, dtype=dtype))
        optimizer = getattr(fusedopt, name)([param], lr=1e-3, **options)
        for _ in range(5):
            give(param, torch.randn(5000, generator=generator) * 1e-4)
            optimizer.step()
        return float((param.detach().float() - 2.0**-6).abs().max())

    want = moved(torch.float32, {})
    # What drawn states are off by, and a unit of the param in each step.
    assert moved(dtype, options) <= 1.3 * want + 5 * 2.0**-13


# What gradients are for 500 steps, and then.
CHANGES = ((0.5, 0.01), (0.01, 0.05), (0.1, -0.1))
AFTER = (500, 2000, 8000)
CODED: list[dict[str, Any]] = [
    {"state_dtype": storage, "rounding": rounding}
    for storage in ("int8", "int4")
    for rounding in ("nearest", "stochastic")
]


def changed(**options: Any) -> tuple[Tensor, Tensor]:
    """A step in parts of lr, and the average of squares, by CHANGES and AFTER; one element of a block stays large."""
    param = Parameter(torch.zeros(len(CHANGES), 16, _C.CODE_BLOCK))
    optimizer = fusedopt.AdamW([param], lr=1.0, weight_decay=0.0, **options)
    moved, averages = [], []
    for before, now in enumerate(zip(*CHANGES, strict=True)):
        grad = torch.tensor(now).view(-1, 1, 1).expand_as(param).clone()
        grad[..., 0] = 0.5
        param.grad = grad
        for step in range(1, 1 + (AFTER[-1] if before else 500)):
            param.detach().zero_()
            optimizer.step()
            if before and step in AFTER:
                state = optimizer.state_dict()["state"][0]
                moved.append(-param.detach()[..., 1:].mean((1, 2)))
                averages.append(state["exp_avg_sq"][..., 1:].mean((1, 2)))
    return torch.stack(moved, 1), torch.stack(averages, 1)


@pytest.mark.skipif(
    EMULATED and not tiers.everything,
    reason="thousands of steps take the emulator a minute; each has the CPU's bits in test_cuda_precision.py",
)
def test_codes_follow_by_chance_and_to_nearest_stay() -> None:
    """Where not all of a block changes; the table of docs/precision.md has these figures."""
    exact, squares = changed()
    runs = [changed(**options) for options in CODED]
    by_name = dict(zip(["int8", "int8 by chance", "int4", "int4 by chance"], (run[1] for run in runs), strict=True))
    # A thousandth is less than half of what codes are apart; the scale alone moves, of the element that stays large.
    assert (by_name["int8"][0, 1:] > 10 * squares[0, 1:]).all()
    torch.testing.assert_close(by_name["int8 by chance"], squares, rtol=0.03, atol=0)
    torch.testing.assert_close(by_name["int4 by chance"][0, :2], squares[0, :2], rtol=0.03, atol=0)
    text = (Path(__file__).parent.parent / "docs/precision.md").read_text()
    rows = re.findall(r"^\| (-?[\d.]+), then (-?[\d.]+) \| ([\d,]+) \| (.*) \|$", text, re.MULTILINE)
    assert {(float(before), float(now)) for before, now, _, _ in rows} == set(CHANGES)
    for before, now, after, said in rows:
        place = CHANGES.index((float(before), float(now))), AFTER.index(int(after.replace(",", "")))
        made = [float(steps[place]) for steps in (exact, *(run[0] for run in runs))]
        assert [float(figure) for figure in said.split(" | ")] == pytest.approx(made, abs=6e-4), (before, now, after)


@pytest.mark.parametrize(("name", "storage"), [("AdamW", "int4"), ("Lion", "int8"), ("Adan", "int8")])
def test_an_average_of_gradients_in_codes_turns_by_chance(name: str, storage: str) -> None:
    """To nearest it stays, where the largest of its block does, and the param goes uphill."""
    for rounding, sign in (("nearest", 1.0), ("stochastic", -1.0)):
        param = Parameter(torch.zeros(16, _C.CODE_BLOCK))
        optimizer = getattr(fusedopt, name)([param], lr=1.0, weight_decay=0.0, state_dtype=storage, rounding=rounding)
        for gradient in (0.1, -0.1):
            param.grad = torch.full_like(param, gradient)
            param.grad[:, 0] = 0.5
            for _ in range(300):
                param.detach().zero_()
                optimizer.step()
        assert (-param.detach()[:, 1:] * sign > 0).all()


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("case", ONE_PER_OPTIMIZER, ids=str)
def test_remedies_keep_states_in_float32(case: Case, dtype: torch.dtype) -> None:
    """To the bit as if the user had asked for it; without a remedy states are as torch has them."""
    options: list[dict[str, Any]] = [{"master_weights": "float32"}, {"rounding": "kahan"}]
    if dtype == torch.float16:
        options.append({"rounding": "stochastic", "rounding_seed": 5})
    for remedy in options:
        runs = [
            steps(case.ours([Parameter(torch.randn(40).to(dtype))], **remedy, **more), 3)
            for more in ({}, {"state_dtype": "float32"})
            if torch.manual_seed(1)
        ]
        states = [run.state[params_of(run)[0]] for run in runs]
        assert all(states[0][key] is None or states[0][key].dtype == torch.float32 for key in case.states)
        assert all(value is None or same(value, states[1][key]) for key, value in states[0].items())
    plain = steps(case.ours([Parameter(torch.randn(40).to(dtype))]), 1)
    (state,) = plain.state.values()
    assert all(state[key] is None or state[key].dtype == dtype for key in case.states)


def test_states_that_torch_saved_in_16_bits_become_float32_under_a_remedy() -> None:
    theirs = steps(torch.optim.AdamW([Parameter(torch.randn(40).bfloat16())]), 3)
    ours = fusedopt.AdamW([Parameter(p.detach().clone()) for p in params_of(theirs)], master_weights="float32")
    ours.load_state_dict(theirs.state_dict())
    for p, q in zip(params_of(ours), params_of(theirs), strict=True):
        assert same(ours.state[p]["exp_avg_sq"], theirs.state[q]["exp_avg_sq"].float())


def test_squares_in_float16_are_their_roots() -> None:
    """Over the whole range, to half a unit of the root; only 0 is 0."""
    grads = torch.cat([torch.tensor([0.0]), torch.logspace(-18, 4, 4000)])
    param = Parameter(torch.zeros_like(grads))
    optimizer = fusedopt.RMSprop([param], lr=0.0, alpha=0.0, state_dtype="float16")
    give(param, grads)
    optimizer.step()
    root = optimizer.state[param]["square_avg"]
    assert root.dtype == torch.float16
    assert (root > 0).tolist() == ((grads * grads) > 0).tolist()
    normal = grads > 2.0**-14
    assert ((root.float() - grads).abs()[normal] <= grads[normal] * 2.0**-10).all()
    saved = optimizer.state_dict()["state"][0]["square_avg"]
    assert same(saved, root.float() ** 2)
    again = fusedopt.RMSprop([param], lr=0.0, alpha=0.0, state_dtype="float16")
    again.load_state_dict(optimizer.state_dict())
    assert same(again.state[param]["square_avg"], root)


def test_adagrads_sum_grows_in_16_bits() -> None:
    """An addend of a thousandth of the sum is lost to the nearest, and not by chance."""
    for storage in ("bfloat16", "float16"):
        param = Parameter(torch.zeros(4096))
        optimizer = fusedopt.Adagrad([param], lr=0.0, initial_accumulator_value=1.0, state_dtype=storage)
        for _ in range(200):
            give(param, torch.full((4096,), 0.03))
            optimizer.step()
        (state,) = optimizer.state_dict()["state"].values()
        assert float(state["sum"].float().mean()) == pytest.approx(1 + 200 * 0.03**2, rel=0.01)


def test_a_group_that_is_added_leaves_the_states_of_others() -> None:
    params = [Parameter(torch.randn(8)) for _ in range(2)]
    optimizer = steps(fusedopt.AdamW(params[:1], state_dtype="float16"), 2)
    before = optimizer.state[params[0]]["exp_avg_sq"].clone()
    optimizer.add_param_group({"params": params[1:]})
    assert same(optimizer.state[params[0]]["exp_avg_sq"], before)


@pytest.mark.parametrize("case", ONE_PER_OPTIMIZER, ids=str)
def test_rules_say_what_kind_of_number_a_state_is(case: Case) -> None:
    kinds = _C.states(case.cls._rule)
    assert list(kinds) == case.rule["states"]
    never_negative = {key for key, kind in kinds.items() if kind in ("magnitude", "total")}
    optimizer = steps(case.ours([Parameter(torch.randn(300))]), 3)
    (state,) = optimizer.state.values()
    for key in case.states:
        if key != "step_size":  # Rprop's, which needs neither codes nor a root
            assert bool((state[key] >= 0).all()) == (key in never_negative), key


def test_a_state_that_cannot_be_coded_is_refused_with_states_that_can() -> None:
    params = [Parameter(torch.ones(3))]
    with pytest.raises(ValueError, match=r"'sum' is no average that forgets.*use 'bfloat16' or 'float32'"):
        fusedopt.Adagrad(params, state_dtype="int8")
    with pytest.raises(ValueError, match=r"'prev' is no average that forgets.*use 'bfloat16' or 'float32'"):
        fusedopt.Rprop(params, state_dtype="int4")


@pytest.mark.parametrize("storage", ["bfloat16", "float16", "int8", "int4"])
@pytest.mark.parametrize("key", ["square_avg", "grad_avg"])
def test_what_centered_subtracts_is_not_rounded(key: str, storage: str) -> None:
    """With steady gradients the variance is below the rounding, and a step of 1e-3 became one of 400,000."""
    params = [Parameter(torch.ones(5000))]
    with pytest.raises(ValueError, match=f"state_dtype rounds '{key}', and centered=True divides by the difference"):
        fusedopt.RMSprop(params, centered=True, state_dtype={key: storage})
    optimizer = fusedopt.RMSprop(params, state_dtype={key: storage})
    with pytest.raises(ValueError, match=f"state_dtype rounds '{key}'"):
        optimizer.add_param_group({"params": [Parameter(torch.ones(3))], "centered": True})
    fusedopt.RMSprop(params, centered=True, momentum=0.9, state_dtype={"momentum_buffer": storage})
    # Nor by a file of a centered optimizer.
    file = steps(fusedopt.RMSprop(params, centered=True), 1).state_dict()
    with pytest.raises(ValueError, match=f"state_dtype rounds '{key}'"):
        optimizer.load_state_dict(file)
    assert not optimizer.param_groups[0]["centered"]


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_a_remedy_holds_steps_of_a_centered_rmsprop(dtype: torch.dtype) -> None:
    """Where states stay in bfloat16 under stochastic rounding it is refused: a step was 524,288."""
    exact = {"square_avg": "float32", "grad_avg": "float32"}
    if dtype == torch.bfloat16:
        with pytest.raises(ValueError, match=r"rounding='stochastic' rounds 'square_avg', and centered=True divides"):
            fusedopt.RMSprop([Parameter(torch.ones(3, dtype=dtype))], centered=True, rounding="stochastic")
    for options in (
        {"master_weights": "float32"},
        {"rounding": "kahan"},
        {"rounding": "stochastic", "state_dtype": exact},
    ):
        generator = torch.Generator().manual_seed(0)
        param = Parameter(torch.zeros(2000, dtype=dtype))
        optimizer = fusedopt.RMSprop([param], lr=1e-3, alpha=0.9, centered=True, **options)  # type: ignore[arg-type]
        for _ in range(100):
            before = param.detach().float().clone()
            give(param, 1 + 0.1 * torch.randn(2000, generator=generator))
            optimizer.step()
            assert (param.detach().float() - before).abs().max() < 0.2
