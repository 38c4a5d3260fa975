"""Averages, copies, cleared gradients and checkpoints of optimizers with options for precision."""

from __future__ import annotations

import copy
import io
import re
import warnings
from contextlib import nullcontext
from itertools import product
from typing import Any

import pytest
import torch
from cases import ONE_PER_OPTIMIZER, Case, named
from options import PAIRS, Options, same, steps, values
from runs import random_gradients, train
from support import assert_identical, clone_params, default_dtype, params_of, save_and_load, snapshot
from tiers import thinned
from torch import Tensor
from torch.nn import Parameter
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import fusedopt
from fusedopt._core.precision import exact_param

HALVES = (torch.bfloat16, torch.float16)
one_per_optimizer = pytest.mark.parametrize("case", ONE_PER_OPTIMIZER, ids=str)


@pytest.mark.parametrize(("options", "dtype"), [pair for pair in PAIRS if "average" in pair[0].name], ids=str)
@one_per_optimizer
def test_the_average_is_torchs(case: Case, options: Options, dtype: torch.dtype) -> None:
    """AveragedModel's over the params, the exact ones where these are kept, from the first step on."""
    decay = options.kwargs["ema_decay"]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    model = torch.nn.ParameterList([Parameter(v.to(dtype)) for v in values(torch.float32)])
    ours = case.ours(model.parameters(), **options.of(case))
    exact = torch.nn.ParameterList([Parameter(p.detach().to(wide)) for p in model])
    averaged = AveragedModel(exact, multi_avg_fn=get_ema_multi_avg_fn(decay))
    for grads in random_gradients(list(model), 4):
        train(ours, [grads])
        for p, q in zip(model, exact, strict=True):
            partner = next((name for name in ("master", "remainder") if name in ours.state[p]), None)
            q.data = exact_param(p, partner, ours.state[p][partner]).clone() if partner else p.detach().to(wide)
        averaged.update_parameters(exact)
    for p, expected in zip(model, averaged.module, strict=True):
        assert same(ours.state[p]["ema"], expected.detach())


def test_the_average_goes_into_models() -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = steps(fusedopt.AdamW(model.parameters(), ema_decay=0.5), 5)
    before = copy.deepcopy(model.state_dict())
    with optimizer.ema_parameters():
        averaged = AveragedModel(model)
        assert same(model.weight.detach(), optimizer.state[model.weight]["ema"])
    assert same(averaged.module.weight.detach(), optimizer.state[model.weight]["ema"])
    assert all(same(value, before[name]) for name, value in model.state_dict().items())
    optimizer.ema_decay = 0.0
    steps(optimizer, 1)
    assert same(optimizer.state[model.weight]["ema"], model.weight.detach())


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_copies_are_the_rounded_params(dtype: torch.dtype) -> None:
    params = [Parameter(v) for v in values(torch.float32)]
    copies = {p: torch.zeros_like(p, dtype=dtype) for p in params[1:]}
    optimizer = fusedopt.AdamW(params)
    optimizer.copy_params_to(copies)
    plain = steps(fusedopt.AdamW([Parameter(v) for v in values(torch.float32)]))
    steps(optimizer)
    assert all(same(p.detach(), q.detach()) for p, q in zip(params, params_of(plain), strict=True))
    assert all(same(made, p.detach().to(dtype)) for p, made in copies.items())
    assert all("copy" not in state for state in optimizer.state_dict()["state"].values())


def test_draws_go_on_when_copies_are_asked_for() -> None:
    def run(ask_at: int) -> list[Tensor]:
        param = Parameter(torch.ones(999))
        optimizer = fusedopt.AdamW([param], state_dtype="bfloat16", rounding="stochastic")
        for step in range(4):
            if step == ask_at:
                optimizer.copy_params_to({param: torch.zeros(999, dtype=torch.bfloat16)})
            steps(optimizer, 1, seed=step)
        return [param.detach(), optimizer.state[param]["exp_avg"]]

    assert all(same(a, b) for a, b in zip(run(0), run(2), strict=True))


def test_keys_of_a_user_pass_through_a_checkpoint() -> None:
    param = Parameter(torch.ones(4))
    optimizer = steps(fusedopt.AdamW([param]), 1)
    optimizer.state[param]["master"] = torch.ones(2)
    loaded = fusedopt.AdamW([param])
    loaded.load_state_dict(optimizer.state_dict())
    assert same(loaded.state[param]["master"], torch.ones(2))


