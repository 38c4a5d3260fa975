"""Master weights, roundings, states in other storages, averages, copies: against the same step without them."""

from __future__ import annotations

from typing import Any

import formula_of_codes as formula
import pytest
import torch
from cases import ONE_PER_OPTIMIZER, Case, named
from layouts import OF_ONE_SHAPE
from options import OPTIONS, Options, same, steps, values
from runs import give, random_gradients, train
from support import every_isa, params_of
from torch import Tensor
from torch.nn import Parameter

import fusedopt
from fusedopt import _C
from fusedopt._core.precision import exact_param

HALVES = (torch.bfloat16, torch.float16)
one_per_optimizer = pytest.mark.parametrize("case", ONE_PER_OPTIMIZER, ids=str)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@one_per_optimizer
def test_master_weights_are_the_float32_run(case: Case, dtype: torch.dtype) -> None:
    ours = steps(case.ours([Parameter(v) for v in values(dtype)], master_weights="float32", state_dtype="float32"), 5)
    wide = case.ours([Parameter(v.float()) for v in values(dtype)])
    train(wide, random_gradients(params_of(ours), 5))
    for p, q in zip(params_of(ours), params_of(wide), strict=True):
        assert same(ours.state[p]["master"], q.detach())
        assert same(p.detach(), q.detach().to(dtype))
        for key, value in wide.state[q].items():
            assert value is None or same(ours.state[p][key], value)


@one_per_optimizer
def test_remainder_is_the_master_in_two_halves(case: Case) -> None:
    ours = steps(case.ours([Parameter(v) for v in values(torch.bfloat16)], master_weights="remainder"), 6)
    master = steps(case.ours([Parameter(v) for v in values(torch.bfloat16)], master_weights="float32"), 6)
    for p, q in zip(params_of(ours), params_of(master), strict=True):
        assert ours.state[p]["remainder"].dtype == torch.int16
        assert same(exact_param(p, "remainder", ours.state[p]["remainder"]), master.state[q]["master"])
        # Ties alone may be rounded the other way.
        apart = p.detach() != q.detach()
        assert not (apart & (ours.state[p]["remainder"] != -(2**15))).any()


