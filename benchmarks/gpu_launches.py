"""What a step launches, counted by torch.profiler.

Run as a script it counts in a process of its own and prints JSON: a profiler slows every later launch of its process.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

STEPS = 4
# How a trace calls what runs on the device; annotations and the host's calls have other categories.
ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")


def device_work(events: Iterable[dict[str, Any]]) -> dict[str, int]:
    """Kernels, copies and fills of a Chrome trace, by name."""
    return dict(Counter(str(event["name"]) for event in events if event.get("cat") in ON_DEVICE))


def count(suite_name: str) -> dict[str, int]:
    """Names and numbers of what ``STEPS`` steps of AdamW put on the device, in steady state."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    import fusedopt
    from fusedopt.bench.suites import SUITES

    suite = SUITES[suite_name]
    params = [torch.randn(shape, device="cuda", requires_grad=True) for shape in suite.shapes]
    for param in params:
        param.grad = torch.randn_like(param)
    groups: Any = [{"params": [param]} for param in params] if suite.group_each else params
    optimizer = fusedopt.AdamW(groups)

    def steps() -> dict[str, int]:
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            for _ in range(STEPS):
                optimizer.step()
            torch.cuda.synchronize()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json"
            profiler.export_chrome_trace(str(path))
            return device_work(json.loads(path.read_text())["traceEvents"])

    # The first run makes the states, and the profiler ready.
    steps()
    return steps()


def count_apart(suites: Sequence[str], seconds: float) -> dict[str, Any]:
    """``count`` of each suite in another process; only a ``reason`` where that fails."""
    command = [sys.executable, __file__, *suites]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"reason": f"no answer within {seconds:.0f} s"}
    if done.returncode:
        return {"reason": (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]}
    # A profiler may have written lines of its own before.
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if not all(found.values()):
        return {"reason": "the profiler saw nothing on the device"}
    return found


if __name__ == "__main__":
    print(json.dumps({name: count(name) for name in sys.argv[1:]}))