@pytest.mark.parametrize("name", ["sgd-momentum", "adamw", "lamb"])
def test_gradients_are_cleared_in_the_same_pass(name: str) -> None:
    case = named(name)
    ours, plain = (case.ours([Parameter(v) for v in values(torch.float32)]) for _ in range(2))
    for grads in random_gradients(params_of(ours), 3):
        for optimizer in (ours, plain):
            for p, grad in zip(params_of(optimizer), grads, strict=True):
                p.grad = grad.clone()
        given = [p.grad for p in params_of(ours)]
        versions = [g._version for g in given if g is not None]
        ours.step(zero_grad=True)
        plain.step()
        assert all(p.grad is g and not g.any() for p, g in zip(params_of(ours), given, strict=True) if g is not None)
        assert all(g._version > v for g, v in zip(given, versions, strict=True) if g is not None)
    assert all(same(p.detach(), q.detach()) for p, q in zip(params_of(ours), params_of(plain), strict=True))


def test_gradients_are_cleared_also_where_a_step_is_skipped_or_hooked_or_left_to_torch() -> None:
    param, embedding = Parameter(torch.ones(3)), torch.nn.Embedding(5, 2, sparse=True)
    optimizer: Any = fusedopt.SGD([param, embedding.weight], lr=0.1)
    called = []
    optimizer.register_step_post_hook(lambda *_: called.append(1))
    param.grad = torch.full((3,), float("inf"))
    optimizer.found_inf, optimizer.grad_scale = torch.tensor(1.0), torch.tensor(2.0)
    optimizer.step(zero_grad=True)
    del optimizer.found_inf, optimizer.grad_scale
    assert not param.grad.any()
    assert torch.equal(param.detach(), torch.ones(3))
    embedding(torch.tensor([1])).sum().backward()
    optimizer.step(zero_grad=True)
    assert embedding.weight.grad is not None
    assert not embedding.weight.grad.to_dense().any()
    assert called == [1, 1]


