"""Order between streams, the host and graphs: what the emulator sees when streams run behind the host, in any order."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from backends import Emulated, assert_same_memory, spread
from cases import ONE_PER_OPTIMIZER, Case
from support import assert_identical
from torch.nn import Parameter
from twins import Twins, simple

import fusedopt
from fusedopt._core import precision

MAIN, OTHER = 5, 6
SEEDS = range(1, 5)
every_seed = pytest.mark.parametrize("seed", SEEDS)


class Run:
    """Adam over some params on the device, and over equal ones on the CPU."""

    def __init__(self, watched: Emulated, seed: int, **options: Any) -> None:
        self.watched, self.control = watched, watched.control
        self.control.defer(seed)
        sizes = (7, 3000, 64)
        self.cpu_params = [Parameter(spread(n)) for n in sizes]
        with watched.stream(MAIN):
            self.params = [Parameter(p.detach().clone()) for p in self.cpu_params]
            for p, q in zip(self.cpu_params, self.params, strict=True):
                p.grad = spread(*p.shape)
                q.grad = p.grad.clone()
        self.cpu = fusedopt.Adam(self.cpu_params, **options)
        self.ours: Any = watched.adopt(fusedopt.Adam(self.params, **options))

    def step(self, stream: int = MAIN) -> None:
        with self.watched.stream(stream):
            self.ours.step()
        self.cpu.step()

    def check(self) -> None:
        """All has been done in an order that was promised, to the CPU's bits."""
        assert self.control.drain() == ""
        for p, q in zip(self.cpu_params, self.params, strict=True):
            assert_same_memory(q.detach(), p.detach())


@pytest.fixture(name="watched")
def watched_fixture() -> Iterator[Emulated]:
    backend = Emulated(watched=True)
    yield backend
    backend.control.reset()


@every_seed
def test_steps_need_no_waiting(watched: Emulated, seed: int) -> None:
    """The host is free to run ahead: what a step sends is in its launches."""
    run = Run(watched, seed, lr=0.01, fused=True)
    for i in range(6):
        for optimizer in (run.cpu, run.ours):
            optimizer.param_groups[0]["lr"] = 0.01 * (i + 1)
        run.step()
    run.check()


@every_seed
@pytest.mark.parametrize("waits", [True, False])
def test_steps_on_two_streams(watched: Emulated, seed: int, waits: bool) -> None:
    run = Run(watched, seed, fused=True)
    for i in range(4):
        now, before = (MAIN, OTHER)[i % 2], (OTHER, MAIN)[i % 2]
        if waits:
            run.control.wait_stream(now, before)
        run.step(now)
    if waits:
        run.check()
    else:
        assert "nothing orders the two" in run.control.drain()


@pytest.mark.parametrize("case", [*ONE_PER_OPTIMIZER, Case("adafactor", "Adafactor"), Case("clipped", "Adam")], ids=str)
def test_blocks_of_a_kernel_share_nothing(watched: Emulated, case: Case) -> None:
    """Nothing orders them on a device, whichever comes first here."""
    clips = {"max_grad_norm": 0.5} if case.name == "clipped" else {}
    with watched.stream(MAIN):
        # Of 18 chunks, which are three blocks.
        twins = Twins(watched, simple(case, **clips), [spread(9000), spread(130, 70)])
        # The first step makes states, for which the host asks what it clips to, and that torch does not wait for here.
        twins.step()
        watched.control.defer(1)
        for _ in range(2):
            twins.give()
            twins.step_cpu()
            twins.ours.step()
            assert watched.control.drain() == ""
            for ours, cpu in zip(twins.params, twins.cpu_params, strict=True):
                assert_identical(ours, cpu)


@every_seed
def test_an_optimizer_may_go_while_its_step_runs(watched: Emulated, seed: int) -> None:
    """What its kernels use belongs to their stream: the next owner comes after them."""
    run = Run(watched, seed, fused=True)
    with watched.stream(MAIN):
        for optimizer in (run.cpu, run.ours):
            optimizer.grad_scale, optimizer.found_inf = torch.tensor(2.0), torch.tensor(0.0)
    for _ in range(3):
        run.step()
    run.ours = None
    gc.collect()
    run.check()


@every_seed
@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "scaled"])
def test_a_graph_outlives_its_optimizer(watched: Emulated, seed: int, scaled: bool) -> None:
    """As with torch's, params and states have to be kept, and nothing else."""
    run = Run(watched, seed, capturable=True)
    run.step()
    if scaled:
        with watched.stream(MAIN):
            for optimizer in (run.cpu, run.ours):
                optimizer.grad_scale, optimizer.found_inf = torch.tensor(2.0), torch.tensor(0.0)
        numbers = (run.ours.grad_scale, run.ours.found_inf)
        run.step()
    replay: Any = watched.capture(run.ours.step)
    run.check()
    states = [dict(run.ours.state[p]) for p in run.params]
    run.ours = None
    gc.collect()
    for _ in range(2):
        replay(MAIN)
        run.cpu.step()
    run.check()
    assert len(states) == 3
    assert not scaled or numbers


