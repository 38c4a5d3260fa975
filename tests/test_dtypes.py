"""Params, gradients and states of every storage type, alone and mixed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from cases import APART, CASES, ONE_PER_OPTIMIZER, Case
from oracle import Oracle, float64, ulp_error
from runs import give, leaves, random_gradients, state_tensors, train
from support import COUNTERS, assert_identical, params_of, snapshot
from tiers import thinned
from torch import Tensor

import fusedopt

FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
HALVES = [torch.bfloat16, torch.float16]
COMPLEX = [torch.complex64, torch.complex128]
SHAPES = [(), (1,), (7,), (33, 31), (5, 67)]
every_case = pytest.mark.parametrize("case", CASES, ids=str)
one_per_optimizer = pytest.mark.parametrize("case", ONE_PER_OPTIMIZER, ids=str)
with_state = pytest.mark.parametrize("case", [case for case in CASES if case.states], ids=str)


def _away_from_zero(count: int, seed: int, dtype: torch.dtype) -> Tensor:
    """Magnitudes from 0.5 to 2, so that no square underflows in float16 and leaves a division by eps alone."""
    generator = torch.Generator().manual_seed(seed)
    sign = torch.randint(0, 2, (count,), generator=generator) * 2 - 1
    return (sign * (0.5 + 1.5 * torch.rand(count, generator=generator))).to(dtype)


@thinned("conversions know no rule; every mix of storages is the engine test's")
@every_case
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_16_bit_results_are_no_further_from_float64_than_the_for_loops(case: Case, dtype: torch.dtype) -> None:
    # Updates well above the spacing of the params. Below half of it both stand still, and what torch loses in its
    # intermediate roundings acts as a dither that by chance gets some elements over the threshold.
    lr = 10 * case.kwargs["lr"]
    values = [_away_from_zero(20_000, 0, dtype)]
    run: list[list[Tensor | None]] = [[_away_from_zero(20_000, seed, dtype)] for seed in range(1, 9)]
    oracle = Oracle(case.optimizer, {**case.kwargs, "lr": lr}, values)
    for grads in run:
        oracle.step(grads)
    ours, torchs = (
        (float64(train(build(leaves(values), lr=lr), run)[0]) - oracle.params[0]).abs().mean()
        for build in (case.ours, case.torchs)
    )
    assert ours.isfinite()
    # In some cases the rounding of the param outweighs all others: two equally good random walks differ by 0.3 %.
    assert ours <= torchs * 1.01


@thinned("conversions know no rule; every mix of storages is the engine test's")
@every_case
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_a_first_step_in_16_bits_rounds_once(case: Case, dtype: torch.dtype) -> None:
    """Half an ulp is what one rounding of the exact result costs."""
    values = [_away_from_zero(5_001, 0, dtype)]
    run: list[list[Tensor | None]] = [[_away_from_zero(5_001, 1, dtype)]]
    oracle = Oracle(case.optimizer, case.kwargs, values)
    oracle.step(run[0])
    ours = case.ours(leaves(values))
    (p,) = train(ours, run)
    assert ulp_error(p, oracle.params[0]).max() <= 0.501
    for name, tensor in state_tensors(ours, p).items():
        assert tensor.dtype == dtype
        assert ulp_error(tensor, oracle.state[0][name]).max() <= 0.501, name


@thinned("conversions know no rule; every mix of storages is the engine test's")
@every_case
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_states_have_torchs_dtypes_and_strides(case: Case, dtype: torch.dtype) -> None:
    values = [torch.randn(shape).to(dtype) for shape in SHAPES]
    run = random_gradients(values, steps=2)
    ours, torchs = case.ours(leaves(values)), case.torchs(leaves(values))
    train(ours, run)
    train(torchs, run)
    for p, q in zip(params_of(ours), params_of(torchs), strict=True):
        kinds = [
            [(name, s.dtype, s.shape, s.stride(), s.device) for name, s in o.state[x].items() if isinstance(s, Tensor)]
            for o, x in ((ours, p), (torchs, q))
        ]
        assert kinds[0] == kinds[1]


@thinned("conversions know no rule; every mix of storages is the engine test's")
@one_per_optimizer
@pytest.mark.parametrize(
    ("dtype", "grad_dtype"),
    [
        (torch.float32, torch.bfloat16),
        (torch.float32, torch.float16),
        (torch.float64, torch.float32),
        (torch.float64, torch.bfloat16),
    ],
    ids=str,
)
def test_a_narrower_gradient_counts_as_its_exact_value(case: Case, dtype: torch.dtype, grad_dtype: torch.dtype) -> None:
    values = [torch.randn(shape, dtype=dtype) for shape in SHAPES]
    narrow = random_gradients(values, steps=4, dtype=grad_dtype)
    wide: list[list[Tensor | None]] = [[g.to(dtype) for g in grads if g is not None] for grads in narrow]
    assert_identical(train(case.ours(leaves(values)), narrow), train(case.ours(leaves(values)), wide))


@one_per_optimizer
def test_a_float64_gradient_of_a_float32_param_is_rounded_first(case: Case) -> None:
    values = [torch.randn(shape) for shape in SHAPES]
    wide = random_gradients([v.double() for v in values], steps=4)
    narrow: list[list[Tensor | None]] = [[g.float() for g in grads if g is not None] for grads in wide]
    assert_identical(train(case.ours(leaves(values)), wide), train(case.ours(leaves(values)), narrow))


@thinned("conversions know no rule; every mix of storages is the engine test's")
@every_case
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("grad_dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_16_bit_param_takes_its_gradient_unrounded(case: Case, dtype: torch.dtype, grad_dtype: torch.dtype) -> None:
    values = [_away_from_zero(5_001, 0, dtype)]
    run: list[list[Tensor | None]] = [[_away_from_zero(5_001, 1, grad_dtype)]]
    oracle = Oracle(case.optimizer, case.kwargs, values)
    oracle.step(run[0])
    assert ulp_error(train(case.ours(leaves(values)), run)[0], oracle.params[0]).max() <= 0.501


def _widen_states(optimizer: torch.optim.Optimizer, exact: Mapping[str, Tensor] | None = None) -> None:
    for state in optimizer.state.values():
        for name, value in state.items():
            if isinstance(value, Tensor) and name not in COUNTERS:
                state[name] = (value if exact is None else exact[name]).float()


@thinned("conversions know no rule; every mix of storages is the engine test's")
@with_state
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_float32_states_of_16_bit_params_stay_and_are_more_accurate(case: Case, dtype: torch.dtype) -> None:
    values = [_away_from_zero(2_000, 0, dtype)]
    run: list[list[Tensor | None]] = [[_away_from_zero(2_000, seed, dtype)] for seed in range(1, 41)]
    oracle = Oracle(case.optimizer, case.kwargs, values)
    narrow, wide = case.ours(leaves(values)), case.ours(leaves(values))
    train(narrow, run)
    train(wide, run[:1])
    oracle.step(run[0])
    _widen_states(wide, oracle.state[0])
    for grads in run[1:]:
        oracle.step(grads)
    kept = state_tensors(wide, params_of(wide)[0])
    train(wide, run[1:])
    (p,), (q,) = params_of(wide), params_of(narrow)
    for name, tensor in state_tensors(wide, p).items():
        assert tensor is kept[name]
        assert tensor.dtype == torch.float32
        if case.param_enters_state:
            continue  # With it comes the rounding of the 16-bit param, which hides the difference.
        errors = [(float64(s) - oracle.state[0][name]).abs().mean() for s in (tensor, state_tensors(narrow, q)[name])]
        assert errors[0] < errors[1] / 4 or errors[0] == errors[1] == 0, name
    errors = [(float64(x) - oracle.params[0]).abs().mean() for x in (p, q)]
    assert errors[0] <= errors[1] * 1.01


@thinned("conversions know no rule; every mix of storages is the engine test's")
@with_state
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_loading_keeps_float32_states_of_16_bit_params(case: Case, dtype: torch.dtype) -> None:
    """torch casts them to the param's dtype without a word."""
    values = [torch.randn(shape).to(dtype) for shape in SHAPES]
    first, rest = random_gradients(values, steps=2), random_gradients(values, steps=3, seed=2)
    saved = case.ours(leaves(values))
    train(saved, first)
    _widen_states(saved)
    loaded = case.ours(leaves(params_of(saved)))
    loaded.load_state_dict(copy.deepcopy(saved.state_dict()))
    for p in params_of(loaded):
        assert {s.dtype for s in state_tensors(loaded, p).values()} == {torch.float32}
    assert_identical(train(loaded, rest), train(saved, rest))
    for p, q in zip(params_of(loaded), params_of(saved), strict=True):
        assert_identical(state_tensors(loaded, p), state_tensors(saved, q))