@thinned("an option knows no rule", keep=lambda case: case.name == "adamw")
@pytest.mark.parametrize(("options", "dtype"), PAIRS, ids=str)
@one_per_optimizer
def test_a_resumed_run_is_the_run(case: Case, options: Options, dtype: torch.dtype) -> None:
    if dtype == torch.float64 and len(case.counters) > 1:
        pytest.skip("torch casts counters other than `step` to the param's dtype when it loads them")
    straight = steps(case.ours([Parameter(v) for v in values(dtype)], **options.of(case)), 3)
    half = steps(case.ours([Parameter(v) for v in values(dtype)], **options.of(case)), 3)
    file = io.BytesIO()
    torch.save(half.state_dict(), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = case.ours([Parameter(p.detach().clone()) for p in params_of(half)], **options.of(case))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is lost
        resumed.load_state_dict(saved)
    copied = copy.deepcopy(half)
    for optimizer in (straight, resumed, copied):
        steps(optimizer, 3, seed=2)
        for p, q in zip(params_of(optimizer), params_of(straight), strict=True):
            assert same(p.detach(), q.detach())
            assert set(optimizer.state[p]) == set(straight.state[q])
            for key, value in straight.state[q].items():
                assert value is None or same(optimizer.state[p][key], value), key


@pytest.mark.parametrize("options", [{}, {"master_weights": "float32"}], ids=["params", "master"])
def test_codes_are_in_the_order_of_the_memory_that_is_loaded_into(options: dict[str, Any]) -> None:
    """Blocks are found again where a model is kept in another memory format than the checkpoint was saved from."""
    options = {**options, "state_dtype": {"exp_avg": "int8", "exp_avg_sq": "float32"}}
    value = torch.randn(8, 8, 8, 9).to(torch.bfloat16 if "master_weights" in options else torch.float32)
    # Every channel has a magnitude of its own, which a block of another order would miss.
    grad = torch.randn(8, 8, 8, 9) * torch.logspace(-3, 3, 8)[:, None, None]
    saved = fusedopt.AdamW([Parameter(value.clone())], **options)
    train(saved, [[grad.to(value.dtype)]])
    loaded = fusedopt.AdamW([Parameter(value.to(memory_format=torch.channels_last))], **options)
    # Other elements share a block, so that other codes are nearest; a master brings its own order along.
    with nullcontext() if "master_weights" in options else pytest.warns(UserWarning, match="'exp_avg' is rounded to"):
        loaded.load_state_dict(saved.state_dict())
    for _ in range(2):
        states = [optimizer.state_dict()["state"][0]["exp_avg"] for optimizer in (saved, loaded)]
        torch.testing.assert_close(states[0], states[1], rtol=1 / 6, atol=1e-3)
        train(saved, [[grad.to(value.dtype)]])
        train(loaded, [[grad.to(value.dtype, memory_format=torch.channels_last)]])


@thinned("an option knows no rule", keep=lambda case: case.name == "adamw")
@pytest.mark.parametrize(("options", "dtype"), [pair for pair in PAIRS if pair[1] != torch.float64], ids=str)
@pytest.mark.parametrize("case", [case for case in ONE_PER_OPTIMIZER if case.has_twin], ids=str)
def test_torch_loads_what_is_saved(case: Case, options: Options, dtype: torch.dtype) -> None:
    ours = steps(case.ours([Parameter(v) for v in values(dtype)], **options.of(case)), 3)
    theirs = case.torchs([Parameter(p.detach().clone()) for p in params_of(ours)])
    theirs.load_state_dict(ours.state_dict())
    steps(theirs, 1)
    for p, state in zip(params_of(theirs), ours.state_dict()["state"].values(), strict=True):
        for key in case.states:
            if isinstance(state.get(key), Tensor):
                assert state[key].is_floating_point()
                assert state[key].shape == p.shape
    back = case.ours([Parameter(p.detach().clone()) for p in params_of(theirs)], **options.of(case))
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        back.load_state_dict(theirs.state_dict())
    said = " ".join(str(w.message) for w in warned)
    halves = {"master", "remainder"} & set(ours.state[params_of(ours)[0]])
    assert bool(re.search(r"torch has rounded '\w+', which starts anew from the param", said)) == bool(halves)
    assert "is rounded to float32" not in said
    assert not options.of(case).get("state_dtype") or dtype in HALVES or "rounded" in said or "float32" in options.name
    steps(back, 1)


def test_a_file_whose_warnings_are_errors_is_not_loaded_halfway() -> None:
    """What a file has lost is said once all of it has been brought home."""
    ours = fusedopt.AdamW([Parameter(torch.ones(3, dtype=torch.bfloat16))], lr=0.1, master_weights="float32")
    steps(ours, 1)
    file = ours.state_dict()
    its = {**file["state"][0], "exp_avg": torch.full((3,), 7.0), "master": torch.ones(3, dtype=torch.bfloat16)}
    state, groups, before = ours.state, ours.param_groups, snapshot(ours)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="torch has rounded 'master'"):
            ours.load_state_dict({**file, "state": {0: its}})
    assert ours.state is state
    assert ours.param_groups is groups
    assert_identical(snapshot(ours), before)


def test_partners_convert_into_each_other() -> None:
    options: dict[str, dict[str, Any]] = {
        "master": {"master_weights": "float32"},
        "remainder": {"master_weights": "remainder"},
        "compensation": {"rounding": "kahan"},
    }
    for source, given in options.items():
        saved = steps(fusedopt.AdamW([Parameter(v) for v in values(torch.bfloat16)], **given))
        exact = [exact_param(p, source, saved.state[p][source]) for p in params_of(saved)]
        for target, wanted in options.items():
            loaded = fusedopt.AdamW([Parameter(p.detach().clone()) for p in params_of(saved)], **wanted)
            with warnings.catch_warnings(record=True) as warned:
                warnings.simplefilter("always")
                loaded.load_state_dict(saved.state_dict())
            kept = True
            for p, value in zip(params_of(loaded), exact, strict=True):
                assert set(loaded.state[p]) & set(options) == {target}
                joined = exact_param(p, target, loaded.state[p][target])
                torch.testing.assert_close(joined, value, rtol=2**-15 if target == "compensation" else 2**-23, atol=0)
                kept = kept and torch.equal(joined, value)
            assert kept or "compensation" in (source, target)
            expected = [] if kept else [f"'{target}' holds '{source}' with fewer bits"]
            assert [str(w.message).partition(": ")[2].partition(";")[0] for w in warned] == expected