@every_seed
def test_a_table_goes_with_its_graph(watched: Emulated, seed: int) -> None:
    run = Run(watched, seed, capturable=True)
    run.step()
    before = []
    for _ in range(5):
        replay: Any = watched.capture(run.ours.step)
        replay(MAIN)
        run.cpu.step()
        run.check()
        before.append(run.control.bytes_allocated())
    assert before[-1] == before[1]
    # A refresh meets with none that is gone.
    del replay
    run.ours.refresh_hyperparameters()
    run.step()
    run.check()


@every_seed
@pytest.mark.parametrize("waits", ["both", "before", "after", "same stream"])
def test_a_refresh_is_an_operation_of_its_stream(watched: Emulated, seed: int, waits: str) -> None:
    run = Run(watched, seed, capturable=True)
    run.step()
    replay: Any = watched.capture(run.ours.step)
    run.control.drain()
    refreshed_on = OTHER if waits == "same stream" else MAIN
    for i in range(3):
        for optimizer in (run.cpu, run.ours):
            optimizer.param_groups[0]["lr"] = 0.01 * (i + 1)
        if waits in ("both", "before"):
            run.control.wait_stream(MAIN, OTHER)
        with watched.stream(refreshed_on):
            run.ours.refresh_hyperparameters()
        if waits in ("both", "after"):
            run.control.wait_stream(OTHER, MAIN)
        replay(OTHER)
        run.cpu.step()
    if waits in ("both", "same stream"):
        run.check()
    else:
        assert "nothing orders the two" in run.control.drain()


def test_copies_are_refused_while_a_graph_goes_without(watched: Emulated) -> None:
    run = Run(watched, 1, capturable=True)
    run.step()
    replay: Any = watched.capture(run.ours.step)
    run.control.drain()
    copies = {p: torch.empty_like(p, dtype=torch.bfloat16) for p in run.params}
    with pytest.raises(RuntimeError, match=r"a CUDA graph has captured a step .* call copy_params_to\(\) before"):
        run.ours.copy_params_to(copies)
    replay(MAIN)
    run.cpu.step()
    run.check()
    del replay
    run.ours.copy_params_to(copies)
    watched.adopt(run.ours)
    run.step()
    run.check()
    for p, copy in copies.items():
        assert torch.equal(copy, p.detach().bfloat16())


def test_other_threads_run_while_a_capture_waits(watched: Emulated) -> None:
    run = Run(watched, 1, capturable=True)
    run.step()
    waits, held = run.control.synchronizations(), run.control.waits_with_gil()
    watched.capture(run.ours.step)
    assert run.control.synchronizations() > waits
    assert run.control.waits_with_gil() == held


# States on the host.


def offloaded(watched: Emulated, seed: int, monkeypatch: pytest.MonkeyPatch) -> Run:
    """In buffers that hold a third of the largest param."""
    monkeypatch.setattr(precision, "OFFLOAD_BYTES", 8400)
    return Run(watched, seed, offload="cpu")


@every_seed
def test_copies_keep_their_place_among_kernels(watched: Emulated, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients that a kernel has made before are what is copied, and kernels after it see what comes back."""
    run = offloaded(watched, seed, monkeypatch)
    cpu, there = fusedopt.Adam(run.cpu_params), watched.adopt(fusedopt.Adam(run.params))
    for _ in range(4):
        fusedopt.clip_grad_norm_(run.cpu_params, 0.5)
        with watched.stream(MAIN), watched.at_work():
            fusedopt.clip_grad_norm_(run.params, 0.5)
        run.step()
        cpu.step()
        with watched.stream(MAIN):
            there.step()
        for p, q in zip(run.cpu_params, run.params, strict=True):
            assert_same_memory(run.ours.state[q]["exp_avg"], run.cpu.state[p]["exp_avg"])
    run.check()


@every_seed
def test_copies_on_two_streams(watched: Emulated, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    run = offloaded(watched, seed, monkeypatch)
    for i in range(4):
        now, before = (MAIN, OTHER)[i % 2], (OTHER, MAIN)[i % 2]
        run.control.wait_stream(now, before)
        run.step(now)
    run.check()


@every_seed
def test_an_optimizer_may_go_while_its_params_come_back(
    watched: Emulated, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    gc.collect()
    before = watched.control.pinned_bytes()
    run = offloaded(watched, seed, monkeypatch)
    run.step()
    run.ours = None
    gc.collect()
    assert run.control.pinned_bytes() == before
    run.check()
