"""Adafactor around its arithmetic: constructor, state, checkpoints, GradScaler, errors, hooks."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from adafactor_runs import DTYPES, feed, make, random, states, trained, twins
from support import EMULATED, assert_identical, outcome, params_of, save_and_load, snapshot, versions
from torch import Tensor
from torch.nn import Parameter

import fusedopt

SMALL = [(5, 7), (9,), (), (4, 3, 2), (67, 3)]


def pair(**options: Any) -> tuple[Any, Any]:
    params = make(shapes=SMALL)
    return fusedopt.Adafactor(params, **options), torch.optim.Adafactor(twins(params), **options)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"lr": -1.0},
        {"lr": torch.ones(2)},
        {"beta2_decay": 0.1},
        {"eps": (-1.0, 1e-3)},
        {"eps": (None, -1.0)},
        {"d": 0.5},
        {"weight_decay": -0.1},
    ],
    ids=str,
)
def test_constructor_errors_are_torchs(kwargs: dict[str, Any]) -> None:
    found = outcome(lambda: fusedopt.Adafactor(make(shapes=SMALL), **kwargs))
    assert found == outcome(lambda: torch.optim.Adafactor(make(shapes=SMALL), **kwargs))
    assert found is not None
    if not isinstance(kwargs.get("lr"), Tensor):
        ours = fusedopt.Adafactor(make(shapes=SMALL))
        assert outcome(lambda: ours.add_param_group({"params": make(shapes=SMALL), **kwargs})) == found
        assert len(ours.param_groups) == 1


def test_defaults_are_torchs() -> None:
    ours, theirs = pair()
    assert ours.defaults == theirs.defaults


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_first_states_are_torchs(dtype: torch.dtype) -> None:
    ours = trained(1, dtype)
    theirs = torch.optim.Adafactor(twins(params_of(ours)))
    feed([theirs])
    theirs.step()
    for p, q in zip(params_of(ours), params_of(theirs), strict=True):
        facts = [
            {k: (v.dtype, v.shape, v.stride(), v.device) for k, v in o.state[x].items()}
            for o, x in ((ours, p), (theirs, q))
        ]
        assert list(facts[0]) == list(facts[1])
        assert facts[0] == facts[1]


def test_steps_are_counted_in_the_default_dtype() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        ours = trained(2, shapes=SMALL)
    finally:
        torch.set_default_dtype(torch.float32)
    for p in params_of(ours):
        assert_identical(ours.state[p]["step"], torch.tensor(2.0, dtype=torch.float64))


@pytest.mark.parametrize("weights_only", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_checkpoints_both_ways(dtype: torch.dtype, weights_only: bool) -> None:
    ours = trained(3, dtype, shapes=SMALL, weight_decay=0.1)
    theirs = torch.optim.Adafactor(twins(params_of(ours)))
    theirs.load_state_dict(save_and_load(ours.state_dict(), weights_only))
    back = fusedopt.Adafactor(twins(params_of(ours)))
    back.load_state_dict(save_and_load(theirs.state_dict(), weights_only))
    assert_identical(back.state_dict()["state"], ours.state_dict()["state"])
    feed([ours, theirs, back])
    for optimizer in (ours, theirs, back):
        optimizer.step()
    assert_identical(snapshot(back), snapshot(ours))
    assert theirs.param_groups[0]["weight_decay"] == 0.1


def test_replace_copy_and_pickle() -> None:
    ours, theirs = pair(weight_decay=0.1)
    for _ in range(2):
        feed([ours, theirs])
        ours.step()
        theirs.step()
    swapped = fusedopt.replace(theirs)
    assert type(swapped) is fusedopt.Adafactor
    copied, pickled = copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))
    feed([ours, swapped, copied, pickled])
    for optimizer in (ours, swapped, copied, pickled):
        optimizer.step()
    for p, q in zip(params_of(ours), params_of(swapped), strict=True):
        torch.testing.assert_close(p, q)
    assert_identical(snapshot(copied), snapshot(ours))
    assert_identical(snapshot(pickled), snapshot(ours))


def test_groups_missing_gradients_and_schedules() -> None:
    sets = [make(shapes=SMALL)]
    sets.append(twins(sets[0]))

    def groups(params: list[Any]) -> list[dict[str, Any]]:
        return [
            {"params": params[:2], "lr": torch.tensor(0.02), "weight_decay": 0.1},
            {"params": []},
            {"params": params[2:], "eps": (1e-3, 1e-2), "maximize": True, "d": 2.0},
        ]

    ours, theirs = fusedopt.Adafactor(groups(sets[0])), torch.optim.Adafactor(groups(sets[1]))
    for step in range(6):
        feed([ours, theirs])
        for optimizer in (ours, theirs):
            params_of(optimizer)[step % 5].grad = None
            optimizer.step()
            optimizer.param_groups[0]["lr"] *= 0.9
            optimizer.param_groups[2]["beta2_decay"] = -0.1 * step
    for p, q in zip(*sets, strict=True):
        torch.testing.assert_close(p, q)
        assert ours.state[p]["step"] == theirs.state[q]["step"]


def test_empty_params_count_their_steps() -> None:
    """torch's for-loop divides by zero on them."""
    params = [Parameter(torch.zeros(shape)) for shape in ((0,), (0, 3), (3, 0), (2, 0, 3), (0, 4, 5))]
    ours = fusedopt.Adafactor([*params, Parameter(torch.ones(2))])
    for _ in range(2):
        feed([ours])
        ours.step()
    assert [ours.state[p]["step"].item() for p in params] == [2.0] * 5
    assert ours.state[params[1]]["col_var"].shape == (1, 3)


