"""Steps that the CUDA engine refuses or cannot finish: they say why and write nothing, and the next ones are right."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from backends import (  # noqa: F401
    ROOT,
    Backend,
    Cuda,
    Emulated,
    backend_fixture,
    counter_flags,
    counters_of,
    cuda_fixture,
    emulated_fixture,
    spread,
)
from cases import CASES, ONE_PER_OPTIMIZER, Case
from tiers import thinned
from twins import SIZES, Twins, assert_untouched, copies, simple, trained_twins

every_case = pytest.mark.parametrize("case", CASES, ids=str)
one_per_optimizer = pytest.mark.parametrize("case", ONE_PER_OPTIMIZER, ids=str)
# But for NovoGrad, whose are on the device from the first step on.
COUNTING = [c for c in ONE_PER_OPTIMIZER if counters_of(c) and c.name != "novograd"]
numbers_anywhere = pytest.mark.parametrize("there", [False, True], ids=["numbers-on-host", "numbers-on-device"])


@contextmanager
def refused(optimizer: Any, message: str) -> Iterator[None]:
    """A RuntimeError of these words comes, and params and states are as they were."""
    before, keys = copies(optimizer), {p: list(state) for p, state in optimizer.state.items()}
    with pytest.raises(RuntimeError, match=message):
        yield
    assert_untouched(optimizer, before)
    assert {p: list(state) for p, state in optimizer.state.items()} == keys


@pytest.mark.parametrize("case", COUNTING, ids=str)
def test_capture_without_capturable(backend: Backend, case: Case) -> None:
    if "capturable" not in counter_flags(case):
        pytest.skip("it knows no such flag")
    twins = trained_twins(backend, case, capturable=False)
    torchs_words = rf"Attempting CUDA graph capture of step\(\) for an instance of {case.optimizer} but"
    with refused(twins.ours, torchs_words):
        backend.capture(twins.ours.step)
    twins.train()
    # One group is enough.
    twins.edit(lambda optimizer, params: optimizer.param_groups[0].update(**counter_flags(case)))
    twins.train()
    twins.edit(lambda optimizer, params: optimizer.param_groups.append({**optimizer.param_groups[0]}))
    for optimizer, params in twins.both():
        optimizer.param_groups[0]["params"], optimizer.param_groups[1]["params"] = params[:3], params[3:]
        optimizer.param_groups[1]["capturable"] = False
    with refused(twins.ours, torchs_words):
        backend.capture(twins.ours.step)
    twins.train()


@one_per_optimizer
def test_first_step_in_a_capture(backend: Backend, case: Case) -> None:
    twins = Twins(backend, simple(case, **counter_flags(case)), [spread(*size) for size in SIZES])
    if twins.ours.state:
        pytest.skip("its states are made with it")
    twins.give()
    with refused(twins.ours, "param 0 of group 0: it has no state yet.* take one step before the capture"):
        backend.capture(twins.ours.step)
    assert len(twins.ours.state) == 0
    # A param that joins late is refused as well.
    twins.step([spread(*size) if i != 4 else None for i, size in enumerate(SIZES)])
    twins.give()
    with refused(twins.ours, "param 4 of group 0: it has no state yet"):
        backend.capture(twins.ours.step)
    twins.train()
    backend.capture(twins.ours.step)


@pytest.mark.parametrize("case", COUNTING, ids=str)
def test_counters_on_the_host_in_a_capture(backend: Backend, case: Case) -> None:
    backend.numbers_on_device(False)
    twins = trained_twins(backend, case, there=False)
    twins.edit(lambda optimizer, params: optimizer.param_groups[0].update(**counter_flags(case)))
    with refused(twins.ours, "its state 'step' is on the CPU, where a graph cannot advance it; take one step before"):
        backend.capture(twins.ours.step)
    # That one step moves them.
    twins.train(1)
    backend.numbers_on_device(True)
    backend.capture(twins.ours.step)


@one_per_optimizer
def test_a_capture_that_has_failed(emulated: Emulated, case: Case) -> None:
    """It is no capture any more, and no time for an eager step."""
    twins = trained_twins(emulated, case)
    stream = 7
    twins.give()
    with emulated.stream(stream):
        emulated.control.begin_capture(stream)
        assert not emulated.control.synchronize(stream)
        with refused(twins.ours, "the capture that this step is part of has failed at something before it"):
            twins.ours.step()
        assert emulated.control.end_capture(stream) == -1
        twins.step_cpu()
        twins.ours.step()
    twins.check()


@thinned("a launch fails before any rule runs")
@numbers_anywhere
@every_case
def test_an_earlier_kernels_error(emulated: Emulated, case: Case, there: bool) -> None:
    emulated.numbers_on_device(there)
    for steps in (0, 1, 3):
        twins = Twins(emulated, simple(case), [spread(*size) for size in SIZES])
        for _ in range(steps):
            twins.train(1)
        twins.give()
        twins.set_lr(0.3)
        emulated.control.inject_error(700)
        for _ in range(2):
            with refused(twins.ours, "an earlier CUDA kernel or call failed.*cudaErrorIllegalAddress"):
                twins.ours.step()
        emulated.control.clear_error()
        assert len(twins.ours.state) == len(twins.cpu.state)
        twins.train()


@contextmanager
def no_launch(emulated: Emulated) -> Iterator[None]:
    """Every kernel launch fails, after the engine has found the device usable."""
    emulated.control.set_kernel_image(False)
    try:
        yield
    finally:
        emulated.control.set_kernel_image(True)
        emulated.control.clear_error()


@thinned("a launch fails before any rule runs")
@numbers_anywhere
@every_case
def test_a_failed_launch(emulated: Emulated, case: Case, there: bool) -> None:
    """What the step would have told the device has to be told by the next one: here a learning rate and gradients."""
    twins = trained_twins(emulated, case, there)
    for step in range(2):
        twins.give()
        twins.set_lr(0.1 * (step + 1))
        with no_launch(emulated), refused(twins.ours, "a kernel of this step could not be launched: cudaErrorNoKernel"):
            twins.ours.step()
        twins.step_cpu()
        twins.ours.step()
        twins.check()
        twins.train(2)


@numbers_anywhere
@one_per_optimizer
def test_a_failed_launch_of_the_first_step(emulated: Emulated, case: Case, there: bool) -> None:
    trained_twins(emulated, case, there)  # by now the device is known to be usable
    twins = Twins(emulated, simple(case), [spread(*size) for size in SIZES])
    twins.give()
    with no_launch(emulated), refused(twins.ours, "a kernel of this step could not be launched"):
        twins.ours.step()
    twins.step_cpu()
    twins.ours.step()
    twins.check()
    twins.train()


@one_per_optimizer
def test_a_failed_launch_in_a_capture(emulated: Emulated, case: Case) -> None:
    twins = trained_twins(emulated, case)
    with no_launch(emulated), refused(twins.ours, "could not be launched"):
        emulated.capture(twins.ours.step)
    twins.train()
    replay = emulated.capture(twins.ours.step)
    twins.set_lr(0.3)
    twins.ours.refresh_hyperparameters()
    replay()
    twins.step_cpu()
    twins.check()


@thinned("a launch fails before any rule runs")
@pytest.mark.parametrize("seed", range(4))
@one_per_optimizer
def test_a_failed_launch_in_a_refresh(emulated: Emulated, case: Case, seed: int) -> None:
    """What it would have sent is sent by the next one, unless that has other numbers."""
    twins = trained_twins(emulated, case)
    replay = emulated.capture(twins.ours.step)
    emulated.control.set_seed(seed)
    for failed, sent in ((0.3, 0.3), (0.5, 0.3), (0.1, 0.2)):
        twins.set_lr(failed)
        with no_launch(emulated), refused(twins.ours, "could not be launched"):
            twins.ours.refresh_hyperparameters()
        twins.set_lr(sent)
        twins.ours.refresh_hyperparameters()
        replay()
        twins.step_cpu()
        twins.check()


UNSERVED = """
{setting}
# An error that passes is not taken for the device's.
for n in range(1, {calls} + 1):
    control.fail_call(n)
    assert engine.cuda_obstacle(0) == "" and not control.failure_pending()
