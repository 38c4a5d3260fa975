"""fusedopt.functional: torch's signatures, the bits of our classes, torch's numbers; nothing is kept."""

from __future__ import annotations

import gc
import importlib
import inspect
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import CASES, Case
from lists import lists_of_adam, tensors
from torch import Tensor
from torch.nn import Parameter

import fusedopt
from fusedopt import functional

NAMES = functional.__all__
MODULES = {"muon": "_muon", "adafactor": "_adafactor", "sparse_adam": "_functional"}


def torchs(name: str) -> Callable[..., None]:
    found: Callable[..., None] = getattr(importlib.import_module(f"torch.optim.{MODULES.get(name, name)}"), name)
    return found


def parameters(function: Callable[..., None]) -> dict[str, tuple[Any, Any]]:
    return {name: (p.kind, p.default) for name, p in inspect.signature(function).parameters.items()}


# torch 2.15, which documents them, has them in a module of their own.
OF_TORCH = sorted(torch.optim.functional.__all__) if hasattr(torch.optim, "functional") else None


@pytest.mark.skipif(OF_TORCH is None, reason="torch.optim.functional came with torch 2.15")
def test_all_are_there() -> None:
    assert sorted(NAMES) == OF_TORCH
    for name in NAMES:
        assert parameters(getattr(functional, name)) == parameters(getattr(torch.optim.functional, name)), name


@pytest.mark.parametrize("name", NAMES)
def test_a_signature_is_torchs(name: str) -> None:
    """Of an older torch as far as it has the arguments, which then stand in the same order."""
    ours, theirs = parameters(getattr(functional, name)), parameters(torchs(name))
    assert list(theirs.items()) == [(argument, told) for argument, told in ours.items() if argument in theirs]
    assert ours.keys() - theirs.keys() <= {"decoupled_weight_decay", "grad_scale", "found_inf", "has_complex"}


# Classes that take other params and so are not among the cases.
OTHERS = [
    Case("adafactor", "Adafactor", {"lr": 0.05, "weight_decay": 0.1}),
    Case("adafactor-eps", "Adafactor", {"eps": (1e-3, 0.5), "maximize": True}),
    Case("sparseadam", "SparseAdam", {"lr": 0.05}),
    Case("sparseadam-betas", "SparseAdam", {"lr": 0.05, "betas": (0.3, 0.6), "maximize": True}),
]
if "muon" in NAMES:
    OTHERS += [
        Case("muon", "Muon", {"lr": 0.05}),
        Case("muon-adjusted", "Muon", {"lr": 0.05, "nesterov": False, "adjust_lr_fn": "match_rms_adamw"}),
    ]

# The class that calls a function, and where it finds it. AdamW calls adam().
WITH_A_FUNCTION = OTHERS + [
    case
    for case in CASES
    if case.has_twin and case.optimizer.lower() in {*(name.replace("_", "") for name in NAMES), "adamw"}
]


def places(optimizer: str) -> list[tuple[Any, str]]:
    """Where torch's class finds the function that it calls."""
    name = {"SparseAdam": "sparse_adam", "AdamW": "adamw"}.get(optimizer, optimizer.lower())
    found = [(importlib.import_module(f"torch.optim.{MODULES.get(name, name)}"), name)]
    if optimizer == "AdamW":
        found.append((importlib.import_module("torch.optim.adam"), "adam"))
    return found


def noting(function: Callable[..., None], calls: list[str]) -> Callable[..., None]:
    def call(*args: Any, **kwargs: Any) -> None:
        calls.append(function.__name__)
        function(*args, **kwargs)

    return call


@pytest.fixture
def ours_in_torch(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[str]]:
    """Has torch's class of a name call our function, and notes the calls."""
    calls: list[str] = []

    def put(optimizer: str) -> list[str]:
        for module, name in places(optimizer):
            monkeypatch.setattr(module, name, noting(getattr(functional, name), calls))
        return calls

    return put


def params_for(case: Case, dtype: torch.dtype) -> list[Parameter]:
    """Matrices where it takes nothing else; else of several shapes and memory orders, one empty."""
    generator = torch.Generator().manual_seed(1)
    shapes = [(5, 3), (8, 8)] if case.optimizer in ("Muon", "SparseAdam") else [(5, 3), (1,), (0,), (37,)]
    made = [torch.randn(shape, dtype=dtype, generator=generator) for shape in shapes]
    if case.optimizer == "Adafactor":  # torch's own divides by the number of elements
        del made[2]
    elif case.optimizer not in ("Muon", "SparseAdam"):
        made.append(torch.randn(4, 6, dtype=dtype, generator=generator).t())
    return [Parameter(value) for value in made]


