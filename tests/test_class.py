"""The classes stand in for torch's: signature, groups, copies, garbage, params in every form, meta and fake tensors."""

from __future__ import annotations

import copy
import gc
import inspect
import pickle
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from cases import APART, CASES, ONE_PER_OPTIMIZER, ONE_PER_TWIN, TWINS, Case
from support import (
    COUNTERS,
    assert_close,
    assert_identical,
    clone_params,
    give_grads,
    make_params,
    outcome,
    params_of,
    save_and_load,
    snapshot,
    train,
)
from tiers import of_a_kind, thinned
from torch.nn import Parameter
from torch.optim import Optimizer

import fusedopt

NAMES = [case.optimizer for case in ONE_PER_OPTIMIZER]
TWIN_NAMES = [case.optimizer for case in ONE_PER_TWIN]
SCHEDULE = torch.optim.lr_scheduler.ExponentialLR


@pytest.mark.parametrize("name", TWIN_NAMES)
def test_step_takes_what_torchs_takes(name: str) -> None:
    # A `grad_scaler` parameter would make GradScaler pass itself and warn.
    theirs = inspect.signature(getattr(torch.optim, name)([Parameter(torch.zeros(1))]).step).parameters
    ours = inspect.signature(getattr(fusedopt, name)([Parameter(torch.zeros(1))]).step).parameters
    own = ours["zero_grad"]
    assert (own.kind, own.default) == (inspect.Parameter.KEYWORD_ONLY, False)
    assert [(p.name, p.kind, p.default) for p in ours.values() if p is not own] == [
        (p.name, p.kind, p.default) for p in theirs.values()
    ]


@pytest.mark.parametrize("name", TWIN_NAMES)
def test_is_torchs_class(name: str) -> None:
    cls, base = getattr(fusedopt, name), getattr(torch.optim, name)
    assert cls is not base
    assert cls.__name__ == cls.__qualname__ == name
    optimizer = cls([Parameter(torch.zeros(1))])
    assert isinstance(optimizer, base)
    assert isinstance(optimizer, Optimizer)
    for theirs in (v for v in vars(torch.optim).values() if inspect.isclass(v)):
        assert isinstance(optimizer, theirs) == issubclass(base, theirs)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_groups_defaults_and_repr(case: Case) -> None:
    groups = [{"params": make_params()}, {"params": make_params(seed=1), "lr": 3}]
    ours, torchs = case.ours(copy.copy(g) for g in groups), case.torchs((copy.copy(g) for g in groups), foreach=None)
    for mine, theirs in zip([ours.defaults, *ours.param_groups], [torchs.defaults, *torchs.param_groups], strict=True):
        for key, value in theirs.items():
            if key != "params":
                assert type(mine[key]) is type(value)
                assert mine[key] == value
    assert repr(ours).startswith(f"{case.optimizer} (\nParameter Group 0\n")
    rest = iter(repr(ours).splitlines())
    assert all(line in rest for line in repr(torchs).splitlines())  # `in` consumes: lines must come in torch's order


COPIES: dict[str, Callable[[Optimizer], Optimizer]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda optimizer: pickle.loads(pickle.dumps(optimizer)),
    "torch.save": lambda optimizer: save_and_load(optimizer, weights_only=False),
}