@pytest.mark.parametrize("storage", ["bfloat16", "int8", "int4"])
def test_rounding_a_checkpoint_is_said(storage: str) -> None:
    theirs = steps(torch.optim.AdamW([Parameter(v) for v in values(torch.float32)]))
    params = [Parameter(v) for v in values(torch.float32)]
    narrow = fusedopt.AdamW(params, state_dtype={"exp_avg": storage})
    with pytest.warns(UserWarning, match=rf"under other options: 'exp_avg' is rounded to {storage}; give") as warned:
        narrow.load_state_dict(theirs.state_dict())
    assert len(warned) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fusedopt.AdamW(params, state_dtype="float32").load_state_dict(theirs.state_dict())
        fusedopt.AdamW(params, state_dtype={"exp_avg": storage}).load_state_dict(narrow.state_dict())


def test_what_cannot_be_kept_is_said() -> None:
    saved = steps(
        fusedopt.AdamW([Parameter(v) for v in values(torch.bfloat16)], master_weights="float32", ema_decay=0.9)
    )
    plain = fusedopt.AdamW([Parameter(v) for v in values(torch.bfloat16)])
    with pytest.warns(UserWarning, match="saved under other options") as warned:
        plain.load_state_dict(saved.state_dict())
    text = "\n".join(str(w.message) for w in warned)
    assert "the bits that 'master' has beyond the param are dropped" in text
    assert "'ema' is kept as it is" in text
    assert "master" not in plain.state[params_of(plain)[0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("kept", "options"),
    [
        ("master", {"master_weights": "float32"}),
        ("remainder", {"master_weights": "remainder"}),
        ("compensation", {"rounding": "kahan"}),
    ],
)
def test_wider_params_leave_what_completed_narrow_ones(kept: str, options: dict[str, Any], dtype: torch.dtype) -> None:
    """It would lie beside them for ever, in every file, and no step would read it."""
    saved = steps(fusedopt.AdamW([Parameter(v) for v in values(torch.bfloat16)], **options))
    wide = fusedopt.AdamW([Parameter(p.detach().to(dtype)) for p in params_of(saved)])
    with pytest.warns(UserWarning, match="; load it beside such params, with the options") as warned:
        wide.load_state_dict(save_and_load(saved.state_dict()))
    words = f"saved beside params in 16 bits: the bits that '{kept}' has beyond them are dropped; load"
    assert [words in str(w.message) for w in warned] == [True]
    steps(wide, 1)
    assert all(set(state) == {"step", "exp_avg", "exp_avg_sq"} for state in wide.state_dict()["state"].values())
    # Beside narrow params they are kept where those are, also in one optimizer with wide ones.
    params = params_of(saved)
    mixed = fusedopt.AdamW(
        [Parameter(p.detach().to(torch.bfloat16 if i % 2 else dtype)) for i, p in enumerate(params)], **options
    )
    with pytest.warns(UserWarning, match="saved beside params in 16 bits"):
        mixed.load_state_dict(saved.state_dict())
    for i, (mine, p) in enumerate(zip(params_of(mixed), params, strict=True)):
        assert (kept in mixed.state[mine]) == bool(i % 2)
        assert i % 2 == 0 or same(mixed.state[mine][kept], saved.state[p][kept])


COUNTING = [case for case in ONE_PER_OPTIMIZER if set(case.counters) - {"step"}]


@pytest.mark.parametrize("case", COUNTING, ids=str)
def test_counters_stay_in_their_type(case: Case) -> None:
    """torch's load_state_dict makes all but the step the param's type: a running product came back in bfloat16."""
    wide = (torch.float32, torch.float64)
    for dtype, default in product((*wide, torch.bfloat16), wide):
        with default_dtype(default):
            whole = case.ours([Parameter(value) for value in values(dtype)])
            gradients = random_gradients(params_of(whole), 6, 1, dtype)
            train(whole, gradients[:3])
            resumed = case.ours(clone_params(params_of(whole)))
            resumed.load_state_dict(save_and_load(whole.state_dict()))
            train(whole, gradients[3:])
            train(resumed, gradients[3:])
            assert_identical(snapshot(resumed), snapshot(whole))
