"""State and checkpoints: torch's keys and tensors, files exchanged with torch both ways, older files, hooks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import CASES, ONE_PER_OPTIMIZER, TWINS, Case
from support import (
    COUNTERS,
    assert_close,
    assert_identical,
    clone_params,
    default_dtype,
    give_grads,
    make_params,
    params_of,
    save_and_load,
    snapshot,
    train,
)
from tiers import thinned
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

import fusedopt


def described(optimizer: Optimizer) -> list[Any]:
    """Per state, in order: key, dtype, shape, device, strides and type of each value."""
    return [
        [(key, v.dtype, v.shape, v.device, strides(v), type(v), v.requires_grad) for key, v in state.items()]
        for state in optimizer.state.values()
    ]


def strides(t: Tensor) -> list[int]:
    """Those that address memory: torch keeps or drops the stride of a dimension of size 1 as an operator happens to."""
    return [stride for size, stride in zip(t.shape, t.stride(), strict=True) if size != 1]


LAYOUTS: dict[str, Callable[[], Tensor]] = {
    "contiguous": lambda: torch.randn(4, 3, 5, 6),
    "channels-last": lambda: torch.randn(4, 3, 5, 6).to(memory_format=torch.channels_last),
    "transposed": lambda: torch.randn(7, 4).t(),
    "strided": lambda: torch.randn(20)[::2],
    "size-1": lambda: torch.empty_strided((4, 1, 1), (1, 7, 9)).normal_(),
    "scalar": lambda: torch.randn(()),
    "empty": lambda: torch.randn(0, 3),
}


@thinned("all classes inherit it from one base", keep=lambda case: case.name in ("sgd-momentum", "adamw"))
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_state_tensors_look_like_torchs(case: Case, layout: Callable[[], Tensor]) -> None:
    data, grad = layout(), layout()
    ours = case.ours([Parameter(data.detach())])
    torchs = case.torchs([Parameter(torch.empty_strided(data.shape, data.stride()).copy_(data))])
    for optimizer in (ours, torchs):
        for _ in range(2):
            params_of(optimizer)[0].grad = grad
            optimizer.step()
    assert described(ours) == described(torchs)
    assert_close(ours, torchs)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_state_of_a_param_whose_gradient_has_other_strides(case: Case) -> None:
    ours, torchs = case.ours(make_params([(4, 7), (6,), (3, 5)])), case.torchs(make_params([(4, 7), (6,), (3, 5)]))
    grads = torch.randn(7, 4).t(), torch.randn(12)[::2], torch.randn(3, 1).expand(3, 5)
    for optimizer in (ours, torchs):
        for _ in range(2):
            for p, grad in zip(params_of(optimizer), grads, strict=True):
                p.grad = grad
            optimizer.step()
    assert described(ours) == described(torchs)
    assert_close(ours, torchs)


@thinned("all classes inherit it from one base", keep=lambda case: case.name in ("sgd-momentum", "adamw"))
@pytest.mark.parametrize("default", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("case", "flags"),
    [
        (case, flags)
        for case in ONE_PER_OPTIMIZER
        for flags in ({}, {"fused": True})
        if all(map(case.torch_takes, flags))
    ],
    ids=str,
)
def test_step_tensor_follows_the_default_dtype(
    case: Case, flags: dict[str, bool], dtype: torch.dtype, default: torch.dtype
) -> None:
    with default_dtype(default):
        ours = case.ours(make_params(dtype=dtype), **flags)
        torchs = case.torchs(make_params(dtype=dtype), **{"foreach": False, **flags})
        train(ours, 2)
        train(torchs, 2)
        assert described(ours) == described(torchs)
        mine, theirs = (
            [value for state in o.state.values() for key, value in state.items() if key in COUNTERS]
            for o in (ours, torchs)
        )
        torch.testing.assert_close(mine, theirs)


VARIANTS = [{"foreach": False}, {"foreach": True}, {"fused": True, "foreach": None}]
EXCHANGES = [
    pytest.param(case, variant, id=f"{case}-{name}")
    for case in CASES
    for name, variant in zip(["for-loop", "foreach", "fused"], VARIANTS, strict=True)
    if all(case.torch_takes(flag) for flag, value in variant.items() if value)
]


@thinned("all classes inherit it from one base", keep=lambda case: case.name in ("sgd-momentum", "adamw"))
@pytest.mark.parametrize(("case", "variant"), EXCHANGES)
def test_file_from_torch(case: Case, variant: dict[str, Any]) -> None:
    torchs, loop = case.torchs(make_params(), **variant), case.torchs(make_params())
    train(torchs)
    train(loop, 6)
    file = save_and_load(torchs.state_dict())
    ours = case.ours(clone_params(params_of(torchs)), lr=123.0)
    ours.load_state_dict(file)
    assert_identical(ours.state_dict(), torchs.state_dict())
    train(ours, 3, first=3)
    assert_close(ours, loop)


@thinned("all classes inherit it from one base", keep=lambda case: case.name in ("sgd-momentum", "adamw"))
@pytest.mark.parametrize(("case", "variant"), EXCHANGES)
def test_file_to_torch(case: Case, variant: dict[str, Any]) -> None:
    flags = {flag: value for flag, value in variant.items() if case.torch_takes(flag)}
    ours, loop = case.ours(make_params(), **flags), case.torchs(make_params())
    train(ours)
    train(loop, 6)
    file = save_and_load(ours.state_dict())
    assert set(file) == {"state", "param_groups"}
    torchs = case.torchs(clone_params(params_of(ours)), **{**variant, "lr": 123.0})
    torchs.load_state_dict(file)
    assert_identical(torchs.state_dict(), ours.state_dict())
    train(torchs, 3, first=3)
    assert_close(torchs, loop)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_resumed_run_is_bit_identical(case: Case) -> None:
    whole = case.ours(make_params())
    train(whole, 3)
    file = save_and_load([whole.state_dict(), params_of(whole)])
    resumed = case.ours([Parameter(p) for p in file[1]])
    resumed.load_state_dict(file[0])
    train(whole, 3, first=3)
    train(resumed, 3, first=3)
    assert_identical(snapshot(resumed), snapshot(whole))


@pytest.mark.parametrize("case", ONE_PER_OPTIMIZER, ids=str)
def test_loading_into_a_running_optimizer_rewinds_it(case: Case) -> None:
    ours = case.ours(make_params())
    train(ours, 2)
    file, data = save_and_load(ours.state_dict()), [p.detach().clone() for p in params_of(ours)]
    train(ours, 2, first=2)
    expected = snapshot(ours)
    with torch.no_grad():
        for p, value in zip(params_of(ours), data, strict=True):
            p.copy_(value)
    ours.load_state_dict(file)
    train(ours, 2, first=2)
    assert_identical(snapshot(ours), expected)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_loading_leaves_the_given_dict_alone(case: Case) -> None:
    source = case.ours(make_params())
    train(source)
    given = source.state_dict()
    expected = copy.deepcopy(given)
    groups = given["param_groups"]
    ours = case.ours(make_params())
    ours.load_state_dict(given)
    ours.param_groups[0]["lr"] = 99.0
    ours.add_param_group({"params": make_params(seed=3)})
    ours.state[params_of(ours)[0]]["mine"] = 1
    assert given["param_groups"] is groups
    assert len(groups) == 1
    assert_identical(given, expected)


def _age(file: dict[str, Any], optimizer: str) -> None:
    """Take out what older releases of torch did not write, and write `step` as they did."""
    for group in file["param_groups"]:
        for key in ("foreach", "fused", "maximize", "capturable", "differentiable", "decoupled_weight_decay"):
            group.pop(key, None)
        for key, neutral in {"amsgrad": False, "nesterov": False, "centered": False}.items():
            if group.get(key) == neutral:
                del group[key]
        if optimizer == "RMSprop" and group["momentum"] == 0:
            del group["momentum"]
    for state in file["state"].values():
        if "step" in state:
            state["step"] = int(state["step"].item())


AGED = [case for case in TWINS if not case.kwargs.get("maximize") and "decoupled" not in case.name]


@pytest.mark.parametrize("case", AGED, ids=str)
def test_older_files(case: Case) -> None:
    torchs = case.torchs(make_params())
    train(torchs)
    file = save_and_load(torchs.state_dict())
    _age(file, case.optimizer)
    ours, expected = case.ours(clone_params(params_of(torchs))), case.torchs(clone_params(params_of(torchs)))
    for optimizer in (ours, expected):
        optimizer.load_state_dict(copy.deepcopy(file))
    assert_identical(ours.state_dict(), expected.state_dict())
    train(ours, 3, first=3)
    train(torchs, 3, first=3)
    assert_close(ours, torchs)


APART = "decoupled_weight_decay" in torch.optim.AdamW(make_params()).param_groups[0]


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize(("source", "target"), [("Adam", "AdamW"), ("AdamW", "Adam")])
def test_adam_and_adamw_read_each_other(source: str, target: str, decay: float) -> None:
    """From torch 2.7 on a group says which of them it is of; before, it is the class that reads it."""
    torchs = getattr(torch.optim, source)(make_params(), lr=0.01, weight_decay=decay)
    train(torchs)
    pair = [getattr(lib, target)(clone_params(params_of(torchs))) for lib in (fusedopt, torch.optim)]
    for optimizer in pair:
        optimizer.load_state_dict(save_and_load(torchs.state_dict()))
        assert optimizer.param_groups[0].get("decoupled_weight_decay") is (True if APART else None)
        train(optimizer, 3, first=3)
    assert_close(*pair)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_file_with_momentum_buffer_none(momentum: float) -> None:
    file = torch.optim.SGD(make_params(), lr=0.1, momentum=momentum).state_dict()
    file["state"] = {i: {"momentum_buffer": None} for i in range(len(make_params()))}
    ours, torchs = fusedopt.SGD(make_params()), torch.optim.SGD(make_params(), foreach=False)
    for optimizer in (ours, torchs):
        optimizer.load_state_dict(save_and_load(file))
        train(optimizer)
    assert_close(ours, torchs)


@thinned("all classes inherit it from one base", keep=lambda case: case.name in ("sgd-momentum", "adamw"))
@pytest.mark.parametrize("source_named", [True, False])
@pytest.mark.parametrize("target_named", [True, False])
@pytest.mark.parametrize("case", ONE_PER_OPTIMIZER, ids=str)
def test_param_names(case: Case, source_named: bool, target_named: bool) -> None:
    def params(named: bool, prefix: str) -> list[Any]:
        return [(f"{prefix}{i}", p) for i, p in enumerate(make_params())] if named else list(make_params())

    results = []
    for source, target in ((case.torchs, case.ours), (case.ours, case.torchs), (case.torchs, case.torchs)):
        saved, loaded = source(params(source_named, "a")), target(params(target_named, "b"))
        train(saved)
        loaded.load_state_dict(save_and_load(saved.state_dict()))
        results.append(loaded.param_groups[0].get("param_names"))
        train(loaded)
    assert results[0] == results[1] == results[2]
    assert results[0] == ([f"a{i}" for i in range(5)] if source_named else results[0])


@pytest.mark.parametrize("case", ONE_PER_OPTIMIZER, ids=str)
def test_extra_keys_in_state_and_groups_travel_along(case: Case) -> None:
    plain, ours = case.ours(make_params()), case.ours(make_params())
    for optimizer in (plain, ours):
        train(optimizer)
    state = ours.state[params_of(ours)[0]]
    state.update(seen=7, ema=torch.ones(3), nested={"count": 1})
    ours.state["global"] = {"seen": 3}  # a key that is no param
    ours.param_groups[0]["initial_lr"] = 0.5
    loaded = case.ours(clone_params(params_of(ours)))
    loaded.load_state_dict(save_and_load(ours.state_dict()))
    for optimizer in (plain, ours, loaded):
        train(optimizer, 2, first=3)
    for optimizer in (ours, loaded):
        state = optimizer.state[params_of(optimizer)[0]]
        assert_identical([state.pop(key) for key in ("seen", "ema", "nested")], [7, torch.ones(3), {"count": 1}])
        assert optimizer.state.pop("global") == {"seen": 3}
        assert optimizer.param_groups[0]["initial_lr"] == 0.5
        assert_identical(snapshot(optimizer), snapshot(plain))


@pytest.mark.parametrize("case", ONE_PER_OPTIMIZER, ids=str)
def test_state_dict_hooks(case: Case) -> None:
    calls: list[str] = []

    def registered(make: Callable[..., Optimizer]) -> tuple[Optimizer, dict[str, Any]]:
        optimizer = make(make_params())
        train(optimizer)

        def log(label: str, result: Callable[[Any], Any] = lambda _: None) -> Callable[..., Any]:
            def hook(which: Optimizer, *rest: Any) -> Any:
                assert which is optimizer
                calls.append(label)
                return result(*rest) if rest else None

            return hook

        optimizer.register_state_dict_pre_hook(log("save pre 2"))
        optimizer.register_state_dict_pre_hook(log("save pre 1"), prepend=True)
        optimizer.register_state_dict_post_hook(log("save post 2", lambda d: {**d, "extra": 1}))
        optimizer.register_state_dict_post_hook(log("save post 1"), prepend=True)
        optimizer.register_load_state_dict_pre_hook(log("load pre 2", lambda d: {k: d[k] for k in d if k != "extra"}))
        optimizer.register_load_state_dict_pre_hook(log("load pre 1"), prepend=True)
        optimizer.register_load_state_dict_post_hook(log("load post 2"))
        removed = optimizer.register_load_state_dict_post_hook(log("load post 1"), prepend=True)
        file = optimizer.state_dict()
        optimizer.load_state_dict(file)
        removed.remove()
        optimizer.load_state_dict(file)
        return optimizer, file

    ours, file = registered(case.ours)
    mine = calls.copy()
    calls.clear()
    torchs, _ = registered(case.torchs)
    assert mine == calls
    assert len(mine) == 11
    assert mine[:4] == ["save pre 1", "save pre 2", "save post 1", "save post 2"]
    assert file["extra"] == 1
    train(ours, 2, first=3)
    train(torchs, 2, first=3)
    assert_close(ours, torchs)


def _model() -> torch.nn.Module:
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))


@thinned("all classes inherit it from one base", keep=lambda case: case.name in ("sgd-momentum", "adamw"))
@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
@pytest.mark.parametrize("flat", [False, True], ids=["nested", "flattened"])
@pytest.mark.parametrize("directions", ["ours-ours", "torch-ours", "ours-torch"])
@pytest.mark.parametrize("case", ONE_PER_OPTIMIZER, ids=str)
def test_distributed_checkpoint_state_dict(case: Case, directions: str, flat: bool) -> None:
    from torch.distributed.checkpoint import state_dict as dcp

    makers = [case.ours if side == "ours" else case.torchs for side in directions.split("-")]
    options = dcp.StateDictOptions(flatten_optimizer_state_dict=flat)
    model = _model()
    source = makers[0](model.parameters())
    train(source)
    file = copy.deepcopy(dcp.get_optimizer_state_dict(model, source, options=options))  # it shares tensors

    other = copy.deepcopy(model)
    before = [p.detach().clone() for p in other.parameters()]
    target = makers[1](other.parameters(), lr=0.7)
    dcp.set_optimizer_state_dict(other, target, file, options=options)
    assert_identical(list(other.parameters()), before)
    assert all(p.grad is None for p in other.parameters())
    assert target.param_groups[0]["lr"] == case.kwargs["lr"]
    train(source, 3, first=3)
    train(target, 3, first=3)
    assert_close(target, source)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_initialising_step_of_distributed_checkpoints(case: Case) -> None:
    from torch.distributed.checkpoint.state_dict import _init_optim_state

    if case.kwargs.get("fixed_decay"):
        pytest.skip("it decays whatever the learning rate, which is 0 in this step")
    ours, torchs = case.ours(make_params()), case.torchs(make_params())
    for optimizer in (ours, torchs):
        _init_optim_state(optimizer)
    assert described(ours) == described(torchs)
    assert_identical(params_of(ours), make_params())
    give_grads(params_of(ours), 0)
    give_grads(params_of(torchs), 0)
    ours.step()
    torchs.step()
    assert_close(ours, torchs)