@thinned("conversions know no rule; every mix of storages is the engine test's")
@with_state
@pytest.mark.parametrize(
    ("dtype", "file_dtype"),
    [
        (torch.float32, torch.float64),
        (torch.float32, torch.bfloat16),
        (torch.float32, torch.float16),
        (torch.float64, torch.float32),
        (torch.float64, torch.bfloat16),
    ],
    ids=str,
)
def test_other_states_are_loaded_in_the_params_dtype(case: Case, dtype: torch.dtype, file_dtype: torch.dtype) -> None:
    values = [torch.randn(shape) for shape in SHAPES]
    source = case.torchs(leaves(v.to(file_dtype) for v in values))
    train(source, random_gradients(params_of(source), steps=2))
    file = copy.deepcopy(source.state_dict())
    ours, torchs = (build(leaves(v.to(dtype) for v in values)) for build in (case.ours, case.torchs))
    ours.load_state_dict(copy.deepcopy(file))
    torchs.load_state_dict(copy.deepcopy(file))
    for p, q in zip(params_of(ours), params_of(torchs), strict=True):
        assert_identical(state_tensors(ours, p), state_tensors(torchs, q))


@one_per_optimizer
def test_any_state_dtype_assigned_by_hand_is_used_and_kept(case: Case) -> None:
    values = [torch.randn(513)]
    run = random_gradients(values, steps=4)
    expected = case.ours(leaves(values))
    train(expected, run)
    for dtype, tolerance in ((torch.bfloat16, 0.05), (torch.float16, 0.005), (torch.float64, 1e-6)):
        ours = case.ours(leaves(values))
        (p,) = train(ours, run[:1])
        for name, tensor in state_tensors(ours, p).items():
            ours.state[p][name] = tensor.to(dtype)
        train(ours, run[1:])
        assert {s.dtype for s in state_tensors(ours, p).values()} == {dtype}
        # Prodigy's distance is made of small differences between params.
        if not case.joint:
            torch.testing.assert_close(p, params_of(expected)[0], rtol=tolerance, atol=tolerance)