def set_grads(case: Case, params: list[Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    for p in params:
        grad = torch.randn(p.shape, dtype=p.dtype, generator=generator)
        p.grad = grad.to_sparse(1) if case.optimizer == "SparseAdam" else grad.as_strided(p.shape, p.stride())


def train(case: Case, optimizer: torch.optim.Optimizer, params: list[Parameter]) -> list[Tensor]:
    """What three steps leave in params and states."""
    for step in range(3):
        set_grads(case, params, step)
        optimizer.step()
    states = [optimizer.state[p] for p in params if p in optimizer.state]
    left = [torch.as_tensor(state[key]) for state in states for key in sorted(state) if state[key] is not None]
    return [*(p.detach() for p in params), *left]


def takes_complex(case: Case) -> bool:
    return case.optimizer not in ("Muon", "SparseAdam", "Adafactor")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64], ids=str)
@pytest.mark.parametrize("case", WITH_A_FUNCTION, ids=str)
def test_torchs_class_with_our_function_is_our_class(
    case: Case, dtype: torch.dtype, ours_in_torch: Callable[[str], list[str]]
) -> None:
    """torch's own step makes the lists and calls the function: the bits are those of the class."""
    if dtype.is_complex and not takes_complex(case):
        pytest.skip("takes no complex numbers")
    calls = ours_in_torch(case.optimizer)
    mine, lent = params_for(case, dtype), params_for(case, dtype)
    wanted = train(case, case.ours(mine), mine)
    found = train(case, getattr(torch.optim, case.optimizer)(lent, **case.kwargs), lent)
    assert len(calls) >= 3
    assert len(found) == len(wanted)
    for ours, other in zip(wanted, found, strict=True):
        assert ours.dtype == other.dtype
        assert torch.equal(ours, other)


@pytest.mark.parametrize("case", WITH_A_FUNCTION, ids=str)
def test_numbers_are_torchs(case: Case, ours_in_torch: Callable[[str], list[str]]) -> None:
    """In float64 nothing but the order of roundings differs."""
    if case.optimizer == "Muon":
        pytest.skip("its matrix products are in bfloat16 (tests/test_muon.py)")
    cls = getattr(torch.optim, case.optimizer)
    theirs = params_for(case, torch.float64)
    loop = {} if case.optimizer == "SparseAdam" else {"foreach": False}
    wanted = train(case, cls(theirs, **case.kwargs, **loop), theirs)
    ours_in_torch(case.optimizer)
    lent = params_for(case, torch.float64)
    found = train(case, cls(lent, **case.kwargs), lent)
    assert len(found) == len(wanted)
    for ours, other in zip(found, wanted, strict=True):
        # NAdam keeps a product of factors in float32, which torch multiplies there.
        tolerance = 1e-7 if case.optimizer == "NAdam" else 1e-12
        torch.testing.assert_close(ours.to(other.dtype), other, rtol=tolerance, atol=tolerance)


def test_adamw_is_adam_that_decays_params() -> None:
    one, other = lists_of_adam(), lists_of_adam()
    functional.adamw(**{**one, "weight_decay": 0.1})
    functional.adam(**{**other, "weight_decay": 0.1}, decoupled_weight_decay=True)
    plain = lists_of_adam()
    functional.adam(**{**plain, "weight_decay": 0.1})
    assert all(map(torch.equal, tensors(one), tensors(other)))
    assert not torch.equal(one["params"][0], plain["params"][0])


def test_the_engine_steps_ordinary_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("torch's function was called")

    monkeypatch.setattr("fusedopt._core.lists._call_torch", never)
    given = lists_of_adam()
    functional.adam(**given)
    assert float(given["state_steps"][0]) == 1.0


def test_params_keep_their_own_gradients() -> None:
    given = lists_of_adam(1)
    given["params"][0].grad = torch.full((3,), -7.0)
    twin = lists_of_adam(1)
    functional.adam(**given)
    functional.adam(**twin)
    assert torch.equal(given["params"][0], twin["params"][0])
    assert given["params"][0].grad.tolist() == [-7.0] * 3


def test_a_number_may_be_a_tensor() -> None:
    given, twin = lists_of_adam(), lists_of_adam()
    functional.adam(**{**given, "lr": torch.tensor(0.1, dtype=torch.float64)})
    functional.adam(**twin)
    assert torch.equal(given["params"][0], twin["params"][0])


def test_states_may_be_in_16_bits() -> None:
    """As torch's class keeps those of params in bfloat16, and ours where it is told to."""
    given = lists_of_adam(1, dtype=torch.bfloat16)
    given["params"] = [p.bfloat16() for p in given["params"]]
    given["grads"] = [grad.bfloat16() for grad in given["grads"]]
    param = Parameter(given["params"][0].clone())
    param.grad = given["grads"][0]
    optimizer = fusedopt.Adam([param], lr=0.1, betas=(0.9, 0.99), state_dtype="bfloat16")
    optimizer.step()
    functional.adam(**given)
    assert torch.equal(given["params"][0], param)


def test_scaled_gradients_are_divided_and_not_written() -> None:
    given, twin = lists_of_adam(), lists_of_adam()
    twin["grads"] = [grad * 4 for grad in twin["grads"]]
    functional.adam(**given)
    functional.adam(**twin, fused=True, grad_scale=torch.tensor(4.0), found_inf=torch.tensor(0.0))
    assert all(map(torch.equal, given["params"], twin["params"]))
    assert twin["grads"][0].tolist() == [2.0] * 3


