"""A step on the device: how few launches it takes, that it waits for nothing, and what it reads where it lies."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from backends import (  # noqa: F401
    Backend,
    Cuda,
    assert_same_memory,
    backend_fixture,
    constant,
    counter_flags,
    cuda_fixture,
    spread,
    usual_launches,
)
from cases import CASES, ONE_PER_APART, ONE_PER_OPTIMIZER, Case
from support import params_of, save_and_load
from tiers import thinned
from torch import Tensor
from torch.nn import Parameter
from twins import SIZES, Twins, simple, trained_twins

import fusedopt

SMALL, LARGE = constant("kSmallPatch"), constant("kLargePatch")
INF, NAN = float("inf"), float("nan")

every_case = pytest.mark.parametrize("case", CASES, ids=str)
one_per_optimizer = pytest.mark.parametrize("case", ONE_PER_OPTIMIZER, ids=str)
numbers_anywhere = pytest.mark.parametrize("there", [False, True], ids=["numbers-on-host", "numbers-on-device"])


def without_or_with_sums(case: Case) -> bool:
    """A joint rule's groups keep what the device makes of all sums; others' rows have states and a counter or none."""
    return case.name in ("sgd-momentum", "adamw", "lamb") or case.joint


def test_what_a_step_must_not_do_would_be_seen(backend: Backend) -> None:
    def allocate_and_wait() -> None:
        torch.zeros(5, device=backend.device)
        try:
            torch.ones((), device=backend.device).item()
        except RuntimeError:
            assert backend.name == "cuda"

    seen = backend.beside_launches(allocate_and_wait)
    assert "aten::zeros" in seen
    assert "aten::item" in seen
    assert backend.launches(allocate_and_wait) == 0


@thinned("where numbers are and what is made of them are two things")
@pytest.mark.parametrize("count", [1, 10, 1000])
@numbers_anywhere
@one_per_optimizer
def test_two_launches_whatever_the_number_of_tensors(backend: Backend, case: Case, there: bool, count: int) -> None:
    if case.joint and not there:
        pytest.skip("what groups keep is on the device in any case")
    backend.numbers_on_device(there)
    twins = Twins(backend, simple(case, **counter_flags(case, there)), [spread(7) for _ in range(count)])
    twins.train(2)
    for step in range(3):
        twins.set_lr(0.01 * (step + 1))
        twins.step_twice_in_steady_state()


@thinned("the table's rows are written by what knows no rule", keep=without_or_with_sums, together=0)
@numbers_anywhere
@one_per_optimizer
def test_two_launches_for_hundreds_of_groups(backend: Backend, case: Case, there: bool) -> None:
    if case.joint and not there:
        pytest.skip("what groups keep is on the device in any case")
    backend.numbers_on_device(there)
    flags = counter_flags(case, there)
    twins = Twins(
        backend, lambda ps: case.ours([{"params": [p]} for p in ps], **flags), [spread(3) for _ in range(480)]
    )
    twins.set_lr(5e-5)
    twins.train(2)
    for step in range(3):
        twins.set_lr(1e-4 * (step + 1))
        twins.step_twice_in_steady_state()


WORDS = [("sgd", words) for words in (2, SMALL, SMALL + 1, LARGE, LARGE + 1, 2 * LARGE, 2 * LARGE + 1)]
WORDS += [("adamw", words) for words in (SMALL, SMALL + 1, LARGE, LARGE + 1)]


@pytest.mark.parametrize(("name", "words"), WORDS)
def test_changed_words_ride_on_the_first_launch(backend: Backend, name: str, words: int) -> None:
    """Beside the learning rate and AdamW's counter, which is on the host, each gradient at a new address is one."""
    backend.numbers_on_device(False)
    (case,) = [case for case in CASES if case.name == name]
    count = words - (1 if name == "sgd" else 2)
    twins = Twins(backend, simple(case), [spread(1) for _ in range(count)])
    grads = [list(spread(count, 1)) for _ in range(2)]
    placed = [[backend.place(grad) for grad in step] for step in grads]
    for step in range(5):
        for p, q, grad, copy in zip(twins.cpu_params, twins.params, grads[step % 2], placed[step % 2], strict=True):
            p.grad, q.grad = grad, copy
        twins.set_lr(0.01 * (step + 1))
        twins.step_cpu()
        launches = backend.launches(twins.ours.step)
        # One more for each LARGE of them that the advance kernel cannot take. A first step sends everything, and after
        # it the flag that it was the first.
        assert launches == usual_launches(twins.ours) + -(-max(0, words - LARGE) // LARGE) or step < 2
        assert torch.equal(torch.cat(twins.params).cpu(), torch.cat(twins.cpu_params))


@thinned("the table's rows are written by what knows no rule", keep=without_or_with_sums, together=0)
@numbers_anywhere
@one_per_optimizer
def test_two_launches_when_gradients_come_and_go(backend: Backend, case: Case, there: bool) -> None:
    backend.numbers_on_device(there)
    twins = Twins(backend, simple(case, **counter_flags(case, there)), [spread(n * 40 % 3001) for n in range(100)])
    twins.train(2)
    for step in range(12):
        given = [i % (step % 5 + 2) != step % 2 for i in range(100)]
        twins.give([spread(*p.shape) if on else None for p, on in zip(twins.params, given, strict=True)])
        assert backend.launches(twins.ours.step) == usual_launches(twins.ours)
        twins.step_cpu()
        twins.check()


def test_a_launch_for_each_variant_and_mix(backend: Backend) -> None:
    def build(params: list[Any]) -> Any:
        return fusedopt.AdamW([{"params": params[:12]}, {"params": params[12:], "amsgrad": True}])

    half, brain, wide = torch.float16, torch.bfloat16, torch.float64
    dtypes = [torch.float32, brain, half, wide, brain, half] * 4
    twins = Twins(backend, build, [spread(300, dtype=dtype) for dtype in dtypes])
    twins.step()
    # Kernels of their own have the four storages and brain floats with float32 states; the last is any mix.
    twins.set_states(lambda i, k, state: state.float() if i % 6 >= 4 else state)
    for _ in range(3):
        twins.give()
        twins.step_cpu()
        assert backend.launches(twins.ours.step) == 1 + 2 * 6
        twins.check()


def test_tensors_without_elements_and_steps_without_gradients(backend: Backend) -> None:
    twins = Twins(backend, simple(ONE_PER_OPTIMIZER[1]), [spread(0), spread(0, 3)])
    assert backend.launches(twins.ours.step) == 0
    for _ in range(3):
        twins.give()
        twins.step_cpu()
        assert backend.launches(twins.ours.step) == 1  # their steps are counted
        twins.check()
    twins.give([None, None])
    assert backend.launches(twins.ours.step) == 0


def test_counters_are_where_torch_has_them(cuda: Cuda) -> None:
    for name, flags in [("Adam", {}), ("Adam", {"fused": True}), ("AdamW", {"capturable": True}), ("RMSprop", {})]:
        optimizers = []
        for lib in (fusedopt, torch.optim):
            params = [Parameter(torch.ones(3, device="cuda"))]
            optimizers.append(getattr(lib, name)(params, **flags))
            params[0].grad = torch.ones(3, device="cuda")
            optimizers[-1].step()
        ours, theirs = [[(s["step"].device, s["step"].dtype) for s in o.state.values()] for o in optimizers]
        assert ours == theirs
        assert ours[0][0].type == ("cuda" if flags else "cpu")
        # From the first step on that only the device can decide about, it counts.
        optimizers[0].found_inf = torch.zeros((), device="cuda")
        optimizers[0].step()
        assert next(iter(optimizers[0].state.values()))["step"].is_cuda


@pytest.mark.parametrize("flags", [{"capturable": True}, {"fused": True}], ids=str)
@pytest.mark.parametrize("case", ONE_PER_OPTIMIZER[1:3], ids=str)
def test_loaded_counters_come_to_the_device(backend: Backend, case: Case, flags: dict[str, bool]) -> None:
    backend.numbers_on_device(False)
    twins = trained_twins(backend, case, there=False)
    for optimizer, _ in twins.both():
        optimizer.param_groups[0].update(flags)
    twins.train()
    counters = [state["step"] for state in twins.ours.state.values()]
    assert all(counter.device.type == backend.device for counter in counters)
    for state in twins.ours.state.values():
        state["step"] = state["step"].double().cpu()
    for state in twins.cpu.state.values():
        state["step"] = state["step"].double()
    twins.train()


@thinned("where numbers are and what is made of them are two things")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@numbers_anywhere
@every_case
def test_numbers_in_device_memory_are_read_there(backend: Backend, case: Case, dtype: torch.dtype, there: bool) -> None:
    """Every hyper-parameter but zeros, which select a rule's variant."""
    twins = trained_twins(backend, case, there)
    for optimizer, number in ((twins.cpu, torch.tensor), (twins.ours, backend.number)):
        for group in optimizer.param_groups:
            for key in ("lr", "eps", "weight_decay", "momentum", "dampening", "alpha"):
                if group.get(key):
                    group[key] = number(group[key], dtype=dtype)
            if "betas" in group:
                group["betas"] = tuple(number(beta, dtype=dtype) for beta in group["betas"])
    twins.train()
    for factor in (0.5, 3.0):
        twins.edit(lambda optimizer, params: optimizer.param_groups[0]["lr"].mul_(factor))  # noqa: B023
        twins.give()
        if there:
            twins.step_twice_in_steady_state()
        twins.train(1)


# torch steps capturable params on GPUs alone.
CHECKPOINTS = [
    (case, flag)
    for case in CASES
    for flag in (None, "fused", "capturable")
    if flag is None
    or (
        (case.torch_takes(flag) or (flag == "capturable" and case.takes(flag)))
        and (flag != "capturable" or torch.cuda.is_available())
    )
]


@thinned("where numbers are and what is made of them are two things")
@pytest.mark.parametrize(("case", "flag"), CHECKPOINTS, ids=str)
@numbers_anywhere
def test_checkpoints_come_from_torch_and_go_to_it(backend: Backend, case: Case, there: bool, flag: str | None) -> None:
    if flag == "capturable" and backend.device == "cpu":
        pytest.skip("torch has it for GPUs alone")
    backend.numbers_on_device(there)
    device = backend.device

    def train_torchs(optimizer: Any, grads: list[list[Tensor]]) -> None:
        for step in grads:
            for p, grad in zip(params_of(optimizer), step, strict=True):
                p.grad = grad.to(device)
            optimizer.step()

    first, last = ([[torch.randn(size) for size in SIZES] for _ in range(2)] for _ in range(2))
    flags = {flag: True, "foreach": None} if flag else {}
    source = case.torchs([Parameter(torch.randn(size, device=device)) for size in SIZES], **flags)
    train_torchs(source, first)
    twins = Twins(backend, simple(case, **flags), [p.detach().cpu() for p in params_of(source)])
    twins.edit(lambda optimizer, params: optimizer.load_state_dict(save_and_load(source.state_dict())))
    twins.train(3)
    # torch goes on where we stop, and so do we.
    target = case.torchs([Parameter(p.detach().clone()) for p in twins.params], **flags)
    target.load_state_dict(save_and_load(twins.ours.state_dict()))
    train_torchs(target, last)
    for grads in last:
        twins.step(grads)
    twins.check()
    for p, q in zip(params_of(target), twins.params, strict=True):
        torch.testing.assert_close(p, q)


@thinned("tables and streams know no rule", keep=without_or_with_sums, together=0)
@one_per_optimizer
def test_streams_have_tables_of_their_own(backend: Backend, case: Case) -> None:
    twins = trained_twins(backend, case)
    for first in (True, False):
        for stream in (1, 2, 3):
            with backend.stream(stream):
                twins.give()
                # The emulator's device fills what it has allocated by itself.
                made = {"aten::zeros", "aten::empty"} & {*backend.beside_launches(twins.ours.step)}
                assert bool(made) is first
                twins.step_cpu()
                twins.check()
    for stream in (3, 1, 2):
        with backend.stream(stream):
            twins.train(1)
            twins.step_twice_in_steady_state()
    # More streams than an optimizer keeps tables for.
    for stream in [*range(1, 25), 1, 20, 2]:
        with backend.stream(stream):
            twins.train(1)
    twins.train(1)


@numbers_anywhere
@pytest.mark.parametrize("case", ONE_PER_APART, ids=str)
def test_a_param_listed_twice_steps_twice(backend: Backend, case: Case, there: bool) -> None:
    backend.numbers_on_device(there)

    def build(params: list[Any]) -> Any:
        with pytest.warns(UserWarning, match="duplicate parameters"):
            return case.ours([params[0], params[1], params[0], params[2], params[1], params[0]])

    twins = Twins(backend, build, [spread(67), spread(1500), spread(3)])
    for found in (None, None, 0.0, 1.0, None):
        twins.set_scaling(found)
        twins.train(2)
        twins.step([spread(67), None, spread(3)])
        twins.check()


def test_params_on_the_cpu_and_on_a_gpu(cuda: Cuda) -> None:
    for case in CASES:
        twins = Twins(cuda, simple(case), [spread(*size) for size in SIZES])
        extra = [[Parameter(torch.ones(5, 3)), Parameter(torch.ones(1030))] for _ in range(2)]
        for (optimizer, _), more in zip(twins.both(), extra, strict=True):
            optimizer.add_param_group({"params": more, "lr": 0.3})
        for found in (None, 0.0, 1.0, None, 0.0):
            twins.set_scaling(found)
            for more in zip(*extra, strict=True):
                grad = spread(*more[0].shape)
                for p in more:
                    p.grad = grad
            twins.step()
            assert twins.ours.step_skipped.item() is (found == 1)
            for p, q in zip(params_of(twins.cpu), params_of(twins.ours), strict=True):
                assert_same_memory(q.detach(), p.detach())


def test_params_on_several_gpus(cuda: Cuda) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    for case in CASES:
        values = [spread(*size) for size in SIZES]
        cpu = case.ours([Parameter(v.clone()) for v in values])
        ours = case.ours([Parameter(v.to(f"cuda:{i % 2}")) for i, v in enumerate(values)])
        for found in (None, 0.0, 1.0, None, 0.0):
            for optimizer in (cpu, ours):
                device = "cpu" if optimizer is cpu else "cuda:0"
                optimizer.found_inf = None if found is None else torch.tensor(found, device=device)
                optimizer.param_groups[0]["lr"] = torch.tensor(0.01, device=device)
            for p, q in zip(params_of(cpu), params_of(ours), strict=True):
                p.grad = spread(*p.shape)
                q.grad = p.grad.to(q.device)
            cpu.step()
            ours.step()
            assert ours.step_skipped.item() is (found == 1)
            for p, q in zip(params_of(cpu), params_of(ours), strict=True):
                assert_same_memory(q.detach(), p.detach())
