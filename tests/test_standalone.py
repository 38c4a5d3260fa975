"""Optimizers that torch.optim does not have: what users of their references expect, what is refused, in which words."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import CASES, ONE_PER_OPTIMIZER, Case, named
from references import twin
from support import (
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
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode

import fusedopt
from fusedopt._core.arguments import Options
from fusedopt._core.standalone import Standalone

STANDALONE = [case for case in CASES if not hasattr(torch.optim, case.optimizer)]
every_case = pytest.mark.parametrize("case", STANDALONE, ids=str)
one_per_optimizer = pytest.mark.parametrize("case", [c for c in ONE_PER_OPTIMIZER if not c.has_twin], ids=str)


@one_per_optimizer
def test_arguments_are_the_references(case: Case) -> None:
    params, *arguments = inspect.signature(case.cls).parameters.values()
    assert params.name == "params"
    positional = {p.name: p.default for p in arguments if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD}
    reference = twin(case.optimizer)
    # What is in groups alone.
    modes = {name: value for name, value in reference.arguments.items() if name == "train_mode"}
    theirs = [(name, value) for name, value in reference.arguments.items() if name not in modes]
    assert list(positional.items()) == theirs
    keywords = {p.name: p.default for p in arguments if p.kind is inspect.Parameter.KEYWORD_ONLY}
    flags = {"maximize": False, "capturable": False, "foreach": None, "fused": None}
    options = Options()._asdict()
    if case.optimizer in ("NovoGrad", "Prodigy"):
        del options["offload"]
    assert keywords == {**flags, **reference.beyond, **options}
    optimizer = case.cls(make_params())
    kept = {"d": 1e-6, "d_max": 1e-6, "d_numerator": 0.0, "k": 0} if case.optimizer == "Prodigy" else {}
    flags = {"maximize": False, "capturable": False, "differentiable": False}
    assert optimizer.defaults == {**positional, **flags, **modes, **kept}
    assert repr(optimizer).startswith(f"{case.optimizer} (\nParameter Group 0\n")


P = torch.zeros(2)
NAN = float("nan")
BAD = [
    ({"lr": -1.0}, ValueError, r"Invalid learning rate: -1\.0"),
    ({"lr": NAN}, ValueError, "Invalid learning rate: nan"),
    ({"lr": torch.tensor(-1.0)}, ValueError, r"Invalid learning rate: -1\.0"),
    ({"lr": torch.tensor([0.5, 0.5])}, ValueError, "Tensor lr must be 1-element"),
    ({"lr": None}, TypeError, "lr is None; give a number"),
    ({"eps": -1e-8}, ValueError, "Invalid epsilon value: -1e-08"),
    ({"betas": (1.0, 0.9, 0.9)}, ValueError, r"Invalid beta parameter at index 0: 1\.0"),
    ({"betas": (0.9, -0.1, 0.9)}, ValueError, r"Invalid beta parameter at index 1: -0\.1"),
    ({"betas": (0.9, NAN, 0.9)}, ValueError, "Invalid beta parameter at index 1: nan"),
    ({"betas": (0.9, 0.9, 1.5)}, ValueError, r"Invalid beta parameter at index 2: 1\.5"),
    ({"betas": (0.9,)}, ValueError, "betas must be a tuple of [23] numbers"),
    ({"weight_decay": -0.1}, ValueError, r"Invalid weight_decay value: -0\.1"),
    ({"momentum": -0.9}, ValueError, r"Invalid momentum value: -0\.9"),
    *[({name: -0.9}, ValueError, rf"Invalid {name} value: -0\.9") for name in ("alpha", "t_alpha", "t_beta3")],
    *[({name: -0.9}, ValueError, rf"Invalid {name} value: -0\.9") for name in ("clip_exp", "a", "b", "r")],
    ({"alpha": None}, TypeError, "alpha is None; give a number"),
    ({"t_beta3": NAN}, ValueError, "Invalid t_beta3 value: nan"),
    ({"clip_exp": "0.25"}, TypeError, "clip_exp is '0.25'; give a number"),
    ({"trust_coeff": -0.9}, ValueError, r"Invalid trust_coeff value: -0\.9"),
    ({"nesterov": True}, ValueError, "Nesterov momentum requires a momentum and zero dampening"),
    ({"nesterov": True, "momentum": 0.9, "dampening": 0.1}, ValueError, "Nesterov momentum requires a momentum"),
]
REFUSED = [
    pytest.param(case, kwargs, error, text, id=f"{case}-{'-'.join(map(str, kwargs.items()))}")
    for case in ONE_PER_OPTIMIZER
    if not case.has_twin
    for kwargs, error, text in BAD
    if all(case.takes(key) for key in kwargs)
    and not ("index 2" in text and len(twin(case.optimizer).arguments["betas"]) < 3)
]


@pytest.mark.parametrize(("case", "kwargs", "error", "text"), REFUSED)
def test_hyper_parameters_are_checked(case: Case, kwargs: dict[str, Any], error: type[Exception], text: str) -> None:
    if len(kwargs.get("betas", ())) > 1:
        kwargs = {"betas": kwargs["betas"][: len(case.cls(make_params()).defaults["betas"])]}
    with pytest.raises(error, match=text):
        case.cls(make_params(), **kwargs)
    with pytest.raises(error, match=text):  # before params
        case.cls([], **kwargs)
    with pytest.raises(error, match=text):
        case.cls([{"params": make_params(), **kwargs}])
    optimizer = case.cls(make_params())
    with pytest.raises(error, match=text):
        optimizer.add_param_group({"params": make_params(), **kwargs})
    assert len(optimizer.param_groups) == 1


def _shared() -> list[Any]:
    p = Parameter(torch.zeros(2))
    return [{"params": [p]}, {"params": [p]}]


BAD_PARAMS: dict[str, Callable[[], Any]] = {
    "bare-tensor": lambda: torch.zeros(3),
    "empty-list": list,
    "numbers": lambda: [1.0, 2.0],
    "non-leaf": lambda: [make_params()[0] * 2],
    "set-in-group": lambda: [{"params": set(make_params())}],
    "shared-between-groups": _shared,
    "named-and-unnamed": lambda: [("a", make_params()[0]), make_params()[0]],
}


@pytest.mark.parametrize("params", BAD_PARAMS.values(), ids=BAD_PARAMS)
@one_per_optimizer
def test_params_are_checked_as_by_torchs_classes(case: Case, params: Callable[[], Any]) -> None:
    expected = outcome(lambda: torch.optim.AdamW(params()))
    assert expected is not None
    assert outcome(lambda: case.cls(params())) == expected


@one_per_optimizer
def test_other_keywords_are_refused(case: Case) -> None:
    for keyword in ("differentiable", "max_norm"):
        with pytest.raises(TypeError, match=f"unexpected keyword argument '{keyword}'"):
            case.cls(make_params(), **{keyword: True})


@every_case
def test_checkpoint_round_trip(case: Case) -> None:
    whole = case.ours([{"params": make_params()}, {"params": make_params(seed=1), **case.own(1e-3)}])
    train(whole)
    file = save_and_load(whole.state_dict())
    copies = clone_params(params_of(whole))
    resumed = case.ours([{"params": copies[:5]}, {"params": copies[5:]}], lr=0.7)
    resumed.load_state_dict(file)
    assert_identical(resumed.state_dict(), whole.state_dict())
    train(whole, 3, first=3)
    train(resumed, 3, first=3)
    assert_identical(snapshot(resumed), snapshot(whole))


@pytest.mark.parametrize("case", [named(name) for name in ("lion", "adopt", "lars", "lars-plain")], ids=str)
def test_files_of_the_reference_implementation(case: Case) -> None:
    """They hold neither `maximize` nor `capturable`.

    Adan's, LAMB's and AdamAtan2's count steps elsewhere, and AdEMAMix's have two states in one: they do not fit.
    """
    reference = case.torchs(make_params())
    train(reference)
    file = save_and_load(reference.state_dict())
    for group in file["param_groups"]:
        for key in ("maximize", "capturable", "differentiable"):
            del group[key]
    ours = case.ours(clone_params(params_of(reference)))
    ours.load_state_dict(copy.deepcopy(file))
    train(ours, 3, first=3)
    train(reference, 3, first=3)
    assert_close(ours, reference)


@pytest.mark.parametrize("case", [named("adan"), named("lamb")], ids=str)
def test_a_file_without_counters_is_refused(case: Case) -> None:
    ours = case.ours(make_params())
    train(ours)
    file = copy.deepcopy(ours.state_dict())
    for state in file["state"].values():
        del state["step"]
    before = snapshot(ours)
    with pytest.raises(ValueError, match=r"param 0 of group 0: its state in the file lacks \['step'\]"):
        ours.load_state_dict(file)
    assert_identical(snapshot(ours), before)


@pytest.mark.parametrize("steps_before", [0, 2])
@one_per_optimizer
def test_sparse_gradients_are_refused_and_change_nothing(case: Case, steps_before: int) -> None:
    ours = case.ours([{"params": make_params([(67,)])}, {"params": make_params([(9,), (4, 3), (5,)], seed=1)}])
    train(ours, steps_before)
    params, before, groups = params_of(ours), snapshot(ours), ours.param_groups
    give_grads(params, 9)
    params[2].grad = params[2].grad.to_sparse()
    with pytest.raises(RuntimeError, match=f"{case.optimizer} does not support sparse gradients; SparseAdam does"):
        ours.step()
    assert_identical(snapshot(ours), before)
    assert ours.param_groups is groups
    params[2].grad = None
    ours.step()  # and goes on as if nothing had happened
    assert len(ours.state) == 4 - (steps_before == 0)


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
        pytest.skip("needs gloo")
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
@one_per_optimizer
def test_params_on_one_process_of_a_mesh_are_stepped(case: Case) -> None:
    """A shard that is the whole; tests/sharded_sums.py has those that are not."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (1,))
    plain, sharded = make_params([(5,)])[0], Parameter(distribute_tensor(torch.ones(8, 3), mesh, [Shard(0)]))
    ours = case.ours([plain, sharded])
    plain.grad, sharded.grad = torch.ones(5), distribute_tensor(torch.ones(8, 3), mesh, [Shard(0)])
    ours.step()
    twins = [plain, sharded]
    others = [make_params([(5,)])[0], Parameter(torch.ones(8, 3))]
    others[0].grad, others[1].grad = torch.ones(5), torch.ones(8, 3)
    case.ours(others).step()
    for p, q in zip(twins, others, strict=True):
        assert_identical(p.full_tensor() if p is sharded else p, q)


