"""The options of optimizers that tests/cases.py does not drive: of rows, of products of matrices, of factors."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from backends import (  # noqa: F401
    Backend,
    assert_same_memory,
    backend_fixture,
)
from options import OPTIONS, PAIRS, Options, same
from support import params_of
from torch import Tensor
from torch.nn import Parameter

import fusedopt
from fusedopt import _C

# Rows of a multiple of 256, in which codes are possible, and others.
SHAPES = {
    "SparseAdam": [(40, 256), (9, 512), (30, 7), (50,)],
    "Muon": [(70, 60), (60, 70), (70, 60), (5, 3)],
    "Adafactor": [(70, 60), (3, 5, 40), (1030, 9), (5, 1100), (2100,), (), (2, 0)],
}
NAMES = [name for name in SHAPES if hasattr(fusedopt, name)]
LACKS = {"SparseAdam": {"ema_decay"}, "Adafactor": {"state_dtype"}}

every_optimizer = pytest.mark.parametrize("name", NAMES)


def options_for(name: str, options: Options) -> dict[str, Any]:
    if LACKS.get(name, set()) & set(options.kwargs):
        pytest.skip(f"{name} has no {', '.join(LACKS[name])}")
    kinds = _C.states(getattr(fusedopt, name)._rule)
    if options.codes and name == "Adafactor":
        pytest.skip("Adafactor has no state_dtype")
    codes = [state for state, kind in kinds.items() if kind in ("average", "magnitude")] if options.codes else []
    return {**options.kwargs, **({"state_dtype": dict.fromkeys(codes, options.codes)} if codes else {})}


def shapes_of(name: str, given: dict[str, Any]) -> list[tuple[int, ...]]:
    coded = "int" in str(given.get("state_dtype"))
    return [s for s in SHAPES[name] if not (coded and name == "SparseAdam") or s[-1] % 256 == 0]


def make(name: str, dtype: torch.dtype, place: Callable[[Tensor], Tensor] = torch.clone, **given: Any) -> Any:
    generator = torch.Generator().manual_seed(5)
    values = [torch.randn(shape, generator=generator).bfloat16().to(dtype) for shape in shapes_of(name, given)]
    return getattr(fusedopt, name)([Parameter(place(value)) for value in values], lr=0.05, **given)


def give(optimizer: Any, seed: int) -> None:
    """Gradients that bfloat16 holds."""
    generator = torch.Generator().manual_seed(100 + seed)
    for param in params_of(optimizer):
        grad = torch.randn(param.shape, generator=generator).bfloat16().to(param.dtype)
        if type(optimizer).__name__ == "SparseAdam":
            rows = torch.randint(param.shape[0], (1, 12), generator=generator).unique(dim=1)
            grad = torch.sparse_coo_tensor(rows, grad[rows[0]], param.shape, check_invariants=True)
        param.grad = grad.to(param.device)


def train(optimizer: Any, first: int = 0, count: int = 4) -> Any:
    for seed in range(first, first + count):
        give(optimizer, seed)
        optimizer.step()
    return optimizer


def tensors_of(optimizer: Any) -> list[Any]:
    return [x for p in params_of(optimizer) for x in (p.detach(), *(v for _, v in sorted(optimizer.state[p].items())))]


@every_optimizer
@pytest.mark.parametrize(("options", "dtype"), PAIRS, ids=str)
def test_bits_of_both_engines(backend: Backend, name: str, options: Options, dtype: torch.dtype) -> None:
    given = options_for(name, options)
    ours = backend.adopt(make(name, dtype, backend.place, **given))
    for here, there in zip(tensors_of(train(make(name, dtype, **given))), tensors_of(train(ours)), strict=True):
        if isinstance(here, Tensor):
            assert_same_memory(there.to("cpu") if backend.name == "cuda" else there, here)
        else:
            assert here == there


@every_optimizer
@pytest.mark.parametrize("weights", ["float32", "remainder"])
def test_master_weights_are_the_params_in_float32(name: str, weights: Any) -> None:
    plain = train(make(name, torch.float32))
    exact = train(make(name, torch.bfloat16, master_weights=weights))
    for expected, param in zip(params_of(plain), params_of(exact), strict=True):
        its = exact.state[param]
        if weights == "float32":
            master = its["master"]
            assert same(param.detach(), master.bfloat16())
        else:
            high, low = param.detach().float().view(torch.int32), its["remainder"].int()
            master = (high + low).view(torch.float32)
        assert same(master, expected.detach())


@every_optimizer
@pytest.mark.parametrize(
    "remedy", [{"master_weights": "float32"}, {"master_weights": "remainder"}, {"rounding": "kahan"}]
)
def test_an_edited_param_goes_on_from_the_edit(name: str, remedy: dict[str, Any]) -> None:
    """Pruned to zero, it is a step away from that, and neither what it was nor NaN."""
    optimizer = train(make(name, torch.bfloat16, **remedy))
    with torch.no_grad():
        for param in params_of(optimizer):
            param.zero_()
    train(optimizer, first=4, count=1)
    for param in params_of(optimizer):
        assert not param.numel() or float(param.detach().abs().max()) < 0.2


@every_optimizer
def test_kahan_stays_near(name: str) -> None:
    plain, near, naive = (
        train(make(name, dtype, **given), count=30)
        for dtype, given in [(torch.float32, {}), (torch.bfloat16, {"rounding": "kahan"}), (torch.bfloat16, {})]
    )
    off = [
        sum(float((p.float() - q).abs().sum()) for p, q in zip(params_of(o), params_of(plain), strict=True))
        for o in (near, naive)
    ]
    assert off[0] < 0.7 * off[1]


@every_optimizer
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_checkpoint_goes_on(name: str, options: Options) -> None:
    given, dtype = options_for(name, options), options.dtypes[0]
    whole = train(make(name, dtype, **given), count=5)
    saved = train(make(name, dtype, **given), count=3)
    resumed = make(name, dtype, **given)
    for mine, theirs in zip(params_of(resumed), params_of(saved), strict=True):
        mine.data.copy_(theirs.data)
    resumed.load_state_dict(copy.deepcopy(saved.state_dict()))
    train(resumed, first=3, count=2)
    for expected, actual in zip(tensors_of(whole), tensors_of(resumed), strict=True):
        assert same(expected, actual)


@every_optimizer
def test_gradients_are_cleared(name: str) -> None:
    plain, cleared = train(make(name, torch.float32), count=1), make(name, torch.float32)
    give(cleared, 0)
    cleared.step(zero_grad=True)
    for expected, param in zip(params_of(plain), params_of(cleared), strict=True):
        assert same(expected.detach(), param.detach())
        assert not param.grad.to_dense().any()


@pytest.mark.skipif("Muon" not in NAMES, reason="needs torch 2.9")
def test_copies_and_averages_of_muon() -> None:
    optimizer = make("Muon", torch.float32, ema_decay=0.5)
    copies = {p: torch.zeros_like(p, dtype=torch.bfloat16) for p in params_of(optimizer)}
    optimizer.copy_params_to(copies)
    average = [p.detach().clone() for p in params_of(optimizer)]
    for seed in range(3):
        train(optimizer, seed, 1)
        for i, p in enumerate(params_of(optimizer)):
            average[i] = p.detach().clone() if seed == 0 else average[i].lerp(p.detach(), 0.5)
    for p, expected in zip(params_of(optimizer), average, strict=True):
        assert same(copies[p], p.detach().bfloat16())
        torch.testing.assert_close(optimizer.state[p]["ema"], expected)


@pytest.mark.parametrize("rows", [(100, 255), (6000,)])
def test_codes_of_slices_that_are_no_blocks(rows: tuple[int, ...]) -> None:
    param = Parameter(torch.zeros(rows))
    optimizer = fusedopt.SparseAdam([param], state_dtype="int8")
    param.grad = torch.zeros(rows).index_fill_(0, torch.tensor([3]), 1.0).to_sparse(1)
    with pytest.raises(RuntimeError, match=r"256 elements share a scale, and its slices have (255|1); give another"):
        optimizer.step()
    assert not optimizer.state
    assert not param.any()


def test_a_param_that_is_listed_twice_counts_twice() -> None:
    with pytest.warns(UserWarning, match="duplicate parameters"):
        once, twice = make("SparseAdam", torch.float32), fusedopt.SparseAdam([p := Parameter(torch.zeros(4, 3))] * 2)
    train(once, count=1)
    p.grad = torch.ones(4, 3).to_sparse(1)
    twice.step()
    assert twice.state[p]["step"] == 2
