"""What no engine takes takes torch's own step: sparse gradients, autograd, tensors and modes that dispatch, tracing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

import pytest
import torch
from cases import ONE_PER_OPTIMIZER, ONE_PER_TWIN, TWINS, Case, named
from support import (
    COUNTERS,
    assert_close,
    assert_identical,
    give_grads,
    make_params,
    outcome,
    params_of,
    snapshot,
    train,
)
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import fusedopt


def sparse_grad(p: Tensor, seed: int) -> Tensor:
    """Two rows of a matrix, one of them twice: not coalesced."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.tensor([[0, 2, 2]])
    values = torch.randn(3, p.shape[1], generator=generator)
    return torch.sparse_coo_tensor(rows, values, p.shape, check_invariants=True)


SPARSE: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("SGD", {}),
    "sgd-maximize": ("SGD", {"maximize": True}),
    "sgd-momentum": ("SGD", {"momentum": 0.9}),
    "sgd-nesterov": ("SGD", {"momentum": 0.9, "nesterov": True}),
    "sgd-fused": ("SGD", {"fused": True}),
    "sgd-foreach": ("SGD", {"foreach": True}),
    "adagrad": ("Adagrad", {}),
    "adagrad-decay": ("Adagrad", {"lr_decay": 0.1, "initial_accumulator_value": 0.25, "maximize": True}),
    "adagrad-fused": ("Adagrad", {"fused": True}),
    "adagrad-foreach": ("Adagrad", {"foreach": True}),
}


@pytest.mark.parametrize(("name", "kwargs"), SPARSE.values(), ids=SPARSE)
def test_sparse_and_dense_in_one_step(name: str, kwargs: dict[str, Any]) -> None:
    case, flags = Case(name, name, {"lr": 0.1, **kwargs}), {"fused": None, "foreach": False}
    ours = case.ours(make_params([(4, 3), (67,), (5, 2)]))
    torchs = case.torchs(make_params([(4, 3), (67,), (5, 2)]), **flags)
    dense = case.ours(make_params([(67,)]))  # what the fused path makes of the one in the middle
    params_of(dense)[0].data.copy_(params_of(ours)[1])
    for i in range(4):
        for optimizer in (ours, torchs):
            params = params_of(optimizer)
            give_grads(params, i)
            params[0].grad = sparse_grad(params[0], i)
            if i == 2 and "momentum" not in kwargs:  # torch cannot take a sparse gradient into a dense buffer
                params[2].grad = sparse_grad(params[2], i)
            optimizer.step()
        params_of(dense)[0].grad = params_of(ours)[1].grad
        dense.step()
    for p, q in zip(params_of(ours), params_of(torchs), strict=True):
        torch.testing.assert_close(p, q)
        torch.testing.assert_close(ours.state.get(p), torchs.state.get(q))
    assert_identical(params_of(ours)[1], params_of(dense)[0])


@pytest.mark.parametrize("name", ["SGD", "Adagrad"])
def test_an_embedding_beside_dense_layers(name: str) -> None:
    def run(make: Callable[..., Optimizer]) -> torch.nn.Module:
        torch.manual_seed(1)
        model = torch.nn.ModuleList([torch.nn.Embedding(20, 6, sparse=True), torch.nn.Linear(6, 3)])
        optimizer = make(model.parameters())
        for i in range(5):
            optimizer.zero_grad()
            model[1](model[0](torch.tensor([i, 2, 2, 19 - i]))).square().sum().backward()
            assert model[0].weight.grad.is_sparse
            optimizer.step()
        return model

    case = Case(name, name, {"lr": 0.1})
    for p, q in zip(run(case.ours).parameters(), run(case.torchs).parameters(), strict=True):
        torch.testing.assert_close(p, q)


@pytest.mark.parametrize("name", ["SGD", "Adagrad"])
def test_weight_decay_on_sparse_gradients_raises_as_torch(name: str) -> None:
    def act(make: Callable[..., Optimizer]) -> tuple[Any, Optimizer, Any]:
        optimizer = make(make_params([(67,), (4, 3)]), foreach=False)
        params = params_of(optimizer)
        give_grads(params, 0)
        params[1].grad = sparse_grad(params[1], 0)
        before = snapshot(optimizer)
        return outcome(optimizer.step), optimizer, before

    case = Case(name, name, {"lr": 0.1, "weight_decay": 0.1})
    (mine, ours, before), (theirs, *_) = act(case.ours), act(case.torchs)
    assert mine == theirs is not None
    # torch's Adagrad has counted the step when it finds out.
    assert_identical(snapshot(ours)[0], before[0])
    assert_identical([s["sum"] for s in snapshot(ours)[1].values()], [s["sum"] for s in before[1].values()])


