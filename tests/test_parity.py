"""The values of every case: torch's for-loop within its tolerances, and float64 no further than torch's own error."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
from cases import CASES, ONE_PER_OPTIMIZER, Case
from oracle import Oracle, ulp_error
from runs import give, leaves, random_gradients, state_tensors, train
from support import COUNTERS, assert_identical, default_dtype, params_of
from tiers import of_a_kind, thinned
from torch import Tensor
from torch.nn import Parameter

import fusedopt

SHAPES = [(1,), (3, 5), (31,), (7, 1, 9), (513,), (1023,), (2, 3, 5, 7), (65, 129)]
every_case = pytest.mark.parametrize("case", CASES, ids=str)


def _values(dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in SHAPES]


@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_dozen_steps_agree_with_the_for_loop(case: Case, dtype: torch.dtype) -> None:
    values = _values(dtype)
    run = random_gradients(values, steps=12)
    ours, torchs = case.ours(leaves(values)), case.torchs(leaves(values))
    torch.testing.assert_close(train(ours, run), train(torchs, run))
    for p, q in zip(params_of(ours), params_of(torchs), strict=True):
        torch.testing.assert_close(state_tensors(ours, p), state_tensors(torchs, q))
        assert ours.state[p].keys() == torchs.state[q].keys()
        for name in COUNTERS & ours.state[p].keys():
            torch.testing.assert_close(ours.state[p][name], torchs.state[q][name])


@every_case
def test_the_oracle_agrees_with_the_for_loop_in_float64(case: Case) -> None:
    values = _values(torch.float64)
    run = random_gradients(values, steps=12)
    oracle = Oracle(case.optimizer, case.kwargs, values)
    for grads in run:
        oracle.step(grads)
    torchs = case.torchs(leaves(values))
    # The default dtype is that of torch's counters, and so of what it computes from them.
    with default_dtype(torch.float64):
        train(torchs, run)
    torch.testing.assert_close(oracle.params, [p.detach() for p in params_of(torchs)], rtol=1e-11, atol=1e-11)
    for p, state in zip(params_of(torchs), oracle.state, strict=True):
        kept = torchs.state[p]
        expected = {k: torch.as_tensor(state[k], dtype=torch.float64) for k, v in kept.items() if isinstance(v, Tensor)}
        torch.testing.assert_close({k: kept[k].double() for k in expected}, expected, rtol=1e-11, atol=1e-11)


@every_case
def test_a_tensor_learning_rate_gives_what_its_value_gives(case: Case) -> None:
    values = _values(torch.float32)
    run = random_gradients(values, steps=3)
    lr = torch.tensor(case.kwargs["lr"])
    assert_identical(train(case.ours(leaves(values), lr=lr), run), train(case.ours(leaves(values), lr=lr.item()), run))


NAMES = [case.optimizer for case in ONE_PER_OPTIMIZER]
# For each optimizer that has the argument.
EXTREMES: dict[str, dict[str, Any]] = {
    "lr0": {"lr": 0.0},
    "eps0": {"eps": 0.0},
    "momentum1": {"momentum": 1.0},
    "dampening1": {"momentum": 0.5, "dampening": 1.0},
    "alpha0": {"alpha": 0.0},
    "rho0": {"rho": 0.0},
    "rho1": {"rho": 1.0},
    "momentum-decay-large": {"momentum_decay": 1e3},
    "step-sizes-one": {"step_sizes": (0.01, 0.01)},
    "etas-far": {"etas": (1e-30, 1e30)},
    "lr-decay-large": {"lr_decay": 1e6},
    "lambd0": {"lambd": 0.0},
    "t0-0": {"t0": 0.0},
    "t0-negative": {"t0": -5.0},
}
# Of y and z that are the same, or where y does not follow z, there is no x. Where AdaBelief's average is the gradient
# itself it divides by eps, and makes steps of a hundred million whose sum is all that there is to compare. MARS divides
# by the corrected gradient alone then, which is the rounding error of a difference where that is all but 0.
REFUSED = [
    ("momentum1", "SGDScheduleFree"),
    *[(name, optimizer + "ScheduleFree") for name in ("betas0", "beta1-0") for optimizer in ("AdamW", "RAdam")],
    ("beta1-0", "AdaBelief"),
    ("beta2-0", "MARS"),
    ("eps0", "Prodigy"),
]
EXTREME_KWARGS = [
    *[
        Case(f"{case.optimizer}-{name}", case.optimizer, {"lr": 0.1, **kwargs})
        for name, kwargs in EXTREMES.items()
        for case in ONE_PER_OPTIMIZER
        if all(case.takes(argument) for argument in kwargs) and (name, case.optimizer) not in REFUSED
    ],
    *[
        Case(
            f"{case.optimizer}-{name}",
            case.optimizer,
            {"lr": 0.1, "betas": betas[: len(inspect.signature(case.cls).parameters["betas"].default)]},
        )
        for name, betas in {"betas0": (0.0, 0.0, 0.0), "beta1-0": (0.0, 0.9, 0.9), "beta2-0": (0.9, 0.0, 0.9)}.items()
        for case in ONE_PER_OPTIMIZER
        if case.takes("betas") and (name, case.optimizer) not in REFUSED
    ],
    Case("SGD-momentum1-nesterov", "SGD", {"lr": 0.1, "momentum": 1.0, "nesterov": True}),
    Case("Adam-betas0-eps0", "Adam", {"lr": 0.1, "betas": (0.0, 0.0), "eps": 0.0}),
    Case("Adam-amsgrad-betas0-decay", "Adam", {"lr": 0.1, "betas": (0.0, 0.0), "amsgrad": True, "weight_decay": 1.0}),
    Case("AdamW-decay-to-zero", "AdamW", {"lr": 0.5, "weight_decay": 2.0}),
    Case("RMSprop-alpha0-eps0", "RMSprop", {"lr": 0.1, "alpha": 0.0, "eps": 0.0}),
    Case("RMSprop-alpha1", "RMSprop", {"lr": 0.1, "alpha": 1.0, "eps": 1.0}),
]


@thinned("numbers are read before anybody asks for a dtype")
@pytest.mark.parametrize("case", EXTREME_KWARGS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_extreme_hyper_parameters(case: Case, dtype: torch.dtype) -> None:
    values = _values(dtype)
    run = random_gradients(values, steps=12)
    with default_dtype(dtype):
        ours, torchs = (train(build(leaves(values)), run) for build in (case.ours, case.torchs))
    torch.testing.assert_close(ours, torchs, equal_nan=True)


SPECIAL = [torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 1e-45, -1e-40, 1e-38, 1e-30, -1e-30, 1e-20, 1.0, 3e38, -3e38]


@pytest.mark.parametrize("case", [*CASES, *EXTREME_KWARGS], ids=str)
def test_special_gradients_give_what_the_for_loop_gives(case: Case) -> None:
    # 23 copies reach both the vector body and the tail of a sweep. Ordinary gradients follow, since NaN and inf live on
    # in the state, and then the special ones against a state that is no longer zero.
    special = torch.tensor(SPECIAL).repeat(23)
    ordinary = torch.linspace(-2, 2, special.numel())
    values = [torch.tensor([0.0, 1.0, -2.5]).repeat_interleave(special.numel()), special]
    run: list[list[Tensor | None]] = [[g.repeat(3), g] for g in (special, ordinary, special.flip(0), ordinary.neg())]
    ours, torchs = case.ours(leaves(values)), case.torchs(leaves(values))
    for grads in run:
        train(ours, [grads])
        train(torchs, [grads])
        for p, q in zip(params_of(ours), params_of(torchs), strict=True):
            ours_p, torchs_p = p.detach(), q.detach()
            if case.kwargs.get("centered"):
                # torch takes the root of `square_avg - grad_avg**2` even where rounding made it negative; ours is 0.
                ours_p, torchs_p = ours_p[~torchs_p.isnan()], torchs_p[~torchs_p.isnan()]
            torch.testing.assert_close(ours_p, torchs_p, equal_nan=True)


def test_a_variance_rounded_below_zero_counts_as_zero() -> None:
    # With a constant gradient the variance tends to 0, and its rounding error to either side of it.
    case = Case("centered", "RMSprop", {"lr": 1e-3, "centered": True, "alpha": 0.5})
    ours, torchs = case.ours(leaves([torch.zeros(4096)])), case.torchs(leaves([torch.zeros(4096)]))
    run: list[list[Tensor | None]] = [[torch.linspace(0.1, 1, 4096)]] * 60
    assert train(torchs, run)[0].isnan().any(), "these gradients no longer bring torch's variance below zero"
    assert train(ours, run)[0].isfinite().all()


def _flags(case: Case) -> list[dict[str, Any]]:
    return [{flag: value} for flag in ("foreach", "fused") for value in (True, False, None)]


@thinned("no rule reads them", keep=lambda case: case in ONE_PER_OPTIMIZER, together=0)
@every_case
def test_foreach_and_fused_change_nothing(case: Case) -> None:
    values = _values(torch.float32)
    run = random_gradients(values, steps=4)
    expected = train(case.ours(leaves(values)), run)
    for flags in _flags(case):
        assert_identical(train(case.ours(leaves(values), **flags), run), expected)


@thinned("who divides a tensor among threads knows no rule", keep=of_a_kind, together=0)
@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_thread_count_changes_neither_bits_nor_itself(case: Case, dtype: torch.dtype) -> None:
    # From one element to sizes that every schedule splits, with ends that fall on no boundary.
    sizes = [1, 2, 17, 511, 1024, 4097, 33_333, 65_536, 200_001]
    values = [torch.randn(n).to(dtype) for n in sizes]
    run = random_gradients(values, steps=2)
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        ours = case.ours(leaves(values))
        results.append(train(ours, run) + [s for p in params_of(ours) for s in state_tensors(ours, p).values()])
        assert torch.get_num_threads() == threads
    assert_identical(results[1], results[0])


@thinned("a seed or a storage is as good as another")
@every_case
@pytest.mark.parametrize("seed", range(3))
def test_the_error_over_a_dozen_steps_is_no_larger_than_the_for_loops(case: Case, seed: int) -> None:
    # The unit is the ulp of the largest param: what is asked is the accuracy of the tensor, not that of an element
    # which happens to end near zero, where torch's error is a matter of luck.
    values = [torch.randn(20_001, generator=torch.Generator().manual_seed(seed))]
    run = random_gradients(values, steps=12, seed=100 + seed)
    oracle = Oracle(case.optimizer, case.kwargs, values)
    for grads in run:
        oracle.step(grads)
    expected = oracle.params[0]
    size = expected.abs().max().expand_as(expected)
    ours, torchs = (train(build(leaves(values)), run)[0] for build in (case.ours, case.torchs))
    assert ulp_error(ours, expected, size).max() <= ulp_error(torchs, expected, size).max() + 1


def _largest_error(actual: Tensor, expected: Tensor) -> Tensor:
    # An element far below the others is what a cancellation left: its error is that of the terms that cancelled.
    size = expected.abs()
    return ulp_error(actual, expected, size.clamp_min(size.mean())).max()


@thinned("a seed is as good as another")
@every_case
@pytest.mark.parametrize("seed", range(3))
def test_the_error_of_one_step_is_no_larger_than_the_for_loops(case: Case, seed: int) -> None:
    """Param and states of one step from the same live state, each element in its own ulps."""
    values = [torch.randn(20_001, generator=torch.Generator().manual_seed(seed))]
    *warm_up, last = random_gradients(values, steps=4, seed=100 + seed)
    ours = case.ours(leaves(values))
    before = train(ours, warm_up)[0].detach().clone()
    torchs = case.torchs(leaves([before]))
    oracle = Oracle(case.optimizer, case.kwargs, [before])
    # A deep copy, because load_state_dict shares the tensors that it does not convert.
    torchs.load_state_dict(copy.deepcopy(ours.state_dict()))
    (theirs,) = params_of(torchs)
    oracle.adopt([before], [torchs.state[theirs]])
    oracle.step(last)
    errors = []
    for optimizer in (ours, torchs):
        (p,) = train(optimizer, [last])
        found = {"param": _largest_error(p, oracle.params[0])}
        for name, tensor in state_tensors(optimizer, p).items():
            found[name] = _largest_error(tensor, oracle.state[0][name])
        errors.append(found)
    for name, bound in errors[1].items():
        assert errors[0][name] <= bound + 1, name


@pytest.mark.parametrize("case", ONE_PER_OPTIMIZER, ids=str)
def test_a_param_without_gradient_waits(case: Case) -> None:
    values = _values(torch.float32)
    run = random_gradients(values, steps=6)
    for step, grads in enumerate(run):
        for i in range(len(grads)):
            if (step + i) % 3 == 0:
                grads[i] = None
    ours, torchs = case.ours(leaves(values)), case.torchs(leaves(values))
    oracle = Oracle(case.optimizer, case.kwargs, values)
    for grads in run:
        oracle.step(grads)
    torch.testing.assert_close(train(ours, run), train(torchs, run))
    torch.testing.assert_close([p.detach().double() for p in params_of(ours)], oracle.params, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", ONE_PER_OPTIMIZER, ids=str)
def test_a_param_that_never_had_a_gradient_has_no_state(case: Case) -> None:
    used, unused = leaves([torch.randn(5), torch.randn(5)])
    ours = case.ours([used, unused])
    kept = unused.detach().clone()
    give(used, torch.ones(5))
    ours.step()
    # Some of torch's classes make states in the constructor.
    assert bool(ours.state.get(unused)) == case.starts_with_state
    assert_identical([unused], [kept])


def test_a_constant_gradient_has_no_negative_variance() -> None:
    """Rounding makes the square of its mean larger than the mean of its squares, of which the root is NaN."""
    param = Parameter(torch.zeros(4096))
    param.grad = torch.randn(4096)
    optimizer = fusedopt.RMSprop([param], lr=1e-3, alpha=0.5, centered=True)
    for _ in range(60):
        optimizer.step()
    mean_of_squares, mean = (optimizer.state[param][key].double() for key in ("square_avg", "grad_avg"))
    assert (mean_of_squares < mean * mean).any()
    assert param.isfinite().all()
