"""The emulator that runs CUDA kernels on the CPU is tested itself: kernels run on it as on a device, and bugs planted
in kernels are found by the build that is there to find them."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "cuda_emulator"
SOURCES = ["selftest.cu", "selftest_host.cu", "block.cpp", "emulator.cpp", "fibers.cpp", "host.cpp", "threads.cpp"]
COMPILER = os.environ.get("CXX", "g++")
FLAGS = ["-std=c++17", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off", "-pthread"]
BUILDS = {
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
    "thread": ["-fsanitize=thread"],
    "plain": [],
    "ucontext": ["-DCUDA_EMULATOR_UCONTEXT", "-O0"],
}

CASES = [
    *("indices", "reduction", "launchers", "votes", "shuffles", "parts", "atomics", "parameters"),
    *(
        "limits",
        "devices",
        "errors",
        "failures",
        "misaligned",
        "deadlocks",
        "captures",
        "forbidden",
        "forks",
        "environment",
    ),
]
RUNS = [
    ("plain", "fibers"),
    ("plain", "threads"),
    ("ucontext", "fibers"),
    ("address", "fibers"),
    ("thread", "threads"),
]

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Runs a case in a build, which the first call compiles along with all others."""
    if shutil.which(COMPILER) is None:
        pytest.skip(f"{COMPILER} is not installed")
    folder = tmp_path_factory.mktemp("cuda_emulator")
    environment = os.environ | {"TSAN_OPTIONS": "atexit_sleep_ms=0", "UBSAN_OPTIONS": "print_stacktrace=1"}

    def compile_(name: str) -> Path | None:
        """The executable; None where the toolchain lacks the sanitizer."""
        empty = folder / f"{name}.empty.cpp"
        empty.write_text("int main() {}\n")
        probe = [COMPILER, *BUILDS[name], str(empty), "-o", str(empty.with_suffix(""))]
        if subprocess.run(probe, capture_output=True).returncode != 0:
            return None
        executable = folder / name
        sources = [str(FOLDER / source) for source in SOURCES]
        command = [COMPILER, *FLAGS, *BUILDS[name], f"-I{FOLDER}", "-x", "c++", *sources, "-o", str(executable)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return executable

    def call(build: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        executable = builds[build].result()
        if executable is None:
            pytest.skip(f"{COMPILER} cannot build with {BUILDS[build]}")

        def attempt(*prefix: str) -> subprocess.CompletedProcess[str]:
            command = [*prefix, str(executable), *arguments]
            return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)

        done = attempt()
        # Where the system spreads a process over its address space further than ThreadSanitizer can follow.
        if "unexpected memory mapping" in done.stderr:
            done = attempt("setarch", platform.machine(), "-R")
        return done

    with ThreadPoolExecutor(max_workers=min(2, os.cpu_count() or 1)) as pool:
        builds: dict[str, Future[Path | None]] = {name: pool.submit(compile_, name) for name in BUILDS}
        yield call


def seeds(backend: str) -> list[str]:
    # Order is the system's where the threads are its own.
    return ["0", "1", "2", "3"] if backend == "fibers" else ["0"]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("build", "backend"), RUNS)
def test_kernels_run_as_on_a_device(run: Run, build: str, backend: str, case: str) -> None:
    if build == "thread" and case == "forks":
        pytest.skip("ThreadSanitizer allows no threads after a fork")
    done = run(build, case, backend, *seeds(backend))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("build", "backend", "bug", "twin", "found"),
    [
        ("plain", "fibers", "reversal_without_barrier", "reversal", "the other thread's number"),
        ("plain", "fibers", "shift_without_barrier", "shift", "the other thread's number"),
        ("thread", "threads", "reversal_without_barrier", "reversal", "data race"),
        ("thread", "threads", "shift_without_barrier", "shift", "data race"),
        ("thread", "threads", "block_order_by_warps", "block_order", "data race"),
        ("thread", "threads", "warp_order_by_wrong_mask", "warp_order", "data race"),
        ("address", "fibers", "fill_too_far", "fill", "heap-buffer-overflow"),
        ("plain", "fibers", "vector_load_misaligned", "vector_load", "not a multiple of 16"),
        ("plain", "threads", "vector_load_misaligned", "vector_load", "not a multiple of 16"),
        ("address", "fibers", "plain_vector_load_misaligned", "plain_vector_load", "misaligned address"),
    ],
)
def test_planted_bug_is_found(run: Run, build: str, backend: str, bug: str, twin: str, found: str) -> None:
    right = run(build, twin, backend, *seeds(backend))
    assert right.returncode == 0, right.stdout + right.stderr
    wrong = run(build, bug, backend, *seeds(backend))
    assert wrong.returncode != 0
    assert found in wrong.stdout + wrong.stderr


def test_some_bugs_show_only_in_shuffled_order(run: Run) -> None:
    assert run("plain", "shift_without_barrier", "fibers", "0").returncode == 0
    assert run("plain", "shift_without_barrier", "fibers", "1").returncode != 0
