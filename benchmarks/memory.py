"""Peak memory of a first ``step()``. Run as a script it measures in its own, still clean process and prints JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

MIB = 2**20


def status(field: str) -> int:
    """A memory field of this process in bytes: VmRSS is what is resident now, VmHWM the most it ever was."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no field {field}")


def reset_peak() -> None:
    """Let VmHWM start again from VmRSS (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def measure(suite_name: str, optimizer: str, library: str) -> dict[str, int]:
    """Bytes: the state, the peak of the first step above what was resident before it, and a later step's peak."""
    import torch

    from fusedopt.bench.baselines import BASELINES
    from fusedopt.bench.contest import Contest
    from fusedopt.bench.suites import SUITES

    contest = Contest(SUITES[suite_name], optimizer, ())

    def make(shapes: tuple[tuple[int, ...], ...]) -> torch.optim.Optimizer:
        params = [torch.ones(shape, requires_grad=True) for shape in shapes]
        for param in params:
            param.grad = torch.ones_like(param)
        return BASELINES[library].make(contest, params)

    # Thread stacks, lazily bound functions and modules imported at the first step belong to the process, not to a step.
    # Large enough that every thread takes part.
    small = make(((1 << 18,), (256,)))
    small.step()
    small.step()

    optimizer_ = make(contest.suite.shapes)
    reset_peak()
    before = status("VmRSS")
    optimizer_.step()
    first = status("VmHWM") - before
    state = sum(t.nbytes for s in optimizer_.state.values() for t in s.values() if isinstance(t, torch.Tensor))
    reset_peak()
    before = status("VmRSS")
    optimizer_.step()
    return {"state": state, "first_step_peak": first, "later_step_peak": status("VmHWM") - before}


def measure_apart(suite_name: str, optimizer: str, library: str) -> dict[str, Any]:
    """``measure`` in a process of its own; only a ``reason`` where that fails, as without Linux's counters."""
    command = [sys.executable, __file__, suite_name, optimizer, library]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"reason": (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]}
    result: dict[str, Any] = json.loads(done.stdout)
    return result


if __name__ == "__main__":
    print(json.dumps(measure(*sys.argv[1:4])))