class Watching(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@one_per_optimizer
def test_an_active_dispatch_mode_is_told(case: Case) -> None:
    """It would see nothing of an engine's step; a flop counter's number would be wrong without a word."""
    ours = case.ours(make_params())
    train(ours, 1)
    give_grads(params_of(ours), 1)
    before = snapshot(ours)
    with Watching(), pytest.raises(RuntimeError, match=f"{case.optimizer} steps ordinary tensors"):
        ours.step()
    assert_identical(snapshot(ours), before)


@one_per_optimizer
def test_differentiable_groups_are_refused(case: Case) -> None:
    ours = case.ours(make_params())
    train(ours, 1)
    give_grads(params_of(ours), 1)
    before = snapshot(ours)
    ours.param_groups[0]["differentiable"] = True
    with pytest.raises(RuntimeError, match=f"{case.optimizer} cannot be differentiated: set 'differentiable' to False"):
        ours.step()
    ours.param_groups[0]["differentiable"] = False
    assert_identical(snapshot(ours), before)


@one_per_optimizer
def test_lazy_gradients_with_a_scale_beside_ordinary_ones(case: Case) -> None:
    """What is stepped by a pass of its own is unscaled, skipped and counted as the rest."""
    complex_, real = torch.randn(7, dtype=torch.complex64), torch.randn(9)

    def run(lazy: bool) -> Optimizer:
        ours: Any = case.ours([Parameter(complex_.clone()), Parameter(real.clone())])
        generator = torch.Generator().manual_seed(2)
        for found in (0.0, 1.0, 0.0, 0.0):
            g, h = torch.randn(7, dtype=torch.complex64, generator=generator), torch.randn(9, generator=generator)
            params_of(ours)[0].grad = (g * 8).conj() if lazy else (g * 8).conj_physical()
            params_of(ours)[1].grad = h * 8
            ours.grad_scale, ours.found_inf = torch.tensor(8.0), torch.tensor(found)
            ours.step()
            assert ours.step_skipped.item() is (found == 1)
            assert (ours.grad_scale, ours.found_inf) == (8, found)
            assert params_of(ours)[0].grad.is_conj() is lazy
        return ours

    assert_identical(snapshot(run(True)), snapshot(run(False)))


def test_replace_knows_none_of_them() -> None:
    for name in {case.optimizer for case in STANDALONE}:
        with pytest.raises(TypeError, match=f"no replacement for references.{name}; it has"):
            fusedopt.replace(twin(name)(make_params()))
        ours = getattr(fusedopt, name)(make_params())
        assert fusedopt.replace(ours) is ours


@pytest.mark.parametrize("name", ["LAMB", "LARS"])
def test_params_that_are_all_zero_move(name: str) -> None:
    """A trust that is the norm of the param over another would hold them where they are."""
    param = Parameter(torch.zeros(300))
    param.grad = torch.ones(300)
    getattr(fusedopt, name)([param], lr=0.5, weight_decay=0.1).step()
    assert bool((param < 0).all())


def test_a_class_whose_rule_was_not_built_says_so() -> None:
    class Newer(Standalone):
        _rule = "newer"

    with pytest.raises(RuntimeError, match=r"Newer is of rule 'newer', which was not in csrc/rules.*: make build"):
        Newer(make_params(), {"lr": 1.0})