@thinned("conversions know no rule; every mix of storages is the engine test's")
@every_case
@pytest.mark.parametrize("dtype", COMPLEX, ids=str)
def test_complex_params_step_as_pairs_of_reals(case: Case, dtype: torch.dtype) -> None:
    real = dtype.to_real()
    values = [torch.randn(5, 7, dtype=dtype), torch.randn(9, dtype=real), torch.randn(67, dtype=dtype)]
    values += [torch.randn((), dtype=dtype), torch.randn(0, 3, dtype=dtype)]
    run = random_gradients(values, steps=12)
    ours, torchs = case.ours(leaves(values)), case.torchs(leaves(values))
    torch.testing.assert_close(train(ours, run), train(torchs, run))
    for p, q in zip(params_of(ours), params_of(torchs), strict=True):
        torch.testing.assert_close(state_tensors(ours, p), state_tensors(torchs, q))
    as_pairs = [torch.view_as_real(v) if v.is_complex() else v for v in values]
    pair_run: list[list[Tensor | None]] = [
        [torch.view_as_real(g) if g is not None and g.is_complex() else g for g in grads] for grads in run
    ]
    pairs = train(case.ours(leaves(as_pairs)), pair_run)
    assert_identical([float64(p) for p in params_of(ours)], [float64(p) for p in pairs])


