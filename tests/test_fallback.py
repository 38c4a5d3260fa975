"""What no engine takes takes torch's own step: sparse gradients, autograd, tensors and modes that dispatch, tracing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from cases import CASES, ONE_PER_OPTIMIZER, Case
from support import assert_close, assert_identical, give_grads, make_params, outcome, params_of, snapshot, train
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


SPARSE_SGD: dict[str, dict[str, Any]] = {
    "plain": {},
    "maximize": {"maximize": True},
    "momentum": {"momentum": 0.9},
    "nesterov": {"momentum": 0.9, "nesterov": True},
    "fused": {"fused": True},
    "foreach": {"foreach": True},
}


@pytest.mark.parametrize("kwargs", SPARSE_SGD.values(), ids=SPARSE_SGD)
def test_sgd_steps_sparse_and_dense_in_one_step(kwargs: dict[str, Any]) -> None:
    flags = {"fused": None, "foreach": False}
    ours = fusedopt.SGD(make_params([(4, 3), (67,), (5, 2)]), lr=0.1, **kwargs)
    torchs = torch.optim.SGD(make_params([(4, 3), (67,), (5, 2)]), lr=0.1, **{**kwargs, **flags})
    dense = fusedopt.SGD(make_params([(67,)]), lr=0.1, **kwargs)  # what the fused path makes of the one in the middle
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
    assert len(ours.state) == len(torchs.state)
    assert_identical(params_of(ours)[1], params_of(dense)[0])


def test_sgd_weight_decay_on_sparse_gradients_raises_as_torch() -> None:
    def act(cls: Any) -> tuple[Any, Optimizer]:
        optimizer = cls(make_params([(67,), (4, 3)]), lr=0.1, weight_decay=0.1, foreach=False)
        params = params_of(optimizer)
        give_grads(params, 0)
        params[1].grad = sparse_grad(params[1], 0)
        return outcome(optimizer.step), optimizer

    (mine, ours), (theirs, _) = act(fusedopt.SGD), act(torch.optim.SGD)
    assert mine == theirs is not None
    assert_identical(params_of(ours), make_params([(67,), (4, 3)]))
    assert len(ours.state) == 0


@pytest.mark.parametrize("steps_before", [0, 2])
@pytest.mark.parametrize("case", [c for c in ONE_PER_OPTIMIZER if c.optimizer != "SGD"], ids=str)
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


STATES = {
    "SGD": ["momentum_buffer"],
    "Adam": ["exp_avg", "exp_avg_sq"],
    "AdamW": ["exp_avg", "exp_avg_sq"],
    "RMSprop": ["square_avg"],
}


@pytest.mark.parametrize("case", ONE_PER_OPTIMIZER, ids=str)
def test_gradcheck_through_the_step(case: Case) -> None:
    def step(p: Tensor, grad: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        p = p.clone()
        p.grad = grad
        optimizer = case.ours([p], differentiable=True)
        optimizer.state[p] = {"step": torch.tensor(3.0, dtype=torch.float64)} if case.optimizer != "SGD" else {}
        optimizer.state[p].update(zip(STATES[case.optimizer], (s.clone() for s in state), strict=True))
        optimizer.step()
        return (p, *(optimizer.state[p][name] for name in STATES[case.optimizer]))

    inputs = [torch.rand(5, dtype=torch.float64, requires_grad=True) for _ in range(2 + len(STATES[case.optimizer]))]
    assert torch.autograd.gradcheck(step, inputs)


# torch's RMSprop takes no lr that requires grad.
HYPERS = [("SGD", ["lr", "weight_decay"]), *((name, ["lr", "weight_decay", "betas"]) for name in ("Adam", "AdamW"))]


@pytest.mark.parametrize(("name", "hypers"), HYPERS, ids=[name for name, _ in HYPERS])
def test_gradcheck_to_the_hyper_parameters(name: str, hypers: list[str]) -> None:
    grad, *state = (torch.rand(5, dtype=torch.float64) for _ in range(1 + len(STATES[name])))

    def step(*values: Tensor) -> Tensor:
        p = torch.linspace(0.5, 1.5, 5, dtype=torch.float64, requires_grad=True).clone()
        p.grad = grad.clone()
        kwargs = {key: (v[0], v[1]) if key == "betas" else v for key, v in zip(hypers, values, strict=True)}
        optimizer = getattr(fusedopt, name)([p], **kwargs, differentiable=True)
        optimizer.state[p] = {"step": torch.tensor(3.0, dtype=torch.float64)} if name != "SGD" else {}
        optimizer.state[p].update(zip(STATES[name], (s.clone() for s in state), strict=True))
        optimizer.step()
        return p

    made = {"lr": torch.tensor(0.05), "weight_decay": torch.tensor(0.1), "betas": torch.tensor([0.8, 0.9])}
    assert torch.autograd.gradcheck(step, [made[key].double().requires_grad_() for key in hypers])


@pytest.mark.parametrize("case", CASES, ids=str)
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
@pytest.mark.parametrize("case", CASES, ids=str)
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


@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_active_dispatch_mode_sees_the_updates(case: Case) -> None:
    ours, torchs = case.ours(make_params([(4, 3), (67,)])), case.torchs(make_params([(4, 3), (67,)]))
    train(torchs)
    train(ours, 1)
    with Recorder() as recorder:
        train(ours, 1, first=1)
    assert {p.data_ptr() for p in params_of(ours)} <= recorder.written
    train(ours, 1, first=2)
    assert_close(ours, torchs)


@pytest.mark.parametrize("case", ONE_PER_OPTIMIZER, ids=str)
def test_fake_tensor_mode_converts_real_params(case: Case) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    real = make_params([(4, 3)])[0]
    before = real.detach().clone()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = mode.from_tensor(real.detach()).requires_grad_()
        fake.grad = torch.ones_like(fake)
        optimizer = case.ours([fake])
        optimizer.step()
        optimizer.step()
        assert {type(value) for key, value in optimizer.state[fake].items() if key != "step"} == {type(fake)}
    assert_identical(real, before)


@pytest.mark.parametrize("case", ONE_PER_OPTIMIZER, ids=str)
def test_make_fx_traces_the_update(case: Case) -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    names = STATES[case.optimizer]

    def update(p: Tensor, grad: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        p = p.clone()
        p.grad = grad
        optimizer = case.ours([p], foreach=False)
        optimizer.state[p] = {} if case.optimizer == "SGD" else {"step": torch.tensor(3.0)}
        optimizer.state[p].update(zip(names, (s.clone() for s in state), strict=True))
        optimizer.step()
        return (p.detach(), *(optimizer.state[p][name] for name in names))

    def inputs() -> list[Tensor]:
        return [torch.rand(5) for _ in range(2 + len(names))]

    graph = make_fx(update)(*inputs())
    others = inputs()  # a trace that missed the update, or took it for a constant, gives something else for these
    torch.testing.assert_close(graph(*others), update(*others))


@pytest.mark.parametrize("case", ONE_PER_OPTIMIZER, ids=str)
def test_compiled_step(case: Case) -> None:
    torch._dynamo.reset()
    ours, torchs = case.ours(make_params([(4, 3), (67,)])), case.torchs(make_params([(4, 3), (67,)]))
    train(torchs, 6)
    graphs = []

    def eager(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(ours.step, backend=eager)
    for i in range(4):
        give_grads(params_of(ours), i)
        compiled() if i != 2 else ours.step()
    train(ours, 2, first=4)
    assert graphs  # else nothing was compiled
    assert_close(ours, torchs)
    torch._dynamo.reset()
