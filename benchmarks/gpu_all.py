"""Everything that needs a GPU, in one command: build, test, check memory accesses, measure, look into the kernels.

python benchmarks/gpu_all.py [--out FOLDER] [--seconds N]

Each part is a process with a time limit of its own, so that one that fails or hangs costs the others nothing.
"""

from __future__ import annotations

import argparse
import datetime
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOTAL = 450.0
# After so long a part that was asked to end is killed.
GRACE = 8.0
# Longer logs lose their middle.
LOG_HEAD, LOG_TAIL = 2**20, 7 * 2**20

DEVICE = """
import torch
print("torch", torch.__version__, "CUDA", torch.version.cuda)
if not torch.cuda.is_available(): raise SystemExit("torch finds no GPU")
print(torch.cuda.get_device_properties(0))
print("capability {}.{}".format(*torch.cuda.get_device_capability(0)))
"""

BUILT = """
import fusedopt
print(fusedopt.capabilities()["cuda"])
"""

# What a bandwidth-bound kernel is judged by: memory, caches, sectors a request, occupancy and registers, issue slots.
SECTIONS = ("SpeedOfLight", "MemoryWorkloadAnalysis", "LaunchStats", "Occupancy", "SchedulerStats")
METRICS = (
    "gpu__time_duration.sum",
    "dram__bytes_read.sum",
    "dram__bytes_write.sum",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "lts__t_sectors_op_read.sum",
    "lts__t_sectors_op_write.sum",
    "lts__t_sector_hit_rate.pct",
    "l1tex__t_sector_hit_rate.pct",
    "l1tex__t_requests_pipe_lsu_mem_global_op_ld.sum",
    "l1tex__t_sectors_pipe_lsu_mem_global_op_ld.sum",
    "l1tex__t_requests_pipe_lsu_mem_global_op_st.sum",
    "l1tex__t_sectors_pipe_lsu_mem_global_op_st.sum",
    "sm__warps_active.avg.pct_of_peak_sustained_active",
    "smsp__issue_active.avg.pct_of_peak_sustained_active",
    "launch__registers_per_thread",
)


@dataclass(frozen=True)
class Part:
    """``seconds`` at most, of which ``least`` are kept for it while earlier parts run; ``{seconds}`` in the command
    becomes what it has, less some for ending. Its output must hold ``wants``; the last ``show`` lines are printed."""

    name: str
    command: Sequence[str]
    seconds: float
    least: float
    log: str
    env: Mapping[str, str] = field(default_factory=dict)
    wants: str = ""
    show: int = 0


@dataclass(frozen=True)
class Outcome:
    name: str
    verdict: str  # "ok", or what went wrong
    seconds: float


class Teller:
    """Prints, and keeps what it prints in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.write_text("")

    def __call__(self, line: str) -> None:
        print(line, flush=True)
        with self.path.open("a") as file:
            file.write(line + "\n")


def stop(process: subprocess.Popen[bytes], grace: float) -> None:
    """End the processes of a part, which are a group of their own: first politely, then whatever is left."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
        except ProcessLookupError:
            return
        try:
            process.wait(grace)
        except subprocess.TimeoutExpired:
            continue


def run_part(part: Part, out: Path, limit: float, grace: float = GRACE) -> tuple[Outcome, list[str]]:
    """The outcome and the lines that the part wrote."""
    began = time.monotonic()
    log = out / part.log
    command = [word.replace("{seconds}", str(max(1, int(limit - 12)))) for word in part.command]
    # An extension built in place is found from the root of the repository.
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    env = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **part.env}
    verdict = ""
    with log.open("ab") as file:
        file.write(f"== {part.name}: {shlex.join(command)}\n".encode())
        file.flush()
        before = file.tell()
        try:
            process = subprocess.Popen(
                command, cwd=ROOT, env=env, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )
        except OSError as error:
            return Outcome(part.name, f"failed: {command[0]}: {error.strerror}", time.monotonic() - began), []
        try:
            status = process.wait(limit)
            if status:
                verdict = f"failed: exit status {status}"
        except subprocess.TimeoutExpired:
            verdict = f"failed: not done after {limit:.0f} s"
            stop(process, grace)
        except BaseException:
            stop(process, grace)
            raise
    with log.open("rb") as file:
        file.seek(before)
        written = file.read().decode(errors="replace")
    if not verdict and part.wants not in written:
        verdict = f"failed: its output lacks {part.wants!r}"
    return Outcome(part.name, verdict or "ok", time.monotonic() - began), written.splitlines()


def shorter(line: str, length: int = 150) -> str:
    return line if len(line) <= length else f"{line[:length]}..."


def shorten(log: Path) -> None:
    if log.exists() and log.stat().st_size > LOG_HEAD + LOG_TAIL:
        content = log.read_bytes()
        log.write_bytes(content[:LOG_HEAD] + b"\n[... shortened ...]\n" + content[-LOG_TAIL:])