@thinned("conversions know no rule; every mix of storages is the engine test's")
@one_per_optimizer
@pytest.mark.parametrize("dtype", COMPLEX, ids=str)
def test_lazily_conjugated_and_negated_gradients(case: Case, dtype: torch.dtype) -> None:
    """Their memory holds other values than they have: torch marks `conj()` and `conj().imag` with a bit."""
    run = [[torch.randn(67, dtype=dtype), torch.randn(67, dtype=dtype)] for _ in range(3)]
    assert run[0][0].conj().is_conj()
    assert run[0][1].conj().imag.is_neg()
    lazy: list[list[Tensor | None]] = [[a.conj(), b.conj().imag] for a, b in run]
    plain: list[list[Tensor | None]] = [[a.conj_physical(), -b.imag] for a, b in run]
    values = [torch.randn(67, dtype=dtype), torch.randn(67, dtype=dtype.to_real())]
    torch.testing.assert_close(train(case.ours(leaves(values)), lazy), train(case.torchs(leaves(values)), plain))


LAZY_OPTIONS: list[dict[str, Any]] = [{"ema_decay": 0.5}, {"rounding": "stochastic"}, {"state_dtype": "bfloat16"}]


@pytest.mark.parametrize("released", [False, True], ids=["step", "step_in_backward"])
@pytest.mark.parametrize("options", LAZY_OPTIONS, ids=str)
@pytest.mark.parametrize("optimizer", ["AdamW", "LAMB", "SGD"])
def test_gradients_that_autograd_conjugates_lazily_go_with_options(
    optimizer: str, options: dict[str, Any], released: bool
) -> None:
    """As behind every conj() of a param; the same bits as of gradients that are written out."""
    values = [torch.randn(67, dtype=torch.complex64) for _ in range(3)]
    factors = [torch.randn(67, dtype=torch.complex64) for _ in range(3)]

    def run(lazy: bool) -> Any:
        module = torch.nn.Module()
        for name, value in zip("abc", values, strict=True):
            module.register_parameter(name, torch.nn.Parameter(value.clone()))
        params: list[Any] = list(module.parameters())
        ours = getattr(fusedopt, optimizer)(params, lr=0.1, **options)
        for p in params if not lazy else []:
            p.register_hook(lambda grad: grad.resolve_conj())
        seen = []
        for p in params if not released else []:
            p.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.is_conj()))
        handle = fusedopt.step_in_backward(module, ours) if released else None
        for _ in range(3):
            loss = (params[0].conj() * factors[0]).real.sum() + (params[2].conj() * factors[2]).real.sum()
            (loss + (params[1] * params[1]).real.sum()).backward()
            if handle is None:
                ours.step()
                ours.zero_grad()
        assert seen == [] or any(seen) is lazy
        return ours

    assert_identical(snapshot(run(True)), snapshot(run(False)))


@pytest.mark.parametrize("case", APART, ids=str)
def test_several_dtypes_in_one_group_do_not_disturb_each_other(case: Case) -> None:
    dtypes = [*FLOATS, *COMPLEX, *reversed(FLOATS)]
    values = [torch.randn(shape).to(dtype) for shape in SHAPES for dtype in dtypes]
    run = random_gradients(values, steps=3)
    together = train(case.ours(leaves(values)), run)
    for i, value in enumerate(values):
        alone = train(case.ours(leaves([value])), [[grads[i]] for grads in run])
        assert_identical([together[i]], alone)