@pytest.mark.parametrize("found", [1.0, 2.0, float("nan")])
def test_an_infinity_skips_the_step(found: float) -> None:
    given = lists_of_adam()
    functional.adam(**given, grad_scale=torch.tensor(4.0), found_inf=torch.tensor(found))
    assert all(map(torch.equal, tensors(given), tensors(lists_of_adam())))
    # Nothing of it is left for the next call.
    functional.adam(**given)
    assert [float(step) for step in given["state_steps"]] == [1.0, 1.0]


def test_sgd_enters_new_momentum_in_the_list() -> None:
    rest: dict[str, Any] = {"weight_decay": 0.0, "lr": 0.5, "dampening": 0.5, "nesterov": False, "maximize": False}
    param, momentum = torch.zeros(2), [None]
    functional.sgd([param], [torch.ones(2)], momentum, momentum=0.5, **rest)
    assert momentum[0] is not None
    kept: Tensor = momentum[0]
    functional.sgd([param], [torch.ones(2)], momentum, momentum=0.5, **rest)
    assert momentum[0] is kept
    assert (param.tolist(), kept.tolist()) == ([-1.0, -1.0], [1.0, 1.0])
    functional.sgd([param], [torch.ones(2)], [], momentum=0.0, **rest)
    assert param.tolist() == [-1.5, -1.5]


# What torch steps.


def test_sparse_gradients_among_dense_ones_are_torchs() -> None:
    rest: dict[str, Any] = {"weight_decay": 0.0, "lr": 0.5, "dampening": 0.0, "nesterov": False, "maximize": False}
    grads = [torch.ones(3, 2), torch.sparse_coo_tensor([[1]], [[1.0, 2.0]], (3, 2), check_invariants=True)]
    params, momentum = [torch.zeros(3, 2), torch.zeros(3, 2)], [None, None]
    functional.sgd(params, grads, momentum, momentum=0.5, has_sparse_grad=True, grad_scale=torch.tensor(0.5), **rest)
    assert params[0].tolist() == [[-1.0, -1.0]] * 3
    assert params[1].tolist() == [[0.0, 0.0], [-1.0, -2.0], [0.0, 0.0]]
    assert momentum[0] is not None
    assert momentum[1] is not None


def test_a_differentiable_step_is_torchs() -> None:
    given = lists_of_adam(1)
    lr = torch.tensor(0.1, requires_grad=True)
    functional.adam(**{**given, "lr": lr}, differentiable=True)
    given["params"][0].sum().backward()
    assert lr.grad is not None
    assert float(lr.grad) == pytest.approx(-3.0, rel=1e-5)


def test_a_param_that_is_listed_twice_has_two_states() -> None:
    given, twin = lists_of_adam(2), lists_of_adam(2)
    for lists in (given, twin):
        for name in ("params", "grads"):
            lists[name][1] = lists[name][0]
        for name in ("exp_avgs", "exp_avg_sqs"):
            lists[name][1] = torch.zeros(3)
    functional.adam(**given)
    torchs("adam")(**twin, foreach=False)
    assert all(map(torch.equal, tensors(given), tensors(twin)))


def test_dispatch_modes_see_torchs_operations() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    given = lists_of_adam(1)
    with FlopCounterMode(display=False):
        functional.adam(**given)
    assert float(given["state_steps"][0]) == 1.0


def test_compiled_code_calls_it_as_it_is() -> None:
    given, twin = lists_of_adam(1), lists_of_adam(1)

    @torch.compile(backend="eager")
    def step() -> None:
        functional.adam(**given)

    step()
    functional.adam(**twin)
    assert torch.equal(given["params"][0], twin["params"][0])


# Nothing is kept, nothing is shared.


def test_no_tensor_is_kept() -> None:
    given = lists_of_adam()
    functional.adam(**given)
    watched = [weakref.ref(tensor) for tensor in tensors(given)]
    del given
    gc.collect()
    assert [ref() for ref in watched] == [None] * len(watched)


def test_no_tensor_is_kept_of_a_call_that_was_refused() -> None:
    given = lists_of_adam()
    watched = [weakref.ref(tensor) for tensor in tensors(given)]
    with pytest.raises(ValueError, match="lr is nan"):
        functional.adam(**{**given, "lr": float("nan")})
    del given
    gc.collect()
    assert [ref() for ref in watched] == [None] * len(watched)


def test_threads_step_lists_of_their_own() -> None:
    wanted = lists_of_adam()
    for _ in range(20):
        functional.adam(**wanted)
    every = [lists_of_adam() for _ in range(4)]

    def work(given: dict[str, Any]) -> None:
        for _ in range(20):
            functional.adam(**given)

    threads = [threading.Thread(target=work, args=(given,)) for given in every]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for given in every:
        assert all(map(torch.equal, given["params"], wanted["params"]))


def test_lists_of_other_lengths_may_follow() -> None:
    for count in (3, 1, 2, 0):
        given = lists_of_adam(count)
        functional.adam(**given)
        assert [float(step) for step in given["state_steps"]] == [1.0] * count
