"""The clocks of a benchmark: a call on a CPU; on a GPU what the device, the host and a caller spend on it."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from .machine import free_memory
from .method import Contestant, Measure, call_time, nothing

# STEP: a call on the CPU, from beginning to end.
STEP = "step"
# DEVICE: from the first kernel of a call to the last, with the host out of the way. COLD: with nothing in the L2 cache.
# WALL: from an empty queue until the device is done. HOST: from an empty queue until the call returns.
DEVICE, COLD, WALL, HOST = "device", "device, cold L2", "wall", "host"
MODES = (DEVICE, COLD, WALL, HOST)
MIB = 2**20


class Clock(ABC):
    """Where the tensors are, and how a call on them is timed there."""

    device: torch.device
    modes: tuple[str, ...] = MODES

    @abstractmethod
    def synchronize(self) -> None: ...

    @abstractmethod
    def flush(self) -> None:
        """Evicts all from the caches that a step could find its data in."""

    @abstractmethod
    def device_time(self, contestant: Contestant, cold: bool = False) -> int: ...

    @abstractmethod
    def capture(self, call: Callable[[], object]) -> Callable[[], object]:
        """A graph of the call, to be replayed; the call itself is not carried out."""

    @abstractmethod
    def free_bytes(self) -> int | None:
        """Bytes that new tensors may take; None where nobody knows."""

    @abstractmethod
    def facts(self) -> dict[str, Any]: ...

    @abstractmethod
    def begin(self) -> None:
        """To be called before each measurement."""

    @abstractmethod
    def heat(self, seconds: float = 1.0) -> None:
        """Work until the device has left its idle clocks."""

    def wall_time(self, contestant: Contestant) -> int:
        self.synchronize()
        start = time.perf_counter_ns()
        contestant.call()
        self.synchronize()
        return time.perf_counter_ns() - start

    def host_time(self, contestant: Contestant) -> int:
        self.synchronize()
        return call_time(contestant)

    def measure(self, mode: str) -> Measure:
        return {
            STEP: call_time,
            DEVICE: self.device_time,
            COLD: lambda contestant: self.device_time(contestant, cold=True),
            WALL: self.wall_time,
            HOST: self.host_time,
        }[mode]


class Cuda(Clock):
    """A CUDA device.

    Device time is that between two events around the call. A kernel that spins keeps the device busy until the host has
    issued all of it, so that no launch is waited for in between; a sample for which that kernel was too short does not
    count and is taken again with a longer one.
    """

    SHORTEST, LONGEST = 2**18, 2**29  # cycles: about 0.15 ms and 0.3 s

    def __init__(self, index: int | None = None) -> None:
        if index is not None:
            torch.cuda.set_device(index)
        self.device = torch.device("cuda", torch.cuda.current_device())
        self.begin()
        size = max(256 * MIB, 4 * int(getattr(torch.cuda.get_device_properties(self.device), "L2_cache_size", 0)))
        self.written, self.read = (torch.randn(size // 4, device=self.device) for _ in range(2))
        self.start, self.end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def begin(self) -> None:
        self.cycles: dict[str, int] = {}

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def flush(self) -> None:
        """Evicts all from the L2 cache. What is read last has not to be written back while others are timed."""
        self.written.neg_()
        self.read.sum()

    def device_time(self, contestant: Contestant, cold: bool = False) -> int:
        cycles = self.cycles.get(contestant.name, self.SHORTEST)
        while cycles <= self.LONGEST:
            torch.cuda.synchronize()
            torch.cuda._sleep(cycles)
            if cold:
                self.flush()
            self.start.record()
            contestant.call()
            self.end.record()
            late = self.start.query()
            torch.cuda.synchronize()
            if not late:
                self.cycles[contestant.name] = cycles
                return round(self.start.elapsed_time(self.end) * 1e6)
            cycles *= 2
        raise RuntimeError(
            f"{contestant.name}: a call could not be issued while the device waited; it synchronizes, or it launches "
            "more kernels than the queue holds"
        )

    def capture(self, call: Callable[[], object]) -> Callable[[], object]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        return graph.replay

    def free_bytes(self) -> int:
        return torch.cuda.mem_get_info(self.device)[0]

    def heat(self, seconds: float = 1.0) -> None:
        deadline = time.perf_counter() + seconds
        while time.perf_counter() < deadline:
            self.flush()
            torch.cuda.synchronize()

    def facts(self) -> dict[str, Any]:
        properties = torch.cuda.get_device_properties(self.device)
        empty = [self.device_time(Contestant("nothing", nothing)) for _ in range(21)]
        return {
            "name": properties.name,
            "capability": "{}.{}".format(*torch.cuda.get_device_capability(self.device)),
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "multiprocessors": properties.multi_processor_count,
            "l2_mib": round(getattr(properties, "L2_cache_size", 0) / MIB, 1),
            "cuda": torch.version.cuda,
            "torch_git": torch.version.git_version,
            "driver": driver(),
            "nvidia_smi": nvidia_smi("clocks.sm,clocks.mem,clocks.max.sm,temperature.gpu,power.draw,power.limit"),
            # What two events with nothing between them read: it is in every device time.
            "empty_ns": sorted(empty)[len(empty) // 2],
        }


class Cpu(Clock):
    """The processor, on which a call that has returned is done."""

    modes: tuple[str, ...] = (STEP,)

    def __init__(self) -> None:
        self.device = torch.device("cpu")

    def flush(self) -> None:
        other_data().add_(1)

    def begin(self) -> None:
        pass

    def heat(self, seconds: float = 1.0) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def device_time(self, contestant: Contestant, cold: bool = False) -> int:
        return call_time(contestant)

    def capture(self, call: Callable[[], object]) -> Callable[[], object]:
        return call

    def free_bytes(self) -> int | None:
        return free_memory()

    def facts(self) -> dict[str, Any]:
        return {}


@cache
def other_data() -> torch.Tensor:
    """What other work has in the caches: 64 MiB, or twice the last level's size where that is more."""
    name = "SC_LEVEL3_CACHE_SIZE"
    level3 = os.sysconf(name) if name in getattr(os, "sysconf_names", ()) else 0
    return torch.zeros(max(64 * MIB, 2 * level3) // 4)


def nvidia_smi(fields: str) -> str | None:
    """What nvidia-smi says of the first device, or None where it cannot be asked."""
    program = shutil.which("nvidia-smi")
    if not program:
        return None
    command = [program, "--id=0", f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def driver() -> str | None:
    """The driver's version; without nvidia-smi the CUDA version that it supports, as 13000."""
    version = nvidia_smi("driver_version")
    supported = getattr(torch._C, "_cuda_getDriverVersion", None)
    return version or (f"CUDA {supported()}" if supported else None)
