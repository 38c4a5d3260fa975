"""Where the CUDA engine's tests run: on the emulator and on a GPU, each of which answers what the other does."""

from __future__ import annotations

import gc
import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import swap
import torch
from cases import Case
from torch import Tensor
from torch.autograd.profiler import profile

import fusedopt
from fusedopt import _C

if _C.cuda_built_for() == "emulated":
    pytest.skip("there is no CPU engine to compare with under --cuda-emulator", allow_module_level=True)

ROOT = Path(__file__).resolve().parent.parent
NEEDS_GPU = "needs a GPU and a build with the CUDA engine"


def gpu() -> bool:
    return torch.cuda.is_available() and bool(fusedopt.capabilities()["cuda"]["built"])


def constant(name: str) -> int:
    """A constant of csrc/step.h or csrc/cuda/table.h."""
    text = "".join((ROOT / "csrc" / file).read_text() for file in ("step.h", "cuda/table.h"))
    found = re.search(rf"\b{name} = (\d+);", text)
    assert found, name
    return int(found.group(1))


CHUNK = constant("kChunk")


def memory(tensor: Tensor) -> Tensor:
    """All elements of a tensor's storage, also those that the tensor has no part in."""
    count = tensor.untyped_storage().nbytes() // tensor.element_size()
    return tensor.detach().as_strided((count,), (1,), 0)


def assert_same_memory(actual: Tensor, expected: Tensor) -> None:
    """Equal storages, bit by bit; NaNs are alike, for processors differ in what they put into them."""
    same = (actual.dtype, actual.shape, actual.stride(), actual.storage_offset())
    assert same == (expected.dtype, expected.shape, expected.stride(), expected.storage_offset())
    raw = []
    for tensor in (actual, expected):
        numbers = memory(tensor).cpu()
        numbers = torch.view_as_real(numbers) if numbers.is_complex() else numbers
        raw.append(torch.where(numbers.isnan(), torch.nan, numbers).contiguous().view(torch.uint8))
    assert torch.equal(*raw), f"bits differ:\n{actual}\n{expected}"