def test_a_param_listed_twice_steps_twice() -> None:
    param = Parameter(random((6, 5)))
    once = Parameter(param.detach().clone())
    with pytest.warns(UserWarning, match="duplicate"):
        twice = fusedopt.Adafactor([param, param])
    ours = fusedopt.Adafactor([once])
    for _ in range(2):
        grad = random((6, 5))
        param.grad, once.grad = grad, grad.clone()
        twice.step()
        ours.step()
        ours.step()
    assert_identical(param.detach(), once.detach())
    assert twice.state[param]["step"] == 4


@pytest.mark.parametrize("fused", [True, None], ids=["in-step", "around-step"])
@pytest.mark.parametrize("overflows", [{0, 1, 4}, {3}, set()], ids=str)
def test_gradscaler(overflows: set[int], fused: bool | None) -> None:
    ours, theirs = pair(weight_decay=0.1)
    ours._step_supports_amp_scaling = bool(fused)
    scalers = [torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=2) for _ in "ab"]
    for step in range(6):
        grads = [random(shape) for shape in SMALL]
        for optimizer, scaler in zip((ours, theirs), scalers, strict=True):
            optimizer.zero_grad()
            loss = sum((p * g).sum() for p, g in zip(params_of(optimizer), grads, strict=True))
            scaler.scale(loss * (float("inf") if step in overflows else 1.0)).backward()
            scaler.step(optimizer)
            scaler.update()
        assert ours.step_skipped.item() is (bool(fused) and step in overflows)
        assert (len(ours.state) > 0) == (len(theirs.state) > 0)
    for p, q in zip(params_of(ours), params_of(theirs), strict=True):
        torch.testing.assert_close(p, q)
        if ours.state:
            assert ours.state[p]["step"] == theirs.state[q]["step"]


