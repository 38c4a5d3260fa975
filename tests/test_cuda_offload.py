"""`offload="cpu"`: params on the device, states and the step on the host, with the bits of a step that stays."""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from backends import (  # noqa: F401
    Backend,
    Emulated,
    assert_same_memory,
    backend_fixture,
    cuda_fixture,
    emulated_fixture,
    spread,
)
from cases import CASES, ONE_PER_OPTIMIZER, Case
from options import PAIRS, Options, values
from test_cuda_failures import PARTLY, failures
from tiers import thinned
from torch import Tensor
from torch.nn import Parameter
from twins import SIZES, Twins, assert_untouched, copies, simple

import fusedopt
from fusedopt._core import precision

LACK = ("Adafactor", "LBFGS", "Muon", "SparseAdam")
BYTES = 20_000

one_per_optimizer = pytest.mark.parametrize(
    "case", [case for case in ONE_PER_OPTIMIZER if case.takes("offload")], ids=str
)


@pytest.fixture(autouse=True, name="buffer_bytes")
def buffer_bytes_fixture(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Buffers that hold some of the small params here together, and of the large ones pieces."""
    monkeypatch.setattr(precision, "OFFLOAD_BYTES", BYTES)
    return BYTES


def sizes() -> list[Tensor]:
    return [spread(*size) for size in [*SIZES, (3, 1700), (7000,), (1024,)]]


def offloaded(backend: Backend, case: Case, **extra: Any) -> Twins:
    """The CPU's, whose params are on the host as it is, beside those of the device."""
    return Twins(backend, simple(case, offload="cpu", **extra), sizes())


@pytest.mark.parametrize("case", [case for case in CASES if case.takes("offload")], ids=str)
def test_the_bits_are_those_of_a_step_on_the_host(backend: Backend, case: Case) -> None:
    twins = offloaded(backend, case)
    twins.train()
    twins.set_lr(0.05)
    twins.train(1)
    assert twins.ours.offload == "cpu"
    for state in twins.ours.state.values():
        assert {value.device.type for value in state.values() if isinstance(value, Tensor)} == {"cpu"}


@thinned("what a row has beside its rule's is the same for all rules")
@one_per_optimizer
@pytest.mark.parametrize(("options", "dtype"), PAIRS, ids=str)
def test_with_other_options(backend: Backend, case: Case, options: Options, dtype: torch.dtype) -> None:
    given = {**options.of(case), "offload": "cpu"}
    twins = Twins(backend, lambda params: case.ours(params, **given), [*values(dtype), spread(9000, dtype=dtype)])
    for _ in range(3):
        twins.give()
        twins.cpu.step()  # draws go on from step to step
        twins.ours.step()
    twins.check()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.complex64], ids=str)
def test_params_of_other_dtypes(backend: Backend, dtype: torch.dtype) -> None:
    twins = Twins(
        backend,
        lambda params: fusedopt.AdamW(params, offload="cpu"),
        [spread(*size, dtype=dtype) for size in SIZES] + [spread(5000, dtype=dtype)],
    )
    twins.train()


def test_a_buffer_that_holds_no_whole_chunk(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "OFFLOAD_BYTES", 1)
    twins = offloaded(backend, Case("lamb", "LAMB"))
    twins.train()


def test_memory_in_any_order(backend: Backend) -> None:
    """Gradients come with strides of their own, and states from a file of another memory format."""
    weight = spread(8, 4, 6, 10).contiguous(memory_format=torch.channels_last)
    twins = Twins(backend, lambda params: fusedopt.AdamW(params, offload="cpu"), [weight, spread(70, 30)])
    for _ in range(2):
        twins.step([spread(8, 4, 6, 10), spread(30, 70).t()])
        twins.check()
    for optimizer, params in twins.both():
        for p in params:
            for name in ("exp_avg", "exp_avg_sq"):
                state = optimizer.state[p][name]
                optimizer.state[p][name] = state.contiguous() if state.dim() == 4 else state.t().contiguous().t()
    twins.step([spread(8, 4, 6, 10), spread(70, 30)])
    twins.check()