def test_remainder_holds_every_float32() -> None:
    """All upper halves with the lower halves around the ends and the ties."""
    upper = torch.arange(2**16, dtype=torch.int64) << 16
    lower = torch.tensor([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
    bits = (upper[:, None] + lower).flatten()
    exact = torch.where(bits >= 2**31, bits - 2**32, bits).to(torch.int32).view(torch.float32)
    param = Parameter(torch.zeros(exact.numel(), dtype=torch.bfloat16))
    optimizer = fusedopt.SGD([param], lr=1.0, master_weights="remainder")
    give(param, -exact)
    optimizer.step()
    joined = exact_param(param, "remainder", optimizer.state[param]["remainder"])
    finite = exact.isfinite()
    assert torch.equal(joined[finite], exact[finite] + 0.0)
    assert torch.equal(param.detach().isnan(), exact.isnan())
    assert torch.equal(param.detach()[exact.isinf()].float(), exact[exact.isinf()])


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@one_per_optimizer
def test_kahan_stays_near_the_float32_run(case: Case, dtype: torch.dtype) -> None:
    """The pair carries 16 bits of significand: two bfloat16s, or 22 of two float16s."""
    runs = {
        name: steps(case.ours([Parameter(v) for v in values(dtype)], state_dtype="float32", **options), 40)
        for name, options in {
            "kahan": {"rounding": "kahan"},
            "nearest": {},
            "master": {"master_weights": "float32"},
        }.items()
    }
    errors = dict.fromkeys(("kahan", "nearest"), 0.0)
    for p, q, exact in zip(*map(params_of, runs.values()), strict=True):
        master = runs["master"].state[exact]["master"].double()
        pair = exact_param(p, "compensation", runs["kahan"].state[p]["compensation"]).double()
        errors["kahan"] += (pair - master).abs().sum().item()
        errors["nearest"] += (q.detach().double() - master).abs().sum().item()
    assert errors["kahan"] < errors["nearest"] / 20


def test_kahan_survives_what_is_not_finite() -> None:
    param = Parameter(torch.tensor([1.0, 3e38, -1.0], dtype=torch.bfloat16))
    optimizer = fusedopt.SGD([param], lr=1.0, rounding="kahan")
    give(param, torch.tensor([float("-inf"), -3e38, float("nan")]))
    optimizer.step()
    give(param, torch.zeros(3))
    optimizer.step()
    assert param.isinf().tolist() == [True, True, False]
    assert param.isnan().tolist() == [False, False, True]


@pytest.mark.parametrize(
    ("dtype", "start", "step"),
    [
        (torch.bfloat16, 1.0, 2**-10),  # an eighth of the spacing
        (torch.bfloat16, -1.0, 3 * 2**-9),
        (torch.float16, 1.0, 2**-13),
        (torch.float16, -5.0, 2**-11),
        (torch.float16, 2**-20, 2**-27),  # among its denormals
    ],
    ids=str,
)
def test_stochastic_rounding_is_unbiased(dtype: torch.dtype, start: float, step: float) -> None:
    """The mean of many draws is the exact result, within five standard errors, over elements and over steps."""
    count, rounds = 20_000, 16
    param = Parameter(torch.full((count,), start, dtype=dtype))
    optimizer = fusedopt.SGD([param], lr=1.0, rounding="stochastic", rounding_seed=11)
    for _ in range(rounds):
        give(param, torch.full((count,), -step))
        optimizer.step()
    moved = param.detach().double() - start
    spread = moved.std().item() / count**0.5
    assert spread > 0
    assert abs(moved.mean().item() - rounds * step) < 5 * spread
    # Neighbours, and an element with itself a step later, share nothing.
    centred = moved - moved.mean()
    assert abs((centred[1:] * centred[:-1]).mean().item()) < 5 * moved.var().item() / count**0.5


def test_stochastic_rounding_leaves_what_fits() -> None:
    for dtype in HALVES:
        every = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype)
        every = every[every.isfinite()]
        param = Parameter(every.clone())
        fusedopt_step(param, torch.zeros(param.numel()), rounding="stochastic")
        assert torch.equal(param.detach(), every)


def fusedopt_step(param: Parameter, grad: Tensor, **options: Any) -> Any:
    optimizer = fusedopt.SGD([param], lr=1.0, **options)
    give(param, grad)
    optimizer.step()
    return optimizer


@every_isa
@pytest.mark.usefixtures("isa")
def test_draws_depend_on_seed_step_and_place_alone() -> None:
    def run(seed: int, threads: int = 1, parts: int = 1) -> Tensor:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            param = Parameter(torch.ones(600_001, dtype=torch.bfloat16))
            optimizer = fusedopt.SGD([param], lr=1.0, rounding="stochastic", rounding_seed=seed)
            for i in range(3):
                if i and parts > 1:  # a resumed run goes on with the draws
                    resumed = fusedopt.SGD([param], lr=1.0, rounding="stochastic", rounding_seed=seed)
                    resumed.load_state_dict(optimizer.state_dict())
                    optimizer = resumed
                give(param, torch.full((param.numel(),), 2**-10))
                optimizer.step()
            return param.detach().clone()
        finally:
            torch.set_num_threads(before)

    first = run(5)
    assert same(run(5, parts=3), first)
    assert same(run(5, threads=2), first)
    assert not same(run(6), first)
    _C.use_isa("generic")
    assert same(run(5), first)


# Half of the step between codes, of a number that is one unit larger; the code of the largest, and its units.
HALF_STEP = {8: 1 / 16, 4: 1 / 4}
MOST = {"int8": (127, 61439), "uint8": (255, 15 * 2**28), "int4": (7, 11), "uint4": (15, 191)}
codes_of_all_kinds = pytest.mark.parametrize("code", MOST)


@codes_of_all_kinds
def test_codes_keep_relative_size(code: str) -> None:
    signed = not code.startswith("u")
    numbers = torch.logspace(-6, 0, 4096)
    numbers = numbers * torch.tensor([1.0, -1.0]).repeat(2048) if signed else numbers
    numbers = numbers[torch.randperm(4096, generator=torch.Generator().manual_seed(0))]
    codes, scales = _C.encode(numbers, code, numbers)
    back = _C.decode(codes, scales, numbers)
    assert scales.numel() == 4096 // _C.CODE_BLOCK
    assert codes.numel() == 4096 * formula.bits_of(code) // 8
    unit = scales.repeat_interleave(_C.CODE_BLOCK)
    largest = numbers.abs().view(-1, _C.CODE_BLOCK).amax(1)
    assert torch.allclose(back.abs().view(-1, _C.CODE_BLOCK).amax(1), largest, rtol=3e-7, atol=0)
    near = (back - numbers).abs() <= (numbers.abs() + unit) * HALF_STEP[formula.bits_of(code)]
    # Of what would be nearest to 0, and is kept from it.
    least = back.abs() <= unit * 2 * HALF_STEP[formula.bits_of(code)]
    assert (near | (least & (numbers < back))).all() if not signed else near.all()
    assert signed or (back > 0).all()
    again = _C.encode(back, code, numbers)
    assert torch.equal(again[0], codes)
    assert torch.equal(again[1], scales)


@codes_of_all_kinds
def test_every_code_comes_back(code: str) -> None:
    """Each magnitude, with either sign, beside the largest of its block."""
    most, units = MOST[code]
    shift = 20 if formula.bits_of(code) == 8 else 22
    ladder = (0x3F800000 + (torch.arange(most + 1, dtype=torch.int32) << shift)).view(torch.float32) - 1
    assert ladder[-1] == units
    steps = torch.cat([ladder] if code.startswith("u") else [ladder, -ladder[1:]])
    for number in (1.0, 3e-30, 1.7, 6e33):
        block = steps / units * number
        values = torch.cat([block, torch.zeros(-len(block) % _C.CODE_BLOCK), block])
        codes, scales = _C.encode(values, code, values)
        back = _C.decode(codes, scales, values)
        again = _C.encode(back, code, values)
        assert torch.equal(again[0], codes)
        assert torch.equal(again[1], scales)
        # Where the unit is no denormal.
        if number / units > 2.0**-126:
            torch.testing.assert_close(back, values, rtol=1e-6, atol=0)


def test_a_word_holds_what_is_far_apart() -> None:
    """Place k of word w is element w + k * (words of a block)."""
    for code, words in (("uint8", 64), ("uint4", 32)):
        for element in (0, 1, words - 1, words, 3 * words + 5, _C.CODE_BLOCK - 1):
            values = torch.zeros(2 * _C.CODE_BLOCK)
            values[_C.CODE_BLOCK + element] = 1.0
            codes, _ = _C.encode(values, code, values)
            word, place = element % words, element // words
            bits = formula.bits_of(code)
            expected = torch.zeros(2, words, dtype=torch.int64)
            expected[1, word] = MOST[code][0] << (place * bits)
            assert codes.view(torch.uint32).to(torch.int64).equal(expected)


@codes_of_all_kinds
def test_blocks_of_any_size_have_a_scale(code: str) -> None:
    """All zeros, what underflows, a very large float, and what is not finite, each in a block of its own."""
    blocks = torch.zeros(6, _C.CODE_BLOCK)
    blocks[1, 3], blocks[2, 0], blocks[3] = 1e-45, 2e-38, 3e38
    blocks[4, 7], blocks[5, 9] = torch.inf, torch.nan
    codes, scales = _C.encode(blocks, code, blocks)
    back = _C.decode(codes, scales, blocks)
    assert torch.equal(back[0], blocks[0])
    assert torch.equal(back[2:4] != 0, blocks[2:4] != 0)
    assert torch.allclose(back[2:4], blocks[2:4], rtol=1 / 4, atol=1e-39)
    assert back[4:].isnan().all()
    again = _C.encode(back[:4], code, blocks[:4])
    assert torch.equal(again[0], codes[:4])
    assert torch.equal(again[1], scales[:4])


@pytest.mark.parametrize("storage", ["int8", "int4"])
@pytest.mark.parametrize("number", [float("nan"), float("-inf")])
def test_the_engines_codes_of_what_is_not_finite(storage: str, number: float) -> None:
    param = Parameter(torch.zeros(5000))
    grad = torch.randn(5000, generator=torch.Generator().manual_seed(0))
    grad[300] = number
    optimizer = fusedopt.SGD([param], lr=1.0, momentum=0.9, state_dtype=storage)
    give(param, grad)
    optimizer.step()
    state = optimizer.state[param]
    codes, scales = formula.encode(grad, storage, grad)
    assert same(state["momentum_buffer"], codes)
    assert torch.equal(state["momentum_buffer_scale"].isnan(), scales.isnan())
    assert scales.isnan().nonzero().flatten().tolist() == [1]


@pytest.mark.parametrize(("storage", "value"), [("int8", 0.013), ("int4", 0.13)])
def test_codes_drawn_by_chance_are_unbiased(storage: str, value: float) -> None:
    """Numbers between two codes, whose units another number sets, come out right in the mean."""
    grad = torch.full((200 * _C.CODE_BLOCK,), value)
    grad[:: _C.CODE_BLOCK] = 1.0
    param = Parameter(torch.zeros_like(grad))
    optimizer = fusedopt.SGD([param], lr=1.0, momentum=0.9, state_dtype=storage, rounding="stochastic", rounding_seed=3)
    give(param, grad)
    optimizer.step()
    state = optimizer.state[param]
    found = _C.decode(state["momentum_buffer"], state["momentum_buffer_scale"], param)
    assert torch.allclose(found[:: _C.CODE_BLOCK], grad[:: _C.CODE_BLOCK], rtol=3e-7)
    others = found[grad < 1].double()
    assert others.unique().numel() == 2
    assert abs(others.mean().item() - value) < 5 * others.std().item() / others.numel() ** 0.5


@pytest.mark.parametrize("storage", ["int8", "int4"])
def test_averages_of_codes_decay(storage: str) -> None:
    """No rounding holds a block where it is: its unit follows its largest to the last bit."""
    param = Parameter(torch.zeros(8192))
    optimizer = fusedopt.AdamW([param], betas=(0.9, 0.999), state_dtype=storage)
    generator = torch.Generator().manual_seed(0)
    give(param, torch.rand(8192, generator=generator) + 0.5)
    optimizer.step()
    state = optimizer.state[param]
    first = _C.decode(state["exp_avg_sq"], state["exp_avg_sq_scale"], param)
    for _ in range(500):
        give(param, torch.zeros(8192))
        optimizer.step()
    assert torch.allclose(
        _C.decode(state["exp_avg_sq"], state["exp_avg_sq_scale"], param), first * 0.999**500, rtol=1e-3
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", [o for o in OPTIONS if o.name in ("codes", "four-bit-codes")], ids=str)
@one_per_optimizer
def test_a_step_on_codes_is_decode_step_encode(case: Case, options: Options, dtype: torch.dtype) -> None:
    """The engine's codes are those of the formula, bit for bit."""
    ours = case.ours([Parameter(v) for v in values(dtype)], **options.of(case))
    wide = dict.fromkeys(options.of(case).get("state_dtype", {}), "float32")
    plain = case.ours([Parameter(v) for v in values(dtype)], state_dtype=wide)
    for grads in random_gradients(params_of(ours), 4):
        for optimizer in (ours, plain):
            train(optimizer, [grads])
        for p, q in zip(params_of(ours), params_of(plain), strict=True):
            assert same(p.detach(), q.detach())
            for name in wide:
                value, state = plain.state[q].get(name), ours.state[p]
                if p.numel() < _C.LEAST_CODED:
                    assert value is None or state[name].dtype == torch.float32
                    assert name + "_scale" not in state
                    continue
                unsigned = "" if state[name].dtype == torch.int8 else "u"
                codes, scales = formula.encode(value, unsigned + options.codes, q)
                assert same(state[name], codes)
                assert same(state[name + "_scale"], scales)
                plain.state[q][name] = formula.decode(codes, scales, q)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_params_of_any_layout(options: Options) -> None:
    """The same numbers as for contiguous params, in what is kept too."""
    dtype = options.dtypes[0]
    shape = OF_ONE_SHAPE[0].shape
    value = torch.randn(shape).to(dtype)
    case = named("adamw")
    placed = [case.ours([Parameter(layout.place(value).tensor)], **options.of(case)) for layout in OF_ONE_SHAPE]
    if placed[0]._precision.draws:  # which go by the order of memory
        return
    for optimizer in placed:
        steps(optimizer, 3)
    first = placed[0]
    (p,) = params_of(first)
    for optimizer in placed[1:]:
        (q,) = params_of(optimizer)
        assert same(q.detach(), p.detach())
        for key, kept in first.state[p].items():
            assert key == "code_order" or same(optimizer.state[q][key], kept)