@pytest.mark.parametrize("steps_before", [0, 2])
@pytest.mark.parametrize("case", [c for c in ONE_PER_TWIN if c.optimizer not in ("SGD", "Adagrad")], ids=str)
def test_the_others_refuse_sparse_gradients_and_change_nothing(case: Case, steps_before: int) -> None:
    def act(make: Callable[..., Optimizer]) -> Optimizer:
        dense, mixed = make_params([(67,)]), make_params([(9,), (4, 3), (5,)], seed=1)
        optimizer = make([{"params": dense}, {"params": mixed}])
        train(optimizer, steps_before)
        give_grads([*dense, *mixed], 9)
        mixed[1].grad = sparse_grad(mixed[1], 9)
        return optimizer

    ours, torchs = act(case.ours), act(case.torchs)
    before, groups = snapshot(ours), ours.param_groups
    expected = outcome(torchs.step)
    assert expected is not None
    assert "does not support sparse gradients" in expected[1]
    assert outcome(ours.step) == expected
    assert_identical(snapshot(ours), before)
    assert ours.param_groups is groups
    assert len(groups) == 2
    params_of(ours)[2].grad = None
    params_of(torchs)[2].grad = None
    ours.step()  # and goes on as if nothing had happened
    assert ours.state[params_of(ours)[0]].get("step", torch.tensor(1.0)).item() == steps_before + 1


def test_sparse_gradients_are_refused_before_dense_ones_are_stepped_by_torch() -> None:
    """Both are torch's here, and the sparse one comes last in the groups."""
    dense, sparse = Parameter(torch.ones(3, 2)), Parameter(torch.ones(3, 2))
    dense.grad, sparse.grad = torch.ones(3, 2), sparse_grad(sparse, 0)
    optimizer = fusedopt.Adam([{"params": [dense], "differentiable": True}, {"params": [sparse]}])
    with pytest.raises(RuntimeError, match="Adam does not support sparse gradients"):
        optimizer.step()
    assert dense.tolist() == [[1.0, 1.0]] * 3
    assert not optimizer.state.get(dense)


def enter_state(optimizer: Optimizer, case: Case, p: Tensor, states: Sequence[Tensor]) -> None:
    """Counters in the middle of a run, and copies of the given states."""
    middle = {"step": 3.0, "mu_product": 0.3, "eta": 0.05, "mu": 0.5}
    counters = {name: torch.tensor(middle[name], dtype=p.dtype) for name in case.counters}
    optimizer.state[p] = {**counters, **{k: s.clone() for k, s in zip(case.states, states, strict=True)}}


@pytest.mark.parametrize("case", ONE_PER_TWIN, ids=str)
def test_gradcheck_through_the_step(case: Case) -> None:
    def step(make: Callable[..., Optimizer], p: Tensor, grad: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        p = p.clone()
        p.grad = grad
        optimizer = make([p], differentiable=True)
        enter_state(optimizer, case, p, states)
        optimizer.step()
        return (p, *(optimizer.state[p][name] for name in case.states))

    inputs = [torch.rand(5, dtype=torch.float64, requires_grad=True) for _ in range(2 + len(case.states))]
    mine, theirs = (
        outcome(lambda: torch.autograd.gradcheck(partial(step, make), inputs))  # noqa: B023
        for make in (case.ours, case.torchs)
    )
    # torch's ASGD writes counters that its backward pass needs.
    assert mine == theirs
    assert theirs is None or case.optimizer == "ASGD"


# torch's others take no lr that requires grad.
HYPERS = [("SGD", ["lr", "weight_decay"]), *((name, ["lr", "weight_decay", "betas"]) for name in ("Adam", "AdamW"))]


@pytest.mark.parametrize(("name", "hypers"), HYPERS, ids=[name for name, _ in HYPERS])
def test_gradcheck_to_the_hyper_parameters(name: str, hypers: list[str]) -> None:
    case = named(name.lower())
    grad, *states = (torch.rand(5, dtype=torch.float64) for _ in range(1 + len(case.states)))

    def step(*values: Tensor) -> Tensor:
        p = torch.linspace(0.5, 1.5, 5, dtype=torch.float64, requires_grad=True).clone()
        p.grad = grad.clone()
        kwargs = {key: (v[0], v[1]) if key == "betas" else v for key, v in zip(hypers, values, strict=True)}
        optimizer = case.cls([p], **kwargs, differentiable=True)
        enter_state(optimizer, case, p, states)
        optimizer.step()
        return p

    made = {"lr": torch.tensor(0.05), "weight_decay": torch.tensor(0.1), "betas": torch.tensor([0.8, 0.9])}
    assert torch.autograd.gradcheck(step, [made[key].double().requires_grad_() for key in hypers])


@pytest.mark.parametrize("case", TWINS, ids=str)
def test_differentiable_steps_as_torch(case: Case) -> None:
    def build(make: Callable[..., Optimizer]) -> Optimizer:
        optimizer = make([p.clone() for p in make_params()], differentiable=True)
        train(optimizer)
        return optimizer

    ours, torchs = build(case.ours), build(case.torchs)
    assert_close(ours, torchs)
    assert params_of(ours)[0].grad_fn is not None


class Wrapped(Tensor):
    """A tensor without storage of its own, as quantised, sharded and nested tensors are: its data pointer is 0."""

    inner: Tensor
    calls: ClassVar[list[str]] = []

    @staticmethod
    def __new__(cls, inner: Tensor) -> Wrapped:
        wrapped: Wrapped = Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)
        wrapped.inner = inner
        return wrapped

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.calls.append(str(func))
        args, kwargs = pytree.tree_map_only(Wrapped, lambda w: w.inner, (args, kwargs or {}))
        result = func(*args, **kwargs)
        if func._schema.name.endswith("_"):  # in place: the wrapper given is the one to hand back
            return args[0] if not isinstance(result, Tensor) else Wrapped(result)
        return pytree.tree_map_only(Tensor, Wrapped, result)