def test_a_param_with_gaps_is_refused(backend: Backend) -> None:
    param = Parameter(backend.place(spread(40, 9)[:, ::3]))
    param.grad = torch.ones_like(param)
    ours = backend.adopt(fusedopt.AdamW([param], offload="cpu"))
    with pytest.raises(RuntimeError, match=r"param 0 of group 0: .* do not lie dense in memory in one order"):
        ours.step()
    assert not ours.state


def test_clipping_scaling_and_cleared_gradients(backend: Backend) -> None:
    twins = offloaded(backend, Case("adam", "Adam"), max_grad_norm=0.5, fused=True)
    for found in (0.0, 1.0, 0.0):
        twins.set_scaling(found, 8.0)
        twins.step()
        twins.check()
        assert bool(twins.ours.step_skipped) == bool(found)
    twins.set_scaling(None)
    twins.give()
    for optimizer in (twins.cpu, twins.ours):
        optimizer.step(zero_grad=True)
        assert all(not p.grad.any() for group in optimizer.param_groups for p in group["params"])
    twins.check()


def test_clip_grad_norm(backend: Backend) -> None:
    twins = offloaded(backend, Case("lamb", "LAMB"))
    for _ in range(3):
        twins.give()
        fusedopt.clip_grad_norm_(twins.cpu_params, 0.3)
        with backend.at_work():
            fusedopt.clip_grad_norm_(twins.params, 0.3)
        twins.step_cpu()
        twins.ours.step()
        twins.check()


def test_groups_of_both_kinds_and_one_that_comes_later(backend: Backend) -> None:
    def build(params: list[Any]) -> Any:
        groups = [
            {"params": params[:3], "lr": 0.1},
            {"params": params[3:5], "offload": None},
            {"params": params[5:7], "weight_decay": 0.2},
        ]
        return fusedopt.AdamW(groups, offload="cpu", ema_decay=0.9)

    twins = Twins(backend, build, sizes())
    twins.train(2)
    twins.edit(lambda optimizer, params: optimizer.add_param_group({"params": params[7:], "lr": 0.3}))
    twins.train(2)
    where = [p.device.type for p in twins.params]
    for i, p in enumerate(twins.params):
        expected = where[i] if i in (3, 4) else "cpu"
        assert twins.ours.state[p]["exp_avg"].device.type == expected
    with twins.cpu.ema_parameters(), twins.ours.ema_parameters():
        for p, q in zip(twins.cpu_params, twins.params, strict=True):
            assert_same_memory(q.detach(), p.detach())
    twins.train(1)


def test_a_param_that_is_listed_twice(backend: Backend) -> None:
    with pytest.warns(UserWarning, match="duplicate parameters"):
        twins = Twins(backend, lambda params: fusedopt.Adam([*params, params[0]], offload="cpu"), [spread(5000)])
    twins.train()


def test_copies_of_params(backend: Backend) -> None:
    twins = offloaded(backend, Case("adamw", "AdamW"))

    def copy_out(optimizer: Any, params: list[Any]) -> None:
        optimizer.copy_params_to({p: torch.zeros_like(p, dtype=torch.bfloat16) for p in params})

    twins.edit(copy_out)
    twins.ours = backend.adopt(twins.ours)
    twins.train()
    for p, copied in twins.ours._copies.items():
        assert torch.equal(copied, p.detach().bfloat16())


def test_an_edited_param_is_the_one_that_counts(backend: Backend) -> None:
    values_ = [spread(5000, dtype=torch.bfloat16)]
    twins = Twins(backend, lambda params: fusedopt.AdamW(params, master_weights="float32", offload="cpu"), values_)
    twins.train(2)
    with torch.no_grad():
        for p in (*twins.cpu_params, *twins.params):
            p[::7] = 0.5
    twins.train(1)


def test_schedule_free_changes_its_point(backend: Backend) -> None:
    twins = offloaded(backend, Case("adamw_schedule_free", "AdamWScheduleFree"))
    twins.train()
    for turn in ("eval", "train"):
        twins.edit(lambda optimizer, _: getattr(optimizer, turn)())  # noqa: B023
        twins.check()
    twins.train(1)