def _round_through_the_engine(wide: Tensor, dtype: torch.dtype) -> Tensor:
    """0 + 1 * wide, stored in `dtype`: what is left of a step is the conversion of its result."""
    param = torch.nn.Parameter(torch.zeros(wide.shape, dtype=dtype))
    give(param, wide)
    fusedopt.SGD([param], lr=1.0, maximize=True).step()
    return param.detach()


def _near_ties(dtype: torch.dtype) -> Tensor:
    """Every finite value of a 16-bit dtype, the midpoint to the next one, and the float32 values around that."""
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype).float()
    every = every[every.isfinite()].sort().values
    middle = every[:-1] + (every[1:] - every[:-1]) / 2
    return torch.cat([every, middle, torch.nextafter(middle, every[:-1]), torch.nextafter(middle, every[1:])])


def _every_upper_half(_: torch.dtype) -> Tensor:
    """Any float32, NaN of many payloads included: all upper halves with the lower ones that decide the rounding."""
    upper = torch.arange(-(2**15), 2**15, dtype=torch.int32)[:, None] * 65536
    lower = torch.tensor([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], dtype=torch.int32)
    return (upper + lower).view(torch.float32).flatten()


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("source", [_near_ties, _every_upper_half])
def test_results_round_to_nearest_even_as_torch_converts(
    dtype: torch.dtype, source: Callable[[torch.dtype], Tensor]
) -> None:
    wide = source(dtype)
    rounded = _round_through_the_engine(wide, dtype)
    torch.testing.assert_close(rounded, wide.to(dtype), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_every_16_bit_value_is_read_exactly(dtype: torch.dtype) -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    (kept,) = train(fusedopt.SGD(leaves([every]), lr=1.0), [[torch.zeros_like(every)]])
    torch.testing.assert_close(kept.detach(), every, rtol=0, atol=0, equal_nan=True)
    wide = torch.nn.Parameter(torch.zeros(every.shape))
    give(wide, every)
    fusedopt.SGD([wide], lr=1.0, maximize=True).step()
    torch.testing.assert_close(wide.detach(), every.float(), rtol=0, atol=0, equal_nan=True)


def test_float16_overflow_becomes_infinite_and_bfloat16_nan_stays_nan() -> None:
    # 65519 is the last float32 integer that rounds to float16's largest number, 65504; 65520 is a tie that goes up.
    wide = torch.tensor([65519.0, 65520.0, -65520.0, 1e30, torch.nan]).repeat(7)
    expected = torch.tensor([65504.0, torch.inf, -torch.inf, torch.inf, torch.nan], dtype=torch.float16).repeat(7)
    torch.testing.assert_close(_round_through_the_engine(wide, torch.float16), expected, rtol=0, atol=0, equal_nan=True)
    # Cutting off the low half of this NaN would leave an infinity.
    nan = torch.full((35,), 0x7F800001, dtype=torch.int32).view(torch.float32)
    assert _round_through_the_engine(nan, torch.bfloat16).isnan().all()


@thinned("conversions know no rule; every mix of storages is the engine test's")
@one_per_optimizer
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_equal_16_bit_elements_stay_equal_and_all_move(case: Case, dtype: torch.dtype) -> None:
    """A vector body and a tail that rounded differently, or of which one stood still, would tell them apart."""
    lr = 100 * case.kwargs["lr"]  # far enough for any of them to leave the value that it starts from
    for count in (1, 7, 8, 15, 31, 33, 63, 127, 515, 1031):
        ours = case.ours(leaves([torch.full((count,), 0.3, dtype=dtype)]), lr=lr)
        (p,) = train(ours, [[torch.full((count,), 0.7, dtype=dtype)]] * 3)
        if case.optimizer != "RAdamScheduleFree":  # whose first steps are silent
            assert (p != torch.tensor(0.3, dtype=dtype)).all()
        assert p.unique().numel() == 1