def run_parts(parts: Sequence[Part], out: Path, total: float, tell: Teller) -> list[Outcome]:
    """Run all, whatever becomes of each; all are over after ``total`` seconds and a moment."""
    deadline = time.monotonic() + total
    outcomes = []
    for number, part in enumerate(parts):
        kept = sum(later.least for later in parts[number + 1 :])
        limit = min(part.seconds, deadline - time.monotonic() - kept)
        if limit < min(part.least, 5):
            outcomes.append(Outcome(part.name, "failed: no time was left for it", 0))
            tell(f"[{part.name}] {outcomes[-1].verdict}")
            continue
        tell(f"[{part.name}] {shorter(shlex.join(part.command))} (at most {limit:.0f} s, into {part.log})")
        outcome, lines = run_part(part, out, limit)
        shorten(out / part.log)
        outcomes.append(outcome)
        for line in lines[-part.show :] if outcome.verdict == "ok" and part.show else []:
            tell(f"    {line}")
        for line in lines[-30:] if outcome.verdict != "ok" else []:
            tell(f"    {line}")
        tell(f"[{part.name}] {outcome.verdict}, {outcome.seconds:.0f} s")
    return outcomes


def tool(name: str) -> str:
    """A program of the CUDA toolkit, which is not always on the PATH."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    places = [f"{home}/bin" for home in homes if home] + sorted(map(str, Path("/opt/nvidia").glob("nsight-compute/*")))
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join(places)) or name


def sanitizer(kind: str, **env: str) -> Part:
    # Without the API's own errors: torch tries out what a driver can do.
    options = ["--tool", kind, "--error-exitcode", "9", "--report-api-errors", "no"]
    command = [tool("compute-sanitizer"), *options, sys.executable, "benchmarks/gpu_sanitize.py"]
    return Part(kind, command, 60, 20, "sanitize.log", env, wants="SUMMARY: 0 ", show=2)


def parts_for(capability: str, results: Path) -> list[Part]:
    python = sys.executable
    end_of_step = results.with_name(f"end-of-step-{results.name}")
    tests = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests").glob("test_cuda_*.py"))
    # One allocation of the driver's for each tensor, so that one byte too far is outside.
    uncached = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    ncu = [tool("ncu"), "--clock-control", "none", "--profile-from-start", "off", "--print-kernel-base", "demangled"]
    ours = ["--kernel-name-base", "demangled", "--kernel-name", "regex:fusedopt"]
    what = [word for section in SECTIONS for word in ("--section", section)] + ["--metrics", ",".join(METRICS)]
    # What the emulator runs it runs anywhere, and building it would take time from the GPU.
    on_gpu = ["-k", "not emulated and not emulator"]
    pytest = [
        python,
        "-m",
        "pytest",
        "-vv",
        "--tb=short",
        "--maxfail=50",
        "-p",
        "no:cacheprovider",
        "-o",
        "faulthandler_timeout=60",
    ]
    return [
        Part(
            "build",
            [python, "setup.py", "build_ext", "--inplace"],
            200,
            60,
            "build.log",
            {"TORCH_CUDA_ARCH_LIST": capability},
        ),
        # Without the engine the tests would skip what they are run for.
        Part("built", [python, "-c", BUILT], 60, 10, "build.log", wants="by this package's kernels", show=1),
        Part("tests", [*pytest, *on_gpu, *tests], 180, 75, "tests.log", wants=" passed", show=3),
        sanitizer("memcheck", **uncached),
        sanitizer("racecheck"),
        sanitizer("initcheck", **uncached),
        Part(
            "benchmarks",
            [python, "benchmarks/gpu.py", "--seconds", "{seconds}", "--out", str(results)],
            200,
            100,
            "benchmarks.log",
            show=70,
        ),
        Part(
            "end of step",
            [python, "benchmarks/end_of_step.py", "--device", "cuda", "--seconds", "15", "--out", str(end_of_step)],
            60,
            25,
            "benchmarks.log",
            wants="8-bit state",
            show=30,
        ),
        Part(
            "ncu",
            [*ncu, *ours, *what, python, "benchmarks/gpu_profile.py"],
            60,
            30,
            "ncu.log",
            wants="dram__throughput",
        ),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 all parts went well, 1 some did not."""
    parser = argparse.ArgumentParser(description="Build, test, check and measure fusedopt on the GPU of this machine.")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu", help="folder (default: build/gpu)")
    parser.add_argument("--seconds", type=float, default=TOTAL, help=f"for all parts together (default: {TOTAL:.0f})")
    options = parser.parse_args(arguments)
    out: Path = options.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    for old in ("build.log", "tests.log", "sanitize.log", "benchmarks.log", "ncu.log"):
        (out / old).unlink(missing_ok=True)
    tell = Teller(out / "summary.txt")

    began = time.monotonic()
    stamp = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%S")
    device = Part("device", [sys.executable, "-c", DEVICE], 60, 10, "build.log", wants="capability ")
    outcome, lines = run_part(device, out, device.seconds)
    for line in lines:
        tell(line)
    if outcome.verdict != "ok":
        tell(f"[device] {outcome.verdict}; nothing else can run")
        return 1
    capability = next(line for line in lines if line.startswith("capability ")).split()[1]
    results = out / f"gpu-{stamp}.json"
    outcomes = run_parts(parts_for(capability, results), out, options.seconds - (time.monotonic() - began), tell)

    tell("")
    for outcome in outcomes:
        tell(f"{outcome.name:<12} {outcome.seconds:6.1f} s  {outcome.verdict}")
    tell(f"{'all':<12} {time.monotonic() - began:6.1f} s  logs in {out}")
    if results.exists():
        tell(f"to publish the figures: cp {results} benchmarks/results/ && python benchmarks/figures.py")
    return int(any(outcome.verdict != "ok" for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