def spread(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random numbers over many orders of magnitude: rounding differs in most of their bits."""
    real = dtype.to_real() if dtype.is_complex else dtype
    numbers = torch.randn(size, dtype=torch.float64) * torch.exp2(4 * torch.randn(size, dtype=torch.float64))
    if dtype.is_complex:
        return torch.complex(numbers.to(real), spread(*size, dtype=real))
    return numbers.to(dtype)


def counter_flags(case: Case, on_device: bool = True) -> dict[str, Any]:
    """What it takes for counters to be on a GPU: whichever of two words the constructor knows."""
    known = inspect.signature(getattr(fusedopt, case.optimizer)).parameters
    if not on_device:
        return {}
    # A group that knows of capturable refuses a capture without it, counters or none.
    return {"capturable": True} if "capturable" in known else {"fused": True} if counters_of(case) else {}


def counters_of(case: Case) -> list[str]:
    """The per-param numbers that a case's state holds beside tensors."""
    return list(_C.rules()[getattr(fusedopt, case.optimizer)._rule]["counters"])


def usual_launches(optimizer: Any) -> int:
    """Of a step in steady state: counters, the sums over whole tensors that some rules have, the update."""
    measures = _C.rules()[optimizer._rule]["measures"]
    cautious = any(measures) and any(group.get("caution") for group in optimizer.param_groups)
    return 4 + _C.joint(optimizer._rule) if all(measures) or cautious else 2


class Backend:
    """What both have in common: an engine beside the CPU's, and its device."""

    name: str
    device: str
    numbers_there = True

    def numbers_on_device(self, there: bool) -> None:
        """Where `number` puts its tensors; emulated, also where counters count as being."""
        self.numbers_there = there

    def number(self, value: float, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.tensor(value, dtype=dtype, device=self.device if self.numbers_there else "cpu")

    def place(self, tensor: Tensor) -> Tensor:
        """A copy on the device that has the same place in a copy of the same storage."""
        base = memory(tensor).to(self.device, copy=True)
        return base.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())

    def at_work(self) -> AbstractContextManager[None]:
        """What the package does meanwhile, this engine does for it."""
        return nullcontext()

    def adopt(self, optimizer: Any) -> Any:
        """The optimizer, which this engine steps from now on."""
        return optimizer

    def scaler(self, **kwargs: Any) -> torch.amp.GradScaler:
        return torch.amp.GradScaler(self.device, **kwargs)

    @contextmanager
    def stream(self, number: int) -> Iterator[None]:
        raise NotImplementedError

    def capture(self, fn: Callable[[], Any]) -> Callable[[], None]:
        """Puts what `fn` launches into a graph; the result replays it."""
        raise NotImplementedError

    def launches(self, fn: Callable[[], Any]) -> int:
        """How many kernels of ours `fn` puts on the device."""
        raise NotImplementedError

    def waits(self) -> int:
        """How often we have waited for the device, where that can be told."""
        return 0

    def beside_launches(self, fn: Callable[[], Any]) -> list[str]:
        """What `fn` does that a step in steady state must not: waits, allocations, operations of torch."""
        gc.disable()  # what others have left must not be cleared away meanwhile: it may wait, too
        before = self.waits()
        with profile() as prof:
            fn()
        waited = self.waits() - before
        gc.enable()
        # A conversion that finds nothing to convert is no operation.
        seen = [e.name for e in prof.function_events if e.name.startswith("aten::") and e.name != "aten::to"]
        return seen + ["synchronize"] * waited


@cache
def _emulator(watched: bool = False) -> tuple[Any, Any]:
    from build import build

    return build(watched)


class Emulated(Backend):
    """CPU tensors stepped by the CUDA engine as tests/cuda_emulator runs it."""

    name = "emulated"
    device = "cpu"

    def __init__(self, watched: bool = False) -> None:
        self.engine, self.control = _emulator(watched)
        # Nothing here is large, and a second thread that has to be waited for takes longer than the work.
        torch.set_num_threads(1)
        self.control.reset()

    def numbers_on_device(self, there: bool) -> None:
        super().numbers_on_device(there)
        self.control.numbers_on_device(there)

    def at_work(self) -> AbstractContextManager[None]:
        return swap.at_work(self.engine)

    def adopt(self, optimizer: Any) -> Any:
        return swap.adopt(optimizer, self.engine, self.control)

    @contextmanager
    def stream(self, number: int) -> Iterator[None]:
        self.control.use_stream(number)
        try:
            yield
        finally:
            self.control.use_stream(0)

    def capture(self, fn: Callable[[], Any]) -> Callable[[], None]:
        stream = 1000
        with self.stream(stream):
            self.control.begin_capture(stream)
            try:
                fn()
            finally:
                graph = self.control.end_capture(stream)
        assert graph >= 0, "something has invalidated the capture"
        return swap.EmulatedGraph(self.control, graph)

    def launches(self, fn: Callable[[], Any]) -> int:
        before = self.control.launches()
        fn()
        return int(self.control.launches() - before)

    def waits(self) -> int:
        return int(self.control.synchronizations())


class Cuda(Backend):
    """CUDA tensors on a GPU."""

    name = "cuda"
    device = "cuda"

    def __init__(self) -> None:
        self.streams: dict[int, torch.cuda.Stream] = {}

    @contextmanager
    def stream(self, number: int) -> Iterator[None]:
        stream = self.streams.setdefault(number, torch.cuda.Stream())
        before = torch.cuda.current_stream()
        stream.wait_stream(before)
        with torch.cuda.stream(stream):
            yield
        before.wait_stream(stream)

    def capture(self, fn: Callable[[], Any]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            fn()
        return graph.replay

    def launches(self, fn: Callable[[], Any]) -> int:
        torch.cuda.synchronize()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as prof:
            fn()
            torch.cuda.synchronize()
        there = [e for e in prof.events() if e.device_type == torch.autograd.DeviceType.CUDA]
        return sum("fusedopt_cuda::" in e.name for e in there)

    def beside_launches(self, fn: Callable[[], Any]) -> list[str]:
        def allocations() -> int:
            return int(torch.cuda.memory_stats()["allocation.all.allocated"])

        torch.cuda.synchronize()
        before = allocations()
        torch.cuda.set_sync_debug_mode("error")
        try:
            seen = super().beside_launches(fn)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return seen + ["allocate"] * (allocations() - before)


# Some thousand tests that only said what is missing would take a minute.
@pytest.fixture(params=["emulated", "cuda"] if gpu() else ["emulated"], name="backend")
def backend_fixture(request: pytest.FixtureRequest) -> Iterator[Backend]:
    backend: Backend = Emulated() if request.param == "emulated" else Cuda()
    yield backend
    if isinstance(backend, Emulated):
        backend.control.reset()


@pytest.fixture(name="emulated")
def emulated_fixture() -> Iterator[Emulated]:
    backend = Emulated()
    yield backend
    backend.control.reset()


@pytest.fixture(name="cuda")
def cuda_fixture() -> Cuda:
    if not gpu():
        pytest.skip(NEEDS_GPU)
    return Cuda()