def test_no_more_than_two_buffers_are_pinned(emulated: Emulated) -> None:
    gc.collect()
    before = emulated.control.pinned_bytes()
    twins = offloaded(emulated, Case("adam", "Adam"))
    twins.train()
    assert 0 < emulated.control.pinned_bytes() - before <= 2 * BYTES
    del twins
    gc.collect()
    assert emulated.control.pinned_bytes() == before


@pytest.mark.parametrize("name", ["Adam", "LAMB"])
@pytest.mark.parametrize("steps", [0, 2])
def test_every_call_of_a_step(emulated: Emulated, name: str, steps: int) -> None:
    """A call that fails costs a step, which says whether it wrote; the next is as ever."""

    def begin() -> Twins:
        twins = Twins(emulated, simple(Case(name, name), offload="cpu"), [spread(9), spread(3000), spread(40)])
        for _ in range(steps):
            twins.step()
        twins.give()
        return twins

    def step() -> None:
        twins.ours.step()

    twins = begin()
    before = copies(twins.ours)
    partly = []
    for said in failures(emulated, step):
        partly.append(PARTLY in said)
        if said and not partly[-1]:
            assert_untouched(twins.ours, before)
            twins.ours.step()
        if not partly[-1]:
            twins.step_cpu()
            twins.check()
        twins = begin()
        before = copies(twins.ours)
    assert any(partly)
    assert not all(partly)


def test_a_capture_is_refused(emulated: Emulated) -> None:
    twins = offloaded(emulated, Case("sgd", "SGD"))
    twins.train(1)
    with pytest.raises(RuntimeError, match="offload='cpu' steps params on the host, and a replay of a CUDA graph"):
        emulated.capture(twins.ours.step)
    twins.train(1)


def test_other_threads_run_while_the_host_waits(emulated: Emulated) -> None:
    twins = offloaded(emulated, Case("adam", "Adam"))
    waits, held = emulated.control.synchronizations(), emulated.control.waits_with_gil()
    twins.train()
    assert emulated.control.synchronizations() > waits
    assert emulated.control.waits_with_gil() == held


# Files.


@pytest.mark.parametrize(
    "given", [{}, {"state_dtype": "int8"}, {"master_weights": "float32"}, {"ema_decay": 0.5}], ids=str
)
def test_files_go_from_one_kind_to_the_other(backend: Backend, given: dict[str, Any]) -> None:
    dtype = torch.bfloat16 if "master_weights" in given else torch.float32

    def make(where: Backend, **options: Any) -> Any:
        generator = torch.Generator().manual_seed(3)
        params = [where.place(torch.randn(n, generator=generator).to(dtype)) for n in (70, 5000)]
        return where.adopt(fusedopt.AdamW([Parameter(p) for p in params], **given, **options))

    def train(optimizer: Any, seeds: range) -> None:
        for seed in seeds:
            generator = torch.Generator().manual_seed(seed)
            for p in optimizer.param_groups[0]["params"]:
                p.grad = torch.randn(p.shape, generator=generator).to(p)
            optimizer.step()

    kinds: list[dict[str, Any]] = [{}, {"offload": "cpu"}]
    for first in kinds:
        for second in kinds:
            whole, resumed, saved = make(backend), make(backend, **second), make(backend, **first)
            train(whole, range(4))
            train(saved, range(2))
            for p, q in zip(resumed.param_groups[0]["params"], saved.param_groups[0]["params"], strict=True):
                p.data.copy_(q.data)
            resumed.load_state_dict(copy.deepcopy(saved.state_dict()))
            train(resumed, range(2, 4))
            for p, q in zip(resumed.param_groups[0]["params"], whole.param_groups[0]["params"], strict=True):
                assert_same_memory(p.detach().cpu(), q.detach().cpu())
            assert resumed.state_dict().keys() == whole.state_dict().keys()
            assert list(resumed.state_dict()["state"][0]) == list(whole.state_dict()["state"][0])


