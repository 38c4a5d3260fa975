"""The facts of the machine and of the program, without which nobody can judge a number or repeat it."""

from __future__ import annotations

import datetime
import hashlib
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .._capabilities import capabilities
from .._compiled import _sources

PACKAGE = Path(__file__).resolve().parent.parent


def machine(command: str) -> dict[str, Any]:
    """What a reader needs to judge the numbers or to repeat them."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": command,
        "commit": commit(),
        "sources": sources(),
        "cpu": cpu_model(),
        "cores": affinity,
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "memory_gib": memory_gib(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "fusedopt": capabilities(),
    }


def where(facts: Mapping[str, Any]) -> str:
    """The machine in half a line."""
    threads = f"{facts['threads']} thread{'s' * (facts['threads'] != 1)}"
    gpu = facts.get("gpu", {}).get("name")
    return f"{f'{gpu} beside ' if gpu else ''}{facts['cpu']}, {threads}, torch {facts['torch']}"


def work_of_others() -> float | None:
    """Seconds that the cores have worked for anybody but this process; None where the system does not say."""
    try:
        user, nice, system, _, _, *interrupts = map(int, Path("/proc/stat").read_text().partition("\n")[0].split()[1:9])
    except (OSError, ValueError):
        return None
    own = os.times()
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK") - own.user - own.system


def stamp_of(date: str) -> str:
    """An ISO date as file names have it."""
    return date.partition("+")[0].replace(":", "").replace("-", "")


def sources() -> str:
    """A digest of everything that is built and imported, which says what was measured where there is no git."""
    csrc = _sources()
    digest = hashlib.sha256()
    for root, paths in ((PACKAGE.parent, sorted(PACKAGE.rglob("*.py"))), (csrc.parent, sorted(csrc.rglob("*")))):
        for path in paths:
            if path.is_file():
                digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None


def commit() -> str | None:
    """The checked-out commit, with ``-dirty`` where the tree differs from it; None outside a git checkout."""
    if _sources().parent == PACKAGE:  # installed; the checkout around it, if there is one, is somebody else's
        return None
    arguments = ["git", "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty"]
    try:
        done = subprocess.run(arguments, cwd=PACKAGE, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def free_memory() -> int | None:
    """Bytes of main memory that new tensors may take, or None where the system does not say (it is Linux that does)."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None