warnings.simplefilter("always")
optimizers = [fusedopt.AdamW, fusedopt.Adafactor, fusedopt.Muon, fusedopt.LBFGS]
for optimizer in optimizers if {first} == 0 else optimizers[{first}:]:
    steps = []
    for cls in (optimizer, getattr(torch.optim, optimizer.__name__)):
        torch.manual_seed(0)
        param = torch.nn.Parameter(torch.randn(4, 3))
        def closure():
            param.grad = param.detach() - 1
            return 1.0
        o = cls([param], lr=0.1)
        for _ in range(3):
            o.step(closure)
        steps.append(param)
    assert torch.equal(*steps)
with warnings.catch_warnings():
    grads = [torch.nn.Parameter(torch.ones(4))]
    grads[0].grad = torch.ones(4)
    assert fusedopt.clip_grad_norm_(grads, 1.0) == 2 and grads[0].grad.norm() < 1.0001
param.grad = torch.ones_like(param)
for cls, kwargs in ((fusedopt.Lion, dict()), (fusedopt.AdamW, dict(ema_decay=0.9))):
    before = param.detach().clone()
    try:
        cls([param], **kwargs).step()
    except RuntimeError as error:
        print(type(error).__name__, cls.__name__)
    assert torch.equal(param, before)
torch.cuda.is_available, torch.cuda.current_device = lambda: True, lambda: 0
print(fusedopt.capabilities()["cuda"]["reason"])
control.reset()
assert "torch's own" in fusedopt.capabilities()["cuda"]["reason"]
"""
# What each begins with, once for all.
FORKED = """
import os
import sys
import warnings
import torch
from build import build
engine, control = build()
sys.modules["fusedopt._C"] = engine
import fusedopt
for name, body in {bodies}.items():
    if os.fork() == 0:
        for stream, number in (("out", 1), ("err", 2)):
            os.dup2(os.open(f"{{name}}.{{stream}}", os.O_WRONLY | os.O_CREAT), number)
        exec(compile(body, "<string>", "exec"))
        sys.stdout.flush()
        os._exit(0)
    assert os.wait()[1] == 0, open(f"{{name}}.err").read()