@pytest.mark.parametrize("wrapped", ["params", "one-param", "grads"])
@pytest.mark.parametrize("case", TWINS, ids=str)
def test_tensors_that_dispatch(case: Case, wrapped: str) -> None:
    inner = [p.detach() for p in make_params([(4, 3), (67,)])]
    params = [Parameter(Wrapped(t) if wrapped != "grads" and (i == 0 or wrapped == "params") else t)
              for i, t in enumerate(inner)]  # fmt: skip
    ours, torchs = case.ours(params), case.torchs(make_params([(4, 3), (67,)]))
    Wrapped.calls.clear()
    for i in range(3):
        give_grads(params_of(torchs), i)
        for p, q in zip(params, params_of(torchs), strict=True):
            grad = q.grad.clone()
            p.grad = Wrapped(grad) if isinstance(p, Wrapped) or wrapped == "grads" else grad
        ours.step()
        torchs.step()
    assert Wrapped.calls
    for t, q in zip(inner, params_of(torchs), strict=True):
        torch.testing.assert_close(t, q.detach())
    assert [list(s) for s in ours.state.values()] == [list(s) for s in torchs.state.values()]


class Recorder(TorchDispatchMode):
    """Sees every operation, as a flop counter or a memory tracker does."""

    def __init__(self) -> None:
        super().__init__()
        self.written: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.is_mutable:
            targets = args[0] if isinstance(args[0], (list, tuple)) else [args[0]]
            self.written |= {t.data_ptr() for t in targets}
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("case", TWINS, ids=str)
def test_an_active_dispatch_mode_sees_the_updates(case: Case) -> None:
    ours, torchs = case.ours(make_params([(4, 3), (67,)])), case.torchs(make_params([(4, 3), (67,)]))
    train(torchs)
    train(ours, 1)
    with Recorder() as recorder:
        train(ours, 1, first=1)
    assert {p.data_ptr() for p in params_of(ours)} <= recorder.written
    train(ours, 1, first=2)
    assert_close(ours, torchs)


@pytest.mark.parametrize("case", ONE_PER_TWIN, ids=str)
def test_fake_tensor_mode_converts_real_params(case: Case) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    real = make_params([(4, 3)])[0]
    before = real.detach().clone()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = mode.from_tensor(real.detach()).requires_grad_()
        fake.grad = torch.ones_like(fake)
        optimizer = case.ours([fake])
        if case.optimizer == "ASGD":  # whose counters torch reads
            with pytest.raises(torch._subclasses.fake_tensor.DataDependentOutputException):
                optimizer.step()
            return
        optimizer.step()
        optimizer.step()
        assert {type(value) for key, value in optimizer.state[fake].items() if key not in COUNTERS} == {type(fake)}
    assert_identical(real, before)


@pytest.mark.parametrize("case", ONE_PER_TWIN, ids=str)
def test_make_fx_traces_the_update(case: Case) -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    def update(p: Tensor, grad: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        p = p.clone()
        p.grad = grad
        optimizer = case.ours([p], foreach=False)
        enter_state(optimizer, case, p, state)
        optimizer.step()
        return (p.detach(), *(optimizer.state[p][name] for name in case.states))

    def inputs() -> list[Tensor]:
        return [torch.rand(5) for _ in range(2 + len(case.states))]

    graph = make_fx(update)(*inputs())
    others = inputs()  # a trace that missed the update, or took it for a constant, gives something else for these
    torch.testing.assert_close(graph(*others), update(*others))


@pytest.mark.parametrize("case", ONE_PER_OPTIMIZER, ids=str)
def test_inference_params_raise_as_torch(case: Case) -> None:
    with torch.inference_mode():
        mine, theirs = torch.ones(67), torch.ones(67)
        mine.grad, theirs.grad = torch.ones(67), torch.ones(67)
    ours, torchs = case.ours([mine]), case.torchs([theirs])
    expected = outcome(torchs.step)
    assert expected is not None
    assert "inference tensor" in expected[1]
    assert outcome(ours.step) == expected
    assert_identical(mine.clone(), torch.ones(67))
    if not case.has_twin:  # no engine takes inference tensors
        return
    ours, torchs = case.ours([mine]), case.torchs([torch.ones(67)])
    with torch.inference_mode():
        train(ours, 2)
        train(torchs, 2)
        torch.testing.assert_close(mine, params_of(torchs)[0])