@thinned("all classes inherit it from one base", keep=lambda case: case.optimizer == "AdamW")
@pytest.mark.parametrize("make_copy", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("case", ONE_PER_OPTIMIZER, ids=str)
def test_copies_are_independent(case: Case, make_copy: Callable[[Optimizer], Optimizer]) -> None:
    original = case.ours(make_params())
    train(original, 2)
    copied = make_copy(original)
    assert type(copied) is type(original)
    before = snapshot(original)
    assert_identical(snapshot(copied), before)

    train(copied, 2, first=2)
    assert_identical(snapshot(original), before)
    train(original, 2, first=2)
    assert_identical(snapshot(original), snapshot(copied))

    public = {name for name in dir(original) if not name.startswith("_")}
    assert public <= {name for name in dir(copied) if not name.startswith("_")}
    assert copied.defaults == original.defaults
    assert copied.defaults is not original.defaults
    assert copied._step_supports_amp_scaling is original._step_supports_amp_scaling is False
    copied.register_step_post_hook(lambda *_: None)
    copied.add_param_group({"params": make_params(seed=5)})
    train(copied, 1)
    copied.zero_grad()
    assert len(original.param_groups) == 1


def test_copy_before_the_first_step_and_with_its_model() -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = fusedopt.AdamW(model.parameters())
    other_model, other = copy.deepcopy((model, optimizer))
    assert params_of(other)[0] is other_model.weight
    train(other)
    train(optimizer)
    assert_identical([*model.state_dict().values()], [*other_model.state_dict().values()])


@pytest.mark.parametrize("name", NAMES)
def test_step_is_a_method_that_schedulers_wrap(name: str) -> None:
    optimizer = getattr(fusedopt, name)(make_params(), lr=0.1)
    assert optimizer.step.__func__ is type(optimizer).step
    assert optimizer.step.__self__ is optimizer
    scheduler = SCHEDULE(optimizer, 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # "Detected call of `lr_scheduler.step()` before `optimizer.step()`"
        train(optimizer, 1)
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.05


@pytest.mark.parametrize("case", ONE_PER_OPTIMIZER, ids=str)
def test_subclass_may_override_step(case: Case) -> None:
    class Counting(getattr(fusedopt, case.optimizer)):
        def __init__(self, params: Any, *, start: int = 0, **kwargs: Any) -> None:
            super().__init__(params, **kwargs)
            self.calls = start

        def step(self, closure: Any = None) -> Any:
            self.calls += 1
            return super().step(closure)

    plain, counting = case.ours(make_params()), Counting(make_params(), start=10, **case.kwargs)
    train(plain)
    train(counting)
    assert counting.calls == 13
    assert_identical(snapshot(counting), snapshot(plain))


@contextmanager
def _no_collector() -> Iterator[None]:
    """Only reference counts free memory in here, so a cycle shows as a survivor."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@thinned("what a class refers to it inherits", keep=of_a_kind, together=0)
@pytest.mark.parametrize("case", ONE_PER_OPTIMIZER, ids=str)
def test_deleting_the_optimizer_frees_everything(case: Case) -> None:
    params = make_params()
    optimizer = case.ours(params)
    train(optimizer, 2)
    optimizer.load_state_dict(optimizer.state_dict())
    train(optimizer, 1)
    optimizer.zero_grad()
    kept = [value for state in optimizer.state.values() for value in state.values()]
    watched = [weakref.ref(optimizer), *map(weakref.ref, params), *map(weakref.ref, kept)]
    with _no_collector():
        del params, kept, optimizer
        assert [ref() for ref in watched] == [None] * len(watched)


def test_a_param_taken_out_is_free_after_the_next_step() -> None:
    optimizer = fusedopt.AdamW(make_params())
    train(optimizer)
    with _no_collector():
        gone = optimizer.param_groups[0]["params"].pop()
        watched = [weakref.ref(gone), weakref.ref(optimizer.state.pop(gone)["exp_avg"])]
        del gone
        train(optimizer)
        assert [ref() for ref in watched] == [None, None]


# Powers of two, so that float32 tensors and Python floats hold the same number and bits can be compared.
@thinned("all classes inherit it from one base", keep=lambda case: case.optimizer == "AdamW")
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_tensor_lr(case: Case, shape: tuple[int, ...]) -> None:
    lr = torch.full(shape, 2.0**-5)
    ours = case.ours(make_params(), lr=lr)
    floats = case.ours(make_params(), lr=2.0**-5)
    # The for-loop of torch 2.6's AdamW takes none of another shape.
    torchs = case.torchs(make_params(), lr=lr.reshape(()))
    assert ours.param_groups[0]["lr"] is lr
    assert ours.defaults["lr"] is lr
    for value in (2.0**-5, 2.0**-7, 0.0):
        lr.fill_(value)
        floats.param_groups[0]["lr"] = value
        for optimizer in (ours, floats, torchs):
            train(optimizer, 2)
        assert_identical(snapshot(ours), snapshot(floats))
        assert_close(ours, torchs)
    assert ours.param_groups[0]["lr"] is lr


@thinned("all classes inherit it from one base", keep=lambda case: case.optimizer == "AdamW")
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)], ids=str)
@pytest.mark.parametrize("case", [c for c in CASES if c.takes_tensor("betas")], ids=str)
def test_tensor_betas(case: Case, shape: tuple[int, ...]) -> None:
    betas = torch.full(shape, 0.5), torch.full(shape, 0.75)
    ours = case.ours(make_params(), betas=betas)
    floats = case.ours(make_params(), betas=(0.5, 0.75))
    # torch's for-loop takes none of another shape before 2.10.
    torchs = case.torchs(make_params(), betas=tuple(beta.reshape(()) for beta in betas))
    if shape == ():
        assert all(a is b for a, b in zip(ours.param_groups[0]["betas"], betas, strict=True))
    for value in (0.5, 0.25):
        betas[0].fill_(value)
        floats.param_groups[0]["betas"] = (value, 0.75)
        for optimizer in (ours, floats, torchs):
            train(optimizer, 2)
        assert_identical(snapshot(ours), snapshot(floats))
        assert_close(ours, torchs)


@thinned("all classes inherit it from one base", keep=lambda case: case.optimizer == "AdamW")
@pytest.mark.parametrize("flags", [{"foreach": True}, {"foreach": False}, {"fused": True}, {"fused": False}], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_foreach_and_fused_change_no_bit(case: Case, flags: dict[str, bool]) -> None:
    plain, flagged = case.ours(make_params()), case.ours(make_params(), **flags)
    train(plain)
    train(flagged)
    assert_identical(snapshot(flagged), snapshot(plain))


FORMS: dict[str, Callable[[list[Parameter]], Any]] = {
    "generator": lambda params: (p for p in params),
    "tuple": tuple,
    "named": lambda params: [(f"p{i}", p) for i, p in enumerate(params)],
    "dict": lambda params: [{"params": params}],
    "dict-of-generator": lambda params: [{"params": (p for p in params)}],
    "dicts-of-bare-tensors": lambda params: [{"params": p} for p in params],
    "named-dicts": lambda params: ({"params": [(f"p{i}", p)]} for i, p in enumerate(params)),
}


@thinned("all classes inherit it from one base", keep=lambda case: case.optimizer == "AdamW")
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("case", ONE_PER_OPTIMIZER, ids=str)
def test_params_in_every_form(case: Case, form: Callable[[list[Parameter]], Any]) -> None:
    expected, params = case.ours(make_params()), make_params()
    ours, torchs = case.ours(form(params)), case.torchs(form(make_params()))
    assert [p is q for p, q in zip(params_of(ours), params, strict=True)] == [True] * len(params)
    assert [g.get("param_names") for g in ours.param_groups] == [g.get("param_names") for g in torchs.param_groups]
    train(ours)
    train(expected)
    assert_identical(snapshot(ours), snapshot(expected))


def test_plain_tensors_that_require_no_grad() -> None:
    plain = [p.detach() for p in make_params()]
    ours, expected = fusedopt.AdamW(plain), fusedopt.AdamW(make_params())
    train(ours)
    train(expected)
    assert_identical(snapshot(ours), snapshot(expected))


@pytest.mark.parametrize("case", APART, ids=str)
def test_duplicates_are_stepped_twice(case: Case) -> None:
    p, q = make_params([(67,), (4, 3)])
    r, s = clone_params([p, q])
    with pytest.warns(UserWarning, match="duplicate parameters"):
        ours = case.ours([p, q, p])
    with pytest.warns(UserWarning, match="duplicate parameters"):
        torchs = case.torchs([r, s, r])
    for i in range(4):
        give_grads([p, q], i)
        give_grads([r, s], i)
        ours.step()
        torchs.step()
        assert_close(ours, torchs)


@pytest.mark.parametrize("swap", [False, True], ids=["new-params", "swapped-params"])
@pytest.mark.parametrize("name", [case.optimizer for case in ONE_PER_TWIN if case.torch_takes("fused")])
def test_fused_on_meta_fails_at_step_until_to_empty(name: str, swap: bool) -> None:
    with torch.device("meta"):
        model = torch.nn.Linear(5, 5)
    optimizer = getattr(fusedopt, name)(model.parameters(), lr=0.1, fused=True)
    for p in model.parameters():
        p.grad = torch.rand_like(p)
    with pytest.raises(RuntimeError, match="`fused=True` requires all the params to be floating point Tensors"):
        optimizer.step()
    optimizer.zero_grad()
    optimizer.state.clear()  # torch's Adam leaves an empty dict for the param it refused
    torch.__future__.set_swap_module_params_on_conversion(swap)
    try:
        model.to_empty(device="cpu")
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    for p in model.parameters():
        torch.nn.init.zeros_(p)
        p.grad = torch.ones_like(p)
    optimizer.step()
    # Only a swap keeps the objects that the optimizer holds; otherwise its params stay on meta, without gradients.
    torch.testing.assert_close(model.weight.detach(), torch.full((5, 5), -0.1 if swap else 0.0))


@pytest.mark.parametrize("case", TWINS, ids=str)
def test_meta_params_step(case: Case) -> None:
    def run(optimizer: Optimizer) -> None:
        for _ in range(3):
            for p in params_of(optimizer):
                p.grad = torch.empty_like(p)
            optimizer.step()

    ours, torchs = (build([Parameter(p.to("meta")) for p in make_params()]) for build in (case.ours, case.torchs))
    results = [outcome(lambda: run(optimizer)) for optimizer in (ours, torchs)]  # noqa: B023
    # torch's ASGD reads its counters, its Rprop indexes by a condition.
    assert results[0] == results[1]
    if results[1] is not None:
        return
    mine, theirs = ours.state_dict()["state"], torchs.state_dict()["state"]
    assert [list(s) for s in mine.values()] == [list(s) for s in theirs.values()]
    for i, state in theirs.items():
        for key, value in state.items():
            assert (mine[i][key].device, mine[i][key].shape) == (value.device, value.shape)
            if key == "step":
                assert mine[i][key].item() == value.item() == 3


@pytest.mark.parametrize("device", ["meta", "fake"])
@pytest.mark.parametrize("case", [case for case in ONE_PER_OPTIMIZER if not case.has_twin], ids=str)
def test_params_without_memory_are_refused_where_torch_has_no_step(case: Case, device: str) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode() if device == "fake" else torch.device("meta"):
        p = Parameter(torch.empty(5, 7))
        p.grad = torch.empty_like(p)
        optimizer = case.ours([p])
        with pytest.raises(
            RuntimeError, match=f"{case.optimizer} steps ordinary tensors .* (Parameter on meta|FakeTensor on cpu)"
        ):
            optimizer.step()
        assert len(optimizer.state) == 0


@pytest.mark.parametrize("case", ONE_PER_TWIN, ids=str)
def test_fake_params_step(case: Case) -> None:
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

    def run(make: Callable[..., Optimizer]) -> Optimizer:
        params = [Parameter(torch.empty(5, 7)), Parameter(torch.empty(3))]
        optimizer = make(params)
        for _ in range(2):
            for p in params:
                p.grad = torch.empty_like(p)
            optimizer.step()
        return optimizer

    with FakeTensorMode():
        results = [outcome(lambda: run(make)) for make in (case.ours, case.torchs)]  # noqa: B023
        assert results[0] == results[1]
        if results[1] is not None:  # torch's ASGD reads its counters
            return
        optimizer = run(case.ours)
    state = optimizer.state[params_of(optimizer)[0]]
    assert all(isinstance(value, FakeTensor) for key, value in state.items() if key not in COUNTERS)
    assert any(value.shape == (5, 7) for value in state.values())