"""
NO_IMAGE = (
    "device cuda:0 has compute capability 9.0, and this build of fusedopt holds emulated; build it again with "
    "TORCH_CUDA_ARCH_LIST=9.0"
)


UNSERVED_BY = {
    "no-image": ("control.set_kernel_image(False)", 4, 0, NO_IMAGE),
    "no-image-lbfgs": ("control.set_kernel_image(False)", 4, 3, NO_IMAGE),
    "old-driver": (
        "control.set_driver_version(12090)",
        1,
        0,
        "the NVIDIA driver is one of CUDA 12.9, and this build of fusedopt needs one of CUDA 13.0; update the "
        "driver, or build fusedopt with a toolkit of the driver's CUDA",
    ),
}


@pytest.fixture(scope="module")
def unserved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what each of them prints, in a process of its own, for a device is looked at once."""
    folder = tmp_path_factory.mktemp("unserved")
    path = [str(ROOT / "tests"), str(ROOT / "tests" / "cuda_emulator"), str(ROOT)]
    bodies = {
        name: UNSERVED.format(setting=setting, calls=calls, first=first)
        for name, (setting, calls, first, _) in UNSERVED_BY.items()
    }
    code = f"import sys; sys.path[:0] = {path}\n{FORKED.format(bodies=bodies)}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("name", UNSERVED_BY)
def test_a_device_that_the_kernels_cannot_run_on(unserved: Path, name: str) -> None:
    """torch steps its params; one warning says why."""
    told = UNSERVED_BY[name][-1]
    assert (unserved / f"{name}.out").read_text().splitlines() == [
        "RuntimeError Lion",
        "RuntimeError AdamW",
        f"CUDA tensors are stepped by torch's own code: {told}",
    ]
    warned = [line for line in (unserved / f"{name}.err").read_text().splitlines() if "Warning" in line]
    told = f"CUDA tensors are stepped by torch's own code, and not by fusedopt's kernels: {told}"
    assert len(warned) == 1
    assert warned[0].startswith("<string>:")
    assert warned[0].endswith(f"UserWarning: {told}")


@one_per_optimizer
def test_a_refused_param(backend: Backend, case: Case) -> None:
    """What was found of those before it is found again: here gradients at new addresses."""
    twins = trained_twins(backend, case)
    state = twins.ours.state[twins.params[-1]]
    name = next(key for key in state if key != "step")
    for _ in range(2):
        twins.give()
        kept, state[name] = state[name], torch.ones(2, device=backend.device)
        with refused(twins.ours, f"param {len(SIZES) - 1} of group 0: its state '{name}' has shape"):
            twins.ours.step()
        state[name] = kept
        twins.step_cpu()
        twins.ours.step()
        twins.check()


def test_state_on_another_device(cuda: Cuda) -> None:
    for case in ONE_PER_OPTIMIZER:
        twins = trained_twins(cuda, case)
        state = twins.ours.state[twins.params[4]]
        name = next(key for key in state if key != "step")
        there = state[name]
        state[name] = there.cpu()
        words = f"param 4 of group 0: its state '{name}' is not a dense tensor on cuda:0 but on cpu"
        with refused(twins.ours, words):
            twins.ours.step()
        state[name] = there
        twins.train()


def test_gradient_on_another_device(cuda: Cuda) -> None:
    for case in ONE_PER_OPTIMIZER:
        twins = trained_twins(cuda, case)
        param = twins.params[4]
        there = param.data
        param.data = there.cpu()
        with refused(twins.ours, "param 4 of group 0: its gradient is on cuda:0, the param on cpu; move one"):
            twins.ours.step()
        param.data = there
        twins.train()