@pytest.mark.parametrize("given", [{}, {"state_dtype": "int8"}, {"master_weights": "float32"}], ids=str)
def test_loading_takes_no_memory_of_the_device(given: dict[str, Any]) -> None:
    """What is on a device without memory cannot have been there."""
    dtype = torch.bfloat16 if "master_weights" in given else torch.float32
    saved = fusedopt.AdamW([Parameter(torch.randn(4, 3000).to(dtype))], **given)
    saved.param_groups[0]["params"][0].grad = torch.randn(4, 3000).to(dtype)
    saved.step()
    # Blocks of codes follow the order of memory, so that in another the numbers are others.
    empty = torch.empty(3000, 4, dtype=dtype, device="meta").t()
    param = Parameter(empty.contiguous() if "state_dtype" in given else empty)
    resumed = fusedopt.AdamW([param], **given, offload="cpu")
    resumed.load_state_dict(saved.state_dict())
    for key, value in saved.state_dict()["state"][0].items():
        mine = resumed.state_dict()["state"][0][key]
        assert (mine.device.type, mine.dtype) == ("cpu", value.dtype)
        if "master_weights" not in given:  # a param without numbers agrees with no master
            torch.testing.assert_close(mine, value, rtol=0.02, atol=1e-3)
        if key != "step" and not given:
            assert mine.stride() == param.stride()


def test_states_that_a_constructor_makes_are_on_the_host(cuda: Any) -> None:
    optimizer = fusedopt.Adagrad([Parameter(torch.zeros(3, device=cuda.device))], offload="cpu")
    (state,) = optimizer.state.values()
    assert state["sum"].device.type == "cpu"


def test_a_copy_keeps_the_option(backend: Backend) -> None:
    twins = offloaded(backend, Case("adam", "Adam"))
    twins.train(1)
    assert copy.deepcopy(twins.cpu).offload == "cpu"


# Refusals.


def test_what_it_is_not_for() -> None:
    model = torch.nn.Linear(3, 2)
    with pytest.raises(ValueError, match="Invalid offload: 'disk'; use None or 'cpu'"):
        fusedopt.AdamW(model.parameters(), offload="disk")
    with pytest.raises(ValueError, match="capturable=True is for steps that CUDA graphs replay, and offload='cpu'"):
        fusedopt.AdamW(model.parameters(), offload="cpu", capturable=True)
    optimizer = fusedopt.AdamW([model.weight], offload="cpu")
    with pytest.raises(ValueError, match="capturable=True is for steps that CUDA graphs replay, and offload='cpu'"):
        optimizer.add_param_group({"params": [model.bias], "capturable": True})
    assert len(optimizer.param_groups) == 1
    with pytest.raises(ValueError, match="offload='cpu' overlaps the copies of many params with their steps"):
        fusedopt.step_in_backward(model, optimizer)
    with pytest.raises(AttributeError, match="offload is fixed by the constructor"):
        optimizer.offload = None
    for name in LACK:
        if hasattr(fusedopt, name):
            with pytest.raises(TypeError, match="offload"):
                getattr(fusedopt, name)([model.weight], offload="cpu")


def test_devices_without_an_engine_are_refused() -> None:
    param = Parameter(torch.empty(3, device="meta"))
    param.grad = torch.empty(3, device="meta")
    optimizer = fusedopt.AdamW([param], offload="cpu")
    with pytest.raises(RuntimeError, match=r"torch's own step, which knows no .* offload"):
        optimizer.step()


def test_states_elsewhere_are_refused(cuda: Any) -> None:
    param = Parameter(torch.zeros(3, device="cuda"))
    param.grad = torch.ones_like(param)
    optimizer = fusedopt.AdamW([param], offload="cpu")
    optimizer.step()
    optimizer.state[param]["exp_avg"] = optimizer.state[param]["exp_avg"].cuda()
    with pytest.raises(RuntimeError, match=r"'exp_avg' .* on cuda:0, and offload='cpu' has states on the host"):
        optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.step()