@pytest.mark.parametrize("found", [1.0, 3.5, float("nan")])
@pytest.mark.parametrize("steps", [0, 2])
def test_a_skipped_step_writes_nothing(found: float, steps: int) -> None:
    ours = trained(steps, shapes=SMALL)
    feed([ours])
    before, counted = snapshot(ours), versions(ours)
    ours.found_inf, ours.grad_scale = torch.tensor(found), torch.tensor(4.0)
    ours.step()
    assert ours.step_skipped
    assert_identical(snapshot(ours), before)
    # An emulated device alone knows of the skip, once there are states.
    assert EMULATED or versions(ours) == counted
    ours.found_inf = torch.tensor(0.0)
    ours.step()
    assert not ours.step_skipped


def corrupt_step(ours: Any, p: Any) -> None:
    ours.state[p]["step"] = 3


def corrupt_counter(ours: Any, p: Any) -> None:
    ours.state[p]["step"] = torch.zeros(2)


def corrupt_shape(ours: Any, p: Any) -> None:
    ours.state[p]["row_var"] = torch.zeros(5, 7)


def corrupt_dtype(ours: Any, p: Any) -> None:
    ours.state[p]["col_var"] = torch.zeros(1, 7, dtype=torch.int64)


def corrupt_memory(ours: Any, p: Any) -> None:
    ours.state[p]["col_var"] = torch.zeros(1, 1).expand(1, 7)


def no_tensor(ours: Any, p: Any) -> None:
    ours.state[p]["row_var"] = 1.0


def lack(ours: Any, p: Any) -> None:
    del ours.state[p]["col_var"]


def wrong_gradient(ours: Any, p: Any) -> None:
    p.data = torch.zeros(7, 5)


def no_eps(ours: Any, p: Any) -> None:
    ours.param_groups[0]["eps"] = 1e-3


def nan_lr(ours: Any, p: Any) -> None:
    ours.param_groups[0]["lr"] = float("nan")


def expanded(ours: Any, p: Any) -> None:
    p.data = torch.zeros(1, 7).expand(5, 7)


NAME = r"param 1 of group 0 \('w1'\): "


@pytest.mark.parametrize(
    ("damage", "error", "text"),
    [
        (corrupt_step, RuntimeError, NAME + "its state 'step' is not a tensor"),
        (corrupt_counter, RuntimeError, NAME + r"its state 'step' has shape \[2\]"),
        (corrupt_shape, RuntimeError, NAME + r"its state 'row_var' has shape \[5, 7\], not \[5, 1\]"),
        (corrupt_dtype, RuntimeError, NAME + "its state 'col_var' is torch.int64"),
        (corrupt_memory, RuntimeError, NAME + "its state 'col_var' shares memory"),
        (no_tensor, RuntimeError, NAME + "its state 'row_var' is not a tensor"),
        (lack, KeyError, NAME + "its state lacks 'col_var'"),
        (wrong_gradient, RuntimeError, NAME + r"its gradient has shape \[5, 7\], the param \[7, 5\]"),
        (expanded, RuntimeError, NAME + "unsupported operation: more than one element"),
        (no_eps, ValueError, r"param_groups\[0\]\['eps'\] is not a tuple of 2 numbers"),
        (nan_lr, ValueError, r"param_groups\[0\]\['lr'\] is nan"),
    ],
    ids=lambda x: getattr(x, "__name__", None),
)
def test_errors_name_the_param_and_come_before_any_write(damage: Any, error: type[Exception], text: str) -> None:
    ours = fusedopt.Adafactor([(f"w{i}", p) for i, p in enumerate(make(shapes=[(3,), (5, 7), (4,)]))])
    feed([ours])
    ours.step()
    feed([ours])
    damage(ours, params_of(ours)[1])
    before = snapshot(ours) if damage is not corrupt_memory else None
    with pytest.raises(error, match=text):
        ours.step()
    if before is not None:
        assert_identical(snapshot(ours), before)


def test_no_state_is_made_where_one_param_is_refused() -> None:
    ours = fusedopt.Adafactor(make(shapes=[(3,), (5, 7)]))
    feed([ours])
    params_of(ours)[1].data = torch.zeros(7, 5)
    with pytest.raises(RuntimeError, match="param 1 of group 0"):
        ours.step()
    assert not ours.state


def test_sparse_and_complex_are_torchs_errors() -> None:
    for cls in (fusedopt.Adafactor, torch.optim.Adafactor):
        sparse = Parameter(torch.ones(4, 3))
        sparse.grad = torch.ones(4, 3).to_sparse()
        with pytest.raises(RuntimeError, match="Adafactor does not support sparse gradients"):
            cls([sparse]).step()
        complex_ = Parameter(torch.ones(4, 3, dtype=torch.complex64))
        complex_.grad = torch.ones_like(complex_)
        with pytest.raises(RuntimeError, match="Adafactor does not support complex parameters"):
            cls([complex_]).step()


def test_subclasses_take_torchs_step() -> None:
    from torch.testing._internal.two_tensor import TwoTensor

    value = random((5, 7))
    ours = fusedopt.Adafactor([Parameter(TwoTensor(value.clone(), value.clone())), Parameter(value.clone())])
    plain = torch.optim.Adafactor([Parameter(value.clone())])
    for _ in range(2):
        grad = random((5, 7))
        for p in params_of(ours) + params_of(plain):
            p.grad = TwoTensor(grad.clone(), grad.clone()) if isinstance(p, TwoTensor) else grad.clone()
        ours.step()
        plain.step()
    (q,) = params_of(plain)
    torch.testing.assert_close(params_of(ours)[0].a, q.detach())
    torch.testing.assert_close(params_of(ours)[1], q)


def test_closure_hooks_and_versions() -> None:
    ours = trained(1, shapes=SMALL)
    calls: list[str] = []
    ours.register_step_pre_hook(lambda *_: calls.append("pre"))
    ours.register_step_post_hook(lambda *_: calls.append("post"))

    def closure() -> float:
        assert torch.is_grad_enabled()
        feed([ours])
        calls.append("closure")
        return 3.0

    before = [p._version for p in params_of(ours)]
    assert ours.step(closure) == 3.0
    assert calls == ["pre", "closure", "post"]
    assert all(p._version > v for p, v in zip(params_of(ours), before, strict=True))


def test_what_lies_otherwise_since_the_last_step_is_seen() -> None:
    """The numbers of all are where they were, in objects that are as they were but for their shapes."""
    ours, theirs = pair()
    for step in range(4):
        feed([ours, theirs])
        ours.step()
        theirs.step()
        if step != 1:
            continue
        for optimizer in (ours, theirs):
            p = params_of(optimizer)[0]
            assert p.shape == (5, 7)
            row, column = (optimizer.state[p][name] for name in ("row_var", "col_var"))
            p.data = p.data.view(7, 5)
            p.grad = None
            row.resize_(7, 1)[5:] = 0.5
            column.resize_(1, 5)
    for mine, its in zip(params_of(ours), params_of(theirs), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(35,), (35, 1), (1, 5, 7)], ids=str)
def test_a_param_of_another_shape_is_not_stepped_with_its_old_states(shape: tuple[int, ...]) -> None:
    ours, _ = pair()
    for _ in range(2):
        feed([ours])
        ours.step()
    before = snapshot(ours)
    params_of(ours)[0].data = params_of(ours)[0].data.view(shape)
    params_of(ours)[0].grad = torch.ones(shape)
    said = outcome(ours.step)
    assert said is not None
    assert "param 0 of group 0" in said[1]
    params_of(ours)[0].data = params_of(ours)[0].data.view(5, 7)
    assert_identical(before, snapshot(ours))


def test_states_may_be_given_by_hand() -> None:
    """A state without entries counts as none."""
    ours = fusedopt.Adafactor(make(shapes=SMALL))
    for p in params_of(ours):
        ours.state[p] = {}
    feed([ours])
    ours.step()
    assert all(len(state) > 0 for state in states(ours))
